"""GPU memory of an engine that uses torch: its limit, its figures, and the release of its cache."""

from __future__ import annotations

import gc
import importlib
from typing import Any

from .base import MemoryFigures


def keep_within(share: float) -> None:
    """Limit torch's allocator to this share (0..1) of the GPU's memory; 0: no limit. Call it before loading the model.

    Beyond it torch raises OutOfMemoryError, before other processes on the GPU run out of memory. The CUDA context and
    the libraries' own memory do not count.
    """
    torch = _torch()
    if share > 0 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))


def figures() -> MemoryFigures:
    """The figures of torch's allocator; None without a CUDA context, which this does not create."""
    torch = _torch()
    if not torch.cuda.is_initialized():
        return MemoryFigures()
    return MemoryFigures(
        torch_allocated=int(torch.cuda.memory_allocated()), torch_reserved=int(torch.cuda.memory_reserved())
    )


def trim() -> None:
    """Collect garbage, including tensors in reference cycles, and return the allocator's cache to the driver."""
    torch = _torch()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _torch() -> Any:
    # It takes seconds, and engines without torch must not need it.
    return importlib.import_module("torch")
