"""daemon/core/workers/gpu_attribution.py: a worker is blamed for no memory that may be another's."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon.core.inputs import GpuReading
from glmtts.daemon.core.workers.gpu_attribution import Holder, Share, attribute, others

GIB = 1 << 30


def gpu(used: int | None = 0, processes: dict[int, int | None] | None = None, **more: Any) -> GpuReading:
    return GpuReading(index=0, uuid="GPU-0", total=24 * GIB, used=used, processes=processes or {}, **more)


def test_what_nvml_says_of_a_process_counts_most() -> None:
    reading = gpu(12 * GIB, {11: 8 * GIB, 99: 3 * GIB})
    assert attribute(reading, [Holder(1, 11, torch_reserved=7 * GIB)], GIB) == {1: Share(8 * GIB, "process")}


def test_the_only_worker_has_what_nobody_else_had_before() -> None:
    for listed in ({}, {11: None}):
        assert attribute(gpu(10 * GIB, listed), [Holder(1, 11)], GIB) == {1: Share(9 * GIB, "device")}


def test_a_worker_that_loads_its_model_is_seen_to_grow() -> None:
    loading = Holder(1, 11, torch_reserved=0, ready=False)
    assert attribute(gpu(5 * GIB), [loading], GIB) == {1: Share(4 * GIB, "device")}


def test_two_workers_without_figures_share_the_rest_by_what_their_torch_says() -> None:
    holders = [Holder(1, 11, 6 * GIB), Holder(2, 12, 2 * GIB)]
    assert attribute(gpu(11 * GIB), holders, GIB) == {1: Share(7 * GIB, "device"), 2: Share(3 * GIB, "device")}


def test_two_workers_of_which_one_says_nothing_are_not_told_apart() -> None:
    holders = [Holder(1, 11, 6 * GIB), Holder(2, 12)]
    assert attribute(gpu(11 * GIB), holders, GIB) == {1: Share(6 * GIB, "torch"), 2: Share(None, "none")}
    assert attribute(gpu(11 * GIB), [Holder(1, 11), Holder(2, 12)], GIB) == {
        1: Share(None, "none"),
        2: Share(None, "none"),
    }


def test_a_worker_that_loads_does_not_lend_its_growth_to_the_one_that_speaks() -> None:
    holders = [Holder(1, 11, 6 * GIB), Holder(2, 12, 0, ready=False)]
    assert attribute(gpu(14 * GIB), holders, GIB) == {1: Share(6 * GIB, "torch"), 2: Share(None, "none")}


def test_one_figure_of_nvml_leaves_the_rest_to_the_other() -> None:
    reading = gpu(12 * GIB, {11: 5 * GIB, 12: None})
    assert attribute(reading, [Holder(1, 11), Holder(2, 12)], GIB) == {
        1: Share(5 * GIB, "process"),
        2: Share(6 * GIB, "device"),
    }


def test_memory_of_strangers_who_came_later_is_not_a_worker_s() -> None:
    reading = gpu(20 * GIB, {11: None, 99: 12 * GIB})
    assert attribute(reading, [Holder(1, 11)], GIB) == {1: Share(8 * GIB, "device")}


def test_strangers_who_left_never_make_a_share_negative() -> None:
    assert attribute(gpu(2 * GIB), [Holder(1, 11)], 10 * GIB) == {1: Share(0, "device")}
    # Torch has more than that, so the baseline is out of date.
    assert attribute(gpu(2 * GIB), [Holder(1, 11, GIB)], 10 * GIB) == {1: Share(GIB, "torch")}


def test_without_knowing_what_was_used_before_nobody_is_blamed() -> None:
    assert attribute(gpu(10 * GIB), [Holder(1, 11)], None) == {1: Share(None, "none")}
    assert attribute(gpu(10 * GIB), [Holder(1, 11, 4 * GIB)], None) == {1: Share(4 * GIB, "torch")}


def test_figures_of_a_gpu_that_fails_are_old_and_do_not_count() -> None:
    for state in ("failing", "lost"):
        reading = gpu(10 * GIB, {11: 9 * GIB}, state=state)
        assert attribute(reading, [Holder(1, 11)], 0) == {1: Share(None, "none")}
        assert attribute(reading, [Holder(1, 11, 4 * GIB)], 0) == {1: Share(4 * GIB, "torch")}
        assert others(reading, [Share(GIB, "process")]) is None


def test_a_gpu_that_was_never_seen_leaves_the_workers_own_figures() -> None:
    assert attribute(None, [Holder(1, 11, GIB), Holder(2, 12)]) == {1: Share(GIB, "torch"), 2: Share(None, "none")}


def test_what_others_hold_is_the_rest() -> None:
    assert others(gpu(10 * GIB), [Share(4 * GIB, "process"), Share(3 * GIB, "device")]) == 3 * GIB
    assert others(gpu(10 * GIB), []) == 10 * GIB
    assert others(gpu(None), []) is None
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
    state=st.sampled_from(["ok", "failing", "lost"]),
)
def test_no_share_is_more_than_what_is_used_and_each_worker_has_one(
    used: int | None, processes: dict[int, int | None], holders: list[Holder], baseline: int | None, state: Any
) -> None:
    reading = gpu(used, processes, state=state)
    shares = attribute(reading, holders, baseline)
    assert set(shares) == {holder.incarnation for holder in holders}
    for holder in holders:
        share = shares[holder.incarnation]
        assert (share.vram is None) == (share.trust == "none")
        assert share.vram is None or share.vram >= 0
        if share.trust in ("process", "device"):
            assert state == "ok" and (used is None or (share.vram or 0) <= used)
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
