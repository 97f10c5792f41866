"""daemon/engines/cuda_errors.py: a worker with a broken GPU context must go, one whose job was bad must stay."""

from __future__ import annotations

import pytest

from glmtts.daemon.engines.base import EngineError
from glmtts.daemon.engines.cuda_errors import fatal_kind

#: What torch adds to every CUDA error.
_HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call.\nCompile with `TORCH_USE_CUDA_DSA`"
)


class AcceleratorError(RuntimeError):
    """As torch's since 2.8: with the runtime's number."""

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code


class OutOfMemoryError(RuntimeError):
    """As torch's."""


class CUDARuntimeError(Exception):
    """As cupy's."""


@pytest.mark.parametrize(
    "error",
    [
        *(AcceleratorError("CUDA error: words of another version", code) for code in (700, 710, 716, 717, 718, 719)),
        RuntimeError(f"CUDA error: an illegal memory access was encountered{_HINT}"),
        RuntimeError(f"CUDA error: device-side assert triggered{_HINT}"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: operation not supported on global/shared address space"),
        RuntimeError("CUDA error: invalid program counter"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x"),
        CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        RuntimeError("[700] Call to cuMemFree results in CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
    ids=str,
)
def test_a_broken_context_is_recognised_in_the_words_of_every_library(error: Exception) -> None:
    assert fatal_kind(error) == "cuda_context"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.69 GiB total capacity)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_running_out_of_memory_is_recognised_on_host_and_gpu(error: Exception) -> None:
    assert fatal_kind(error) == "out_of_memory"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the fault that was asked for"),
        ValueError("CUDA error: an illegal memory access was encountered, said the text that was to be spoken"),
        RuntimeError("illegal memory access was encountered in the text"),
        RuntimeError("CUDA error: invalid argument"),
        AcceleratorError("CUDA error: invalid device ordinal", 101),
        EngineError("synthesis_failed", "the prompt ran out of memory"),
        RuntimeError("we are out of memory chips; CUDA is fine"),
    ],
    ids=str,
)
def test_other_failures_cost_no_worker_its_life(error: Exception) -> None:
    assert fatal_kind(error) == ""


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: words of another version", 999),
        RuntimeError("CUDA error: unknown error"),
        RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"),
        RuntimeError("[46] Call to cuMemAlloc results in CUDA_ERROR_DEVICE_UNAVAILABLE"),
    ],
    ids=str,
)
def test_a_gpu_that_is_gone_is_no_fault_of_the_job(error: Exception) -> None:
    assert fatal_kind(error) == "gpu_lost"


def test_a_cause_behind_the_error_is_found() -> None:
    try:
        try:
            raise OutOfMemoryError("CUDA out of memory")
        except OutOfMemoryError as cause:
            raise RuntimeError("segment 3 failed") from cause
    except RuntimeError as error:
        assert fatal_kind(error) == "out_of_memory"


def test_memory_that_was_made_do_without_is_no_reason_to_go_but_a_broken_context_stays_broken() -> None:
    for first, verdict in ((OutOfMemoryError("CUDA out of memory"), ""), (AcceleratorError("?", 700), "cuda_context")):
        try:
            try:
                raise first
            except RuntimeError:
                raise ValueError("the shorter text was empty")  # noqa: B904 - as an engine that does not think of it
        except ValueError as error:
            assert fatal_kind(error) == verdict


def test_a_chain_of_causes_without_an_end_is_left() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert fatal_kind(one) == ""
