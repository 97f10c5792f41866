"""How many jobs a worker of the batching engine takes at once: by the memory of its GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from glmtts.daemon.engines.glmtts.device import NoGpuError, slot_bytes, slots_for

GIB = 1 << 30
#: What the published model is by its configuration.
PUBLISHED = SimpleNamespace(num_hidden_layers=28, num_key_value_heads=4, head_dim=128)
SLOT = slot_bytes(PUBLISHED, "bf16")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU with free and total memory."""
    found = SimpleNamespace(free=60 * GIB, total=80 * GIB, there=True, reserved=0)
    cuda = SimpleNamespace(
        is_available=lambda: found.there,
        mem_get_info=lambda: (found.free, found.total),
        memory_reserved=lambda: found.reserved,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return found


def test_a_slot_takes_keys_and_values_of_its_places() -> None:
    assert SLOT == 2 * 28 * 4 * 128 * 2 * 2_048 and slot_bytes(PUBLISHED, "fp32") == 2 * SLOT


@pytest.mark.parametrize(
    ("free_gib", "total_gib", "slots"),
    [(60, 80, 32), (20, 24, 16), (3.4, 24, None), (3.5, 24, 1), (4, 24, 6), (29, 30, 32)],
)
def test_slots_follow_from_the_memory_that_is_free(
    gpu: SimpleNamespace, free_gib: float, total_gib: float, slots: int | None
) -> None:
    gpu.free, gpu.total = int(free_gib * GIB), int(total_gib * GIB)
    if slots is None:
        with pytest.raises(NoGpuError, match="slots = 1"):
            slots_for(0, SLOT, share=0.0)
    else:
        assert slots_for(0, SLOT, share=0.0) == slots


def test_a_worker_that_may_have_a_part_of_the_gpu_has_fewer(gpu: SimpleNamespace) -> None:
    # 4 of its 10 GiB are left, as in the case above.
    gpu.reserved = 6 * GIB
    assert slots_for(0, SLOT, share=0.125) == 6


def test_slots_that_were_asked_for_are_given_or_refused(gpu: SimpleNamespace) -> None:
    assert slots_for(64, SLOT, share=0.0) == 64
    gpu.free = 8 * GIB
    with pytest.raises(NoGpuError, match=r"slots = 64.*Lower slots"):
        slots_for(64, SLOT, share=0.0)


def test_a_cpu_has_a_few(gpu: SimpleNamespace) -> None:
    gpu.there = False
    assert [slots_for(asked, SLOT, share=0.0) for asked in (0, 16)] == [4, 16]
