"""Recognises exceptions after which the process can't continue, by type, number and message; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

#: A cause of death of the process, or "" for none.
FatalKind = Literal["out_of_memory", "cuda_context", "gpu_lost", ""]

#: Errors after which every further call of the process fails: those after which cuda.h demands that the process ends,
#: and the device-side assert (710), which invalidates everything on the device.
POISONING: Final[frozenset[int]] = frozenset({226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 911})
#: Errors of a GPU that no longer responds: no device (100), devices unavailable (46), and the unknown error (999) that
#: drivers return for a GPU that fell off the bus.
LOST: Final[frozenset[int]] = frozenset({46, 100, 999})
_OUT_OF_MEMORY: Final = 2

#: The driver's messages and names of these errors, as libraries quote them: "CUDA error: misaligned address" (torch),
#: "CUDA failure 700: an illegal memory access was encountered" (ONNX Runtime), "Triton Error [CUDA]: ...",
#: "[700] Call to cuMemFree results in CUDA_ERROR_ILLEGAL_ADDRESS" (numba).
_POISONED_WORDS: Final = re.compile(
    r"illegal memory access was encountered|device-side assert|misaligned address|illegal instruction was encountered"
    r"|operation not supported on global/shared address space|invalid program counter|unspecified launch failure"
    r"|hardware stack error|the launch timed out and was terminated"
    r"|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_TIMEOUT|ASSERT|HARDWARE_STACK_ERROR|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS"
    r"|INVALID_ADDRESS_SPACE|INVALID_PC|LAUNCH_FAILED|CONTAINED)\b"
)
_LOST_WORDS: Final = re.compile(
    r"CUDA error: unknown error|no CUDA-capable device is detected|CUDA-capable device\(s\) is/are busy or unavailable"
    r"|CUDA_ERROR_(UNKNOWN|NO_DEVICE|DEVICE_UNAVAILABLE)\b"
)
_MEMORY_WORDS: Final = re.compile(
    r"CUDA.{0,40}out of memory|CUDA_ERROR_OUT_OF_MEMORY|(CUBLAS|CUDNN|CUFFT|CUSPARSE)_(STATUS_)?ALLOC_FAILED", re.DOTALL
)
#: Most exceptions of a chain of causes, which may be a cycle.
_DEEPEST: Final = 16


def fatal_kind(error: BaseException) -> FatalKind:
    """Whether the exception means that the process must end, and why.

    Its explicit causes count too. A broken context or a lost GPU also counts where its exception was merely being
    handled, as it cannot recover.
    """
    if any(_is_poisoned(one) for one in _chain(error, contexts=True)):
        return "cuda_context"
    if any(_is_lost(one) for one in _chain(error, contexts=True)):
        return "gpu_lost"
    if any(_is_out_of_memory(one) for one in _chain(error, contexts=False)):
        return "out_of_memory"
    return ""


def words_in(text: str) -> str:
    """The words of such an error in ``text``, which another program has written; ``""`` if it has none."""
    if "cuda" not in text.lower():
        return ""
    found = next(filter(None, (words.search(text) for words in (_POISONED_WORDS, _LOST_WORDS, _MEMORY_WORDS))), None)
    return found[0] if found else ""


def _chain(error: BaseException, *, contexts: bool) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(_DEEPEST):
        if one is None:
            return
        yield one
        one = one.__cause__ or (one.__context__ if contexts else None)


def _number(error: BaseException) -> int | None:
    """The driver's number, which torch.AcceleratorError and the fault engine's CudaError carry."""
    number = getattr(error, "error_code", None)
    return number if isinstance(number, int) else None


def _is_poisoned(error: BaseException) -> bool:
    if _number(error) in POISONING:
        return True
    words = str(error) if isinstance(error, RuntimeError) or "cuda" in type(error).__name__.lower() else ""
    return "cuda" in words.lower() and _POISONED_WORDS.search(words) is not None


def _is_lost(error: BaseException) -> bool:
    if _number(error) in LOST:
        return True
    return isinstance(error, RuntimeError) and _LOST_WORDS.search(str(error)) is not None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has an exception of this name for each of its kinds of memory.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if _number(error) == _OUT_OF_MEMORY:
        return True
    return isinstance(error, RuntimeError) and _MEMORY_WORDS.search(str(error)) is not None
