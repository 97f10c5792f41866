"""Chooses the device, and refuses one with too little memory before anything is loaded."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .. import torch_memory

#: Bytes beside the weights: CUDA context, libraries, activations. Upstream's users report 8.6 to 8.8 GiB in all on an
#: RTX 3090, of which the weights are 8.1.
WORKING_BYTES = 1 << 30


class NoGpuError(Exception):
    """GLM-TTS can't run on this machine's GPU; the message has the reason and the remedy."""


def choose(weights_bytes: int, *, needs_gpu: bool, share: float) -> str:
    """Import torch and check its device. Returns the device's name.

    Args:
        weights_bytes: GPU memory for the weights.
        needs_gpu: False: run on the CPU, even if there is a GPU.
        share: The part of the GPU's memory that may be used, 0..1; 0: all of it.

    Raises:
        NoGpuError: There is no GPU, too little memory, or no torch.
    """
    if not needs_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise NoGpuError(
            f"{sys.executable} has no {error.name}; [engine] python should name the interpreter of GLM-TTS's own "
            "environment; docs/glmtts.md describes how to make one"
        ) from error
    if not needs_gpu:
        return "the CPU"
    if not torch.cuda.is_available():
        raise NoGpuError(_why_no_cuda(torch))
    torch_memory.keep_within(share)
    name = str(torch.cuda.get_device_name())
    _check_memory(torch, name, weights_bytes, share)
    return name


def _why_no_cuda(torch: Any) -> str:
    on_cpu = 'To run on the CPU, many times slower than real time, set [workers] gpus = "none"'
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} of {sys.executable} is built without CUDA: install a build with CUDA. {on_cpu}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
    try:
        torch.cuda.init()
        why = "it finds no device"
    except Exception as error:
        why = str(error).split("\n")[0].rstrip(".")
    return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU{seen}: {why}. {on_cpu}"


def _check_memory(torch: Any, name: str, weights_bytes: int, share: float) -> None:
    free, total = torch.cuda.mem_get_info()
    needed = weights_bytes + WORKING_BYTES
    if share and share * total < needed:
        raise NoGpuError(
            f"GLM-TTS needs about {_gib(needed)} of GPU memory ({_gib(weights_bytes)} of it weights), and a worker may "
            f"use {_gib(share * total)} of {name}: raise max_vram_mib or max_vram_share in [workers.recycle], or set "
            'dtype = "bf16" in [engine.glmtts]'
        )
    if free < needed:
        raise NoGpuError(
            f"too little GPU memory is free: GLM-TTS needs about {_gib(needed)} ({_gib(weights_bytes)} of it weights), "
            f"and {name} has {_gib(free)} of {_gib(total)} free. Other processes hold the rest (glmttsctl gpus, "
            'nvidia-smi): end them, lower [workers] per_gpu, or set dtype = "bf16" in [engine.glmtts]'
        )


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
