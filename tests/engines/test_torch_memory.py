"""daemon/engines/torch_memory.py, with a stand-in for torch: the real one needs gigabytes and a GPU to show it."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace

import pytest

from glmtts.daemon.engines import torch_memory
from glmtts.daemon.engines.base import MemoryFigures


class Cuda:
    """torch.cuda, as far as it is asked; ``calls`` has what was asked for."""

    def __init__(self, *, available: bool = True, initialised: bool = True) -> None:
        self.calls: list[object] = []
        self._available, self._initialised = available, initialised

    def is_available(self) -> bool:
        return self._available

    def is_initialized(self) -> bool:
        return self._initialised

    def memory_allocated(self) -> int:
        assert self._initialised
        return 100

    def memory_reserved(self) -> int:
        assert self._initialised
        return 300

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        assert self._available and 0 < fraction <= 1
        self.calls.append(fraction)

    def empty_cache(self) -> None:
        assert self._initialised
        self.calls.append("empty_cache")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Cuda:
    cuda = Cuda(**getattr(request, "param", {}))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_a_worker_is_kept_within_its_share(cuda: Cuda) -> None:
    torch_memory.keep_within(0.45)
    torch_memory.keep_within(1.5)
    assert cuda.calls == [0.45, 1.0]


def test_without_a_share_torch_keeps_its_own_limit(cuda: Cuda) -> None:
    torch_memory.keep_within(0.0)
    assert cuda.calls == []


@pytest.mark.parametrize("cuda", [{"available": False, "initialised": False}], indirect=True)
def test_a_worker_without_a_gpu_is_left_alone(cuda: Cuda) -> None:
    torch_memory.keep_within(0.5)
    torch_memory.trim()
    assert torch_memory.figures() == MemoryFigures() and cuda.calls == []


def test_the_figures_are_torch_s_own(cuda: Cuda) -> None:
    assert torch_memory.figures() == MemoryFigures(torch_allocated=100, torch_reserved=300)
    assert cuda.calls == []


def test_a_trim_collects_what_refers_to_itself_before_the_cache_is_emptied(cuda: Cuda) -> None:
    class Tensor:
        """Something in a cycle."""

    tensor = Tensor()
    tensor.itself = tensor  # type: ignore[attr-defined]
    gone = weakref.ref(tensor)
    gc.disable()
    try:
        del tensor
        torch_memory.trim()
    finally:
        gc.enable()
    assert gone() is None and cuda.calls == ["empty_cache"]
