"""Each worker is shown the GPU memory that is certainly its own, and never another program's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon.core.inputs import GpuReading
from glmtts.daemon.core.workers.gpu_attribution import UNKNOWN, Holder, Share, attribute, others

GIB = 1 << 30


def gpu(used: int | None = 0, processes: dict[int, int | None] | None = None, **more: Any) -> GpuReading:
    return GpuReading(index=0, uuid="GPU-0", total=24 * GIB, used=used, processes=processes or {}, **more)


CASES = {
    "NVML's figure counts most": (
        gpu(12 * GIB, {11: 8 * GIB, 99: 3 * GIB}),
        [Holder(1, 11, torch_reserved=7 * GIB)],
        GIB,
        [Share(8 * GIB, "process")],
    ),
    "what its children hold is its own, and no stranger's": (
        gpu(12 * GIB, {21: 5 * GIB, 22: 2 * GIB, 99: 3 * GIB}),
        [Holder(1, 11, descendants=(21, 22, 23)), Holder(2, 12)],
        GIB,
        [Share(7 * GIB, "process"), Share(2 * GIB, "device")],
    ),
    "a child without a figure leaves the rest": (
        gpu(12 * GIB, {21: 5 * GIB, 22: None, 99: 3 * GIB}),
        [Holder(1, 11, descendants=(21, 22))],
        GIB,
        [Share(9 * GIB, "device")],
    ),
    "the only worker has the rest": (gpu(10 * GIB), [Holder(1, 11)], GIB, [Share(9 * GIB, "device")]),
    "NVML lists it without a figure": (gpu(10 * GIB, {11: None}), [Holder(1, 11)], GIB, [Share(9 * GIB, "device")]),
    "a loading model grows": (
        gpu(5 * GIB),
        [Holder(1, 11, torch_reserved=0, ready=False)],
        GIB,
        [Share(4 * GIB, "device")],
    ),
    "two share the rest by torch's figures": (
        gpu(11 * GIB),
        [Holder(1, 11, 6 * GIB), Holder(2, 12, 2 * GIB)],
        GIB,
        [Share(7 * GIB, "device"), Share(3 * GIB, "device")],
    ),
    "one of two without a figure": (
        gpu(11 * GIB),
        [Holder(1, 11, 6 * GIB), Holder(2, 12)],
        GIB,
        [Share(6 * GIB, "torch"), UNKNOWN],
    ),
    "two without figures": (gpu(11 * GIB), [Holder(1, 11), Holder(2, 12)], GIB, [UNKNOWN, UNKNOWN]),
    "growth of a loading worker": (
        gpu(14 * GIB),
        [Holder(1, 11, 6 * GIB), Holder(2, 12, 0, ready=False)],
        GIB,
        [Share(6 * GIB, "torch"), UNKNOWN],
    ),
    "the rest is the other's": (
        gpu(12 * GIB, {11: 5 * GIB, 12: None}),
        [Holder(1, 11), Holder(2, 12)],
        GIB,
        [Share(5 * GIB, "process"), Share(6 * GIB, "device")],
    ),
    "programs that came later": (
        gpu(20 * GIB, {11: None, 99: 12 * GIB}),
        [Holder(1, 11)],
        GIB,
        [Share(8 * GIB, "device")],
    ),
    "programs that ended": (gpu(2 * GIB), [Holder(1, 11)], 10 * GIB, [Share(0, "device")]),
    "the baseline is out of date": (gpu(2 * GIB), [Holder(1, 11, GIB)], 10 * GIB, [Share(GIB, "torch")]),
    "no baseline": (gpu(10 * GIB), [Holder(1, 11)], None, [UNKNOWN]),
    "no baseline, but torch's figure": (gpu(10 * GIB), [Holder(1, 11, GIB)], None, [Share(GIB, "torch")]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_worker_is_blamed_for_its_own_memory_alone(case: str) -> None:
    reading, holders, baseline, expected = CASES[case]
    shares = attribute(reading, holders, baseline)
    assert [shares[holder.incarnation] for holder in holders] == expected


def test_what_others_hold_is_the_rest() -> None:
    assert others(gpu(10 * GIB), [Share(4 * GIB, "process"), Share(3 * GIB, "device")]) == 3 * GIB
    assert others(gpu(10 * GIB), []) == 10 * GIB
    assert others(gpu(None), []) is None
    assert others(gpu(10 * GIB, state="failing"), [Share(GIB, "process")]) is None
    # A lower bound of ours would be an upper bound of theirs.
    assert others(gpu(10 * GIB), [Share(4 * GIB, "torch")]) is None
    assert others(gpu(10 * GIB), [Share(None, "none")]) is None


_BYTES = st.integers(0, 80 * GIB)
_PIDS = st.integers(1, 8)
_HOLDERS = st.dictionaries(_PIDS, st.tuples(st.none() | _BYTES, st.booleans()), max_size=6).map(
    lambda found: [Holder(100 + pid, pid, reserved, ready) for pid, (reserved, ready) in found.items()]
)


@given(
    used=st.none() | _BYTES,
    processes=st.dictionaries(_PIDS, st.none() | _BYTES, max_size=8),
    holders=_HOLDERS,
    baseline=st.none() | _BYTES,
)
def test_no_share_is_more_than_what_is_used_and_each_worker_has_one(
    used: int | None, processes: dict[int, int | None], holders: list[Holder], baseline: int | None
) -> None:
    reading = gpu(used, processes)
    shares = attribute(reading, holders, baseline)
    assert set(shares) == {holder.incarnation for holder in holders}
    for holder in holders:
        share = shares[holder.incarnation]
        assert (share.vram is None) == (share.trust == "none")
        assert share.vram is None or share.vram >= 0
        if share.trust in ("process", "device"):
            assert used is None or (share.vram or 0) <= used
        if share.trust == "torch":
            assert share.vram == holder.torch_reserved and holder.ready
    split = [share.vram or 0 for share in shares.values() if share.trust == "device"]
    if split:
        assert used is not None and baseline is not None
        told = sum(share.vram or 0 for share in shares.values() if share.trust == "process")
        assert sum(split) <= max(0, used - baseline - told)
    # Who is asked about first does not matter.
    assert attribute(reading, holders[::-1], baseline) == shares


@given(reserved=st.lists(st.integers(0, 8 * GIB), min_size=1, max_size=6), context=st.integers(0, GIB), more=_BYTES)
def test_equal_contexts_are_attributed_to_the_byte(reserved: list[int], context: int, more: int) -> None:
    holders = [Holder(number, number, size) for number, size in enumerate(reserved, 1)]
    reading = gpu(more + sum(reserved) + context * len(reserved))
    shares = attribute(reading, holders, more)
    assert shares == {holder.incarnation: Share((holder.torch_reserved or 0) + context, "device") for holder in holders}
