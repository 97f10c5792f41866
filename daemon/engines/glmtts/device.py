"""Chooses the device, and refuses one with too little memory before anything is loaded."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from glmtts.protocol.worker import MAX_SUSPENDED

from .. import torch_memory

#: Bytes beside the weights: CUDA context, libraries, activations. Upstream's users report 8.6 to 8.8 GiB in all on an
#: RTX 3090, of which the weights are 8.1.
WORKING_BYTES = 1 << 30
#: The same for the batching engine: CUDA graphs, and the flow model's activations for the longest segment.
BATCH_WORKING_BYTES = 3 << 30
#: The most jobs at once if ``slots`` is 0. On a small GPU the flow model is busy with fewer.
_MOST_SLOTS, _SLOTS_ON_SMALL_GPU, _SMALL_GPU_BYTES = 32, 16, 30 << 30
_SLOTS_ON_CPU = 4
#: Most tokens of one segment in the batching engine: its prompt, its text, and its speech tokens.
PLACES = 2_048


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


def head_size(config: Any) -> int:
    """The size of a head of the language model's attention; ``config``: the model's configuration."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def slot_bytes(config: Any, dtype: str) -> int:
    """GPU memory of one slot of the batching engine; ``config``: of the language model."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config)
    return int(numbers * (2 if dtype == "bf16" else 4) * PLACES)


def batch_bytes(slots: int, slot: int) -> int:
    """GPU memory of the batching engine beside its weights."""
    return BATCH_WORKING_BYTES + (slots + MAX_SUSPENDED) * slot


def slots_for(asked: int, slot: int, *, share: float) -> int:
    """How many jobs a worker of the batching engine takes at once. Called when the weights are loaded.

    Args:
        asked: The setting; 0: by the memory that is free.
        slot: The bytes of one.
        share: As in ``choose``.

    Raises:
        NoGpuError: Too little GPU memory is free for ``asked`` jobs, or for one.
    """
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return asked or _SLOTS_ON_CPU
    free, total = torch.cuda.mem_get_info()
    if share:
        free = min(free, int(share * total) - torch.cuda.memory_reserved())
    if free < (needed := batch_bytes(asked or 1, slot)):
        raise NoGpuError(
            f"too little GPU memory is free for slots = {asked or 1}: beside the weights they need {_gib(needed)} "
            f"({_gib(slot)} each, and {MAX_SUSPENDED} more for suspended jobs), and {_gib(free)} are free. Lower slots "
            'in [engine.glmtts], or set dtype = "bf16" or batching = "off" there'
        )
    fit = (free - batch_bytes(0, slot)) // slot
    return asked or int(min(fit, _SLOTS_ON_SMALL_GPU if total < _SMALL_GPU_BYTES else _MOST_SLOTS))


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
