"""What an engine that uses torch does about GPU memory: stay within a share, tell figures, give the cache back."""

from __future__ import annotations

import gc
import importlib
from typing import Any

from .base import MemoryFigures


def keep_within(share: float) -> None:
    """Let torch's allocator take at most this share (0..1) of the GPU's memory; 0: no limit.

    Beyond it torch raises OutOfMemoryError, in this process alone and before its neighbours on the GPU are hurt. The
    CUDA context and what libraries take by themselves come on top. To be called before the model is loaded.
    """
    torch = _torch()
    if share > 0 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))


def figures() -> MemoryFigures:
    """What torch's allocator holds. Without a CUDA context there is nothing to tell, and none is made by asking."""
    torch = _torch()
    if not torch.cuda.is_initialized():
        return MemoryFigures()
    return MemoryFigures(
        torch_allocated=int(torch.cuda.memory_allocated()), torch_reserved=int(torch.cuda.memory_reserved())
    )


def trim() -> None:
    """Collect garbage, tensors in reference cycles among it, and give the allocator's cache back to the driver."""
    torch = _torch()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _torch() -> Any:
    # Imported late: it takes seconds, and the engines without it must not need it.
    return importlib.import_module("torch")
