"""Runs upstream's code, which names CUDA devices, on a machine without CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def cpu_fallback() -> Iterator[None]:
    """Without CUDA, moves tensors and modules to the CPU instead; with CUDA, does nothing."""
    import torch
    from torch.overrides import TorchFunctionMode

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.cuda:
                return args[0]
            kwargs = kwargs or {}
            if _is_cuda(kwargs.get("device")):
                kwargs = kwargs | {"device": "cpu"}
            if func is torch.Tensor.to:
                args = tuple("cpu" if _is_cuda(one) else one for one in args)
            return func(*args, **kwargs)

    def _is_cuda(device: Any) -> bool:
        if isinstance(device, torch.device):
            return bool(device.type == "cuda")
        return isinstance(device, str) and device.partition(":")[0] == "cuda"

    if torch.cuda.is_available():
        yield
    else:
        with OnCpu():
            yield
