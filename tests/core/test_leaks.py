"""A process that leaks is replaced before its memory runs out; a healthy one, however noisy, is kept."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from glmtts.daemon.core.workers.memory_watch import IdleSample, Limit, MemoryLimits, MemoryVerdict, MemoryWatch

MIB = 1 << 20
GPU = MemoryLimits(vram=Limit(24_576 * MIB, "GPU 0", hard=False))


def torch_sample(
    jobs: int, *, live: float = 8_000, cache: float = 800, outside: float = 500, rss: float = 3_000
) -> IdleSample:
    """A sample of a torch engine, in MiB."""
    return IdleSample(
        jobs=jobs,
        rss=round(rss * MIB),
        vram=round((live + cache + outside) * MIB),
        torch_allocated=round(live * MIB),
        torch_reserved=round((live + cache) * MIB),
    )


def plain_sample(jobs: int, vram: float) -> IdleSample:
    """A sample of an engine of which only the device's figure is known, in MiB."""
    return IdleSample(jobs=jobs, vram=round(vram * MIB))


def first(
    samples: Iterable[IdleSample],
    limits: MemoryLimits = GPU,
    *,
    trimmed: Callable[[IdleSample], IdleSample] | None = None,
) -> tuple[int, MemoryVerdict, list[MemoryVerdict]]:
    """Jobs until the first recycle, its verdict, and the trims before it; -1 where there is none."""
    watch = MemoryWatch()
    trims: list[MemoryVerdict] = []
    for sample in samples:
        verdict = watch.add(sample, limits)
        if verdict.action == "recycle":
            return sample.jobs, verdict, trims
        if verdict.action == "trim":
            trims.append(verdict)
            watch.trimmed(trimmed(sample) if trimmed else sample)
    return -1, MemoryVerdict(), trims


# --- leaks


@pytest.mark.parametrize("mib", [1, 20, 200])
@pytest.mark.parametrize(
    ("make", "held", "limit", "kind"),
    [
        (lambda jobs, mib: torch_sample(jobs, live=8_000 + mib), 9_300, 24_576, "leak"),
        (lambda jobs, mib: torch_sample(jobs, outside=500 + mib), 9_300, 24_576, "outside_torch"),
        (lambda jobs, mib: plain_sample(jobs, 9_000 + mib), 9_000, 24_576, "leak"),
        (lambda jobs, mib: replace(torch_sample(jobs, live=8_000 + mib), vram=None), 8_800, 24_576, "leak"),
        (lambda jobs, mib: torch_sample(jobs, rss=3_000 + mib), 3_000, 16_384, "host_leak"),
    ],
    ids=["tensors", "outside torch", "without torch", "without NVML", "host"],
)
def test_a_leak_is_recycled_before_90_percent_after_one_useless_trim(
    make: Callable[[int, int], IdleSample], held: int, limit: int, kind: str, mib: int
) -> None:
    limits = replace(GPU, rss=Limit(16_384 * MIB, "max_rss_mib"))
    jobs, verdict, trims = first((make(jobs, mib * jobs) for jobs in range(20_000)), limits)
    assert 0.8 < (held + mib * jobs) / limit < 0.9
    assert (verdict.kind, len(trims)) == (kind, 1)


def test_five_jobs_from_the_limit_four_samples_are_enough() -> None:
    jobs, verdict, _ = first(plain_sample(jobs, 23_500 + 200 * jobs) for jobs in range(10))
    assert 0 < jobs <= 4
    assert verdict.urgent


def test_a_slow_leak_under_loud_noise_is_caught() -> None:
    rng = random.Random(7)
    held = [9_000 + 2 * jobs + rng.uniform(0, 800) for jobs in range(9_000)]
    jobs, _, _ = first(plain_sample(jobs, vram) for jobs, vram in enumerate(held))
    assert jobs > 0
    assert max(held[: jobs + 1]) < 0.93 * 24_576


def test_the_reason_says_in_words_how_fast_how_long_how_much_and_until_when() -> None:
    _, verdict, _ = first(torch_sample(jobs, live=8_000 + 38 * jobs) for jobs in range(1_000))
    assert verdict.reason.startswith("live tensors grew 38 MiB per job over ")
    assert " of 24,576 MiB (GPU 0), full in " in verdict.reason


def test_operators_see_the_trend_long_before_it_matters() -> None:
    watch = MemoryWatch()
    for jobs in range(60):
        assert watch.add(torch_sample(jobs, live=8_000 + 38 * jobs), GPU).action == "none"
    trend = watch.trend
    assert trend is not None
    assert (trend.kind, trend.words) == ("leak", "+38 MiB per job")


# --- what trims are for


def test_a_growing_cache_is_trimmed_and_never_costs_the_process() -> None:
    watch, cache, trims = MemoryWatch(), 800.0, 0
    for jobs in range(5_000):
        cache += 40
        verdict = watch.add(torch_sample(jobs, cache=cache), GPU)
        assert verdict.action != "recycle", verdict
        assert 9_300 + cache < 24_576
        if verdict.action == "trim":
            assert verdict.kind == "fragmentation"
            trims, cache = trims + 1, 100.0
            watch.trimmed(torch_sample(jobs, cache=cache))
    assert 5 < trims < 30


def test_a_cache_that_no_trim_brings_back_is_recycled() -> None:
    samples = (torch_sample(jobs, cache=800 + 40 * jobs) for jobs in range(1_000))
    jobs, verdict, trims = first(samples)
    assert 0 < 9_300 + 40 * jobs < 24_576
    assert verdict.kind == "fragmentation"
    assert len(trims) == 1


def test_a_trim_that_is_never_done_delays_a_recycle_by_a_few_jobs() -> None:
    watch = MemoryWatch()
    for jobs in range(1_000):
        verdict = watch.add(torch_sample(jobs, live=8_000 + 38 * jobs), GPU)
        if verdict.action == "recycle":
            break
    assert 9_300 + 38 * jobs < 0.9 * 24_576


def test_what_a_trim_brought_is_seen_when_the_sample_comes() -> None:
    """Without torch, the answer to a trim has no figure of the device: that comes later."""
    watch, held, trims = MemoryWatch(), 9_000.0, 0
    for jobs in range(3_000):
        held += 30
        verdict = watch.add(plain_sample(jobs, held), GPU)
        assert verdict.action != "recycle", verdict
        if verdict.action == "trim":
            trims, held = trims + 1, 9_000.0
            watch.trimmed(IdleSample(jobs=jobs))
    assert trims > 1


# --- limits


def test_over_a_hard_limit_a_cache_is_given_back_before_a_process_is_given_up() -> None:
    limits = MemoryLimits(vram=Limit(10_000 * MIB, "max_vram_mib"))
    watch = MemoryWatch()
    assert watch.add(torch_sample(0, cache=100), limits).action == "none"
    verdict = watch.add(torch_sample(1, cache=2_000), limits)
    assert (verdict.action, verdict.kind) == ("trim", "limit")
    assert verdict.reason == "holds 10,500 of 10,000 MiB (max_vram_mib) when idle"
    watch.trimmed(torch_sample(1, cache=100))
    assert watch.add(torch_sample(2, cache=100), limits).action == "none"
    # Live tensors no trim gives back.
    verdict = watch.add(torch_sample(3, live=10_000), limits)
    assert (verdict.action, verdict.kind, verdict.urgent) == ("recycle", "limit", True)


def test_over_the_hosts_limit_a_trim_is_tried_once() -> None:
    limits = MemoryLimits(rss=Limit(4_000 * MIB, "max_rss_mib"))
    watch = MemoryWatch()
    watch.add(torch_sample(0), limits)
    assert watch.add(torch_sample(1, rss=4_100), limits).action == "trim"
    watch.trimmed(torch_sample(1, rss=4_090))
    verdict = watch.add(torch_sample(2, rss=4_100), limits)
    assert (verdict.action, verdict.kind, verdict.urgent) == ("recycle", "host_limit", True)


@pytest.mark.parametrize(
    ("samples", "limits"),
    [
        pytest.param([torch_sample(jobs, cache=16_000) for jobs in range(100)], GPU, id="a full GPU"),
        pytest.param(
            [torch_sample(jobs) for jobs in range(1_000)],
            MemoryLimits(vram=Limit(4_000 * MIB, "max_vram_mib")),
            id="a limit below a fresh process",
        ),
        pytest.param(
            [torch_sample(jobs, live=8_000 + 38 * jobs) for jobs in range(400)],
            MemoryLimits(vram=Limit(24_576 * MIB, hard=False), horizon_jobs=0),
            id="growth without a horizon",
        ),
        *(
            pytest.param(
                [plain_sample(jobs, 9_000 + size * (1 - (1 - 1 / pace) ** jobs)) for jobs in range(1_000)],
                GPU,
                id=f"a warm-up of {size} in {pace}",
            )
            for pace in (2, 5, 20, 100)
            for size in (500, 4_000, 11_500)
        ),
        pytest.param(
            [plain_sample(jobs, 9_000 + 3_000 * (jobs > 50) + 9_000 * (jobs > 300)) for jobs in range(1_000)],
            GPU,
            id="steps that stay",
        ),
    ],
)
def test_a_process_that_does_not_leak_is_kept(samples: list[IdleSample], limits: MemoryLimits) -> None:
    assert first(samples, limits)[0] == -1


@pytest.mark.parametrize("period", [20, 150, 800])
def test_a_cache_that_fills_and_empties_is_kept(period: int) -> None:
    samples = (plain_sample(jobs, 9_000 + 10_000 * (jobs % period) / period) for jobs in range(5_000))
    jobs, _, trims = first(samples)
    assert jobs == -1
    assert len(trims) < 5_000 / period


def test_ten_thousand_jobs_of_noise_cost_neither_a_process_nor_a_trim() -> None:
    rng = random.Random(3)
    samples = (plain_sample(jobs, 15_000 + 6_000 * min(1, rng.lognormvariate(-2, 1))) for jobs in range(10_000))
    jobs, _, trims = first(samples)
    assert (jobs, trims) == (-1, [])


# --- whatever comes

sizes = st.one_of(st.none(), st.integers(0, 1 << 45))
any_sample = st.builds(
    IdleSample,
    jobs=st.integers(0, 1_000),
    rss=sizes,
    vram=sizes,
    torch_allocated=sizes,
    torch_reserved=sizes,
)
any_limit = st.none() | st.builds(
    Limit, bytes=st.integers(0, 1 << 45), words=st.sampled_from(["", "max_vram_mib"]), hard=st.booleans()
)
any_limits = st.builds(
    MemoryLimits,
    vram=any_limit,
    rss=any_limit,
    leak_min=st.integers(0, 1 << 32),
    horizon_jobs=st.integers(0, 1_000),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(any_sample, st.booleans(), any_limits), max_size=40), st.booleans())
def test_nothing_that_a_sampler_says_makes_it_fail(
    said: list[tuple[IdleSample, bool, MemoryLimits]], in_order: bool
) -> None:
    watch = MemoryWatch()
    for sample, trim, limits in sorted(said, key=lambda each: each[0].jobs) if in_order else said:
        verdict = watch.add(sample, limits)
        assert bool(verdict.reason) or verdict.action == "none"
        assert "nan" not in verdict.reason and "inf" not in verdict.reason
        if trim:
            watch.trimmed(sample)
        if (trend := watch.trend) is not None:
            assert trend.per_job > 0
            assert trend.words.startswith("+")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 24_000), min_size=1, max_size=100),
    st.integers(1, 1_000),
    st.sampled_from(["constant", "falling"]),
)
def test_what_does_not_grow_is_never_recycled(values: list[int], room: int, how: str) -> None:
    held = [values[0]] * len(values) if how == "constant" else sorted(values, reverse=True)
    limits = MemoryLimits(vram=Limit((held[0] + room) * MIB), rss=Limit((held[0] + room) * MIB), leak_min=1)
    samples = (
        IdleSample(jobs=jobs, rss=mib * MIB, vram=mib * MIB, torch_allocated=mib * MIB // 2, torch_reserved=mib * MIB)
        for jobs, mib in enumerate(held)
    )
    assert first(samples, limits) == (-1, MemoryVerdict(), [])


rises = st.lists(st.integers(-400, 600), min_size=5, max_size=120)


def held_after(changes: list[int]) -> list[int]:
    held = [8_000]
    for change in changes:
        held.append(max(1, held[-1] + change))
    return held


# What shrinks while a trim is awaited may get below the lower limit again, and be kept there alone.
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 600), min_size=5, max_size=120),
    st.integers(9_000, 20_000),
    st.integers(1, 8_000),
    st.booleans(),
)
def test_a_higher_limit_never_costs_a_process_sooner(changes: list[int], limit: int, more: int, hard: bool) -> None:
    samples = [plain_sample(jobs, mib) for jobs, mib in enumerate(held_after(changes))]

    def recycled(mib: int) -> int:
        """With trims that nobody does: what is asked for must not change what is held."""
        watch = MemoryWatch()
        limits = MemoryLimits(vram=Limit(mib * MIB, hard=hard))
        for sample in samples:
            if watch.add(sample, limits).action == "recycle":
                return sample.jobs
        return len(samples)

    assert recycled(limit) <= recycled(limit + more) + 8  # the patience with a trim that is not done


@settings(max_examples=100, deadline=None)
@given(rises, st.integers(9_000, 20_000), st.sampled_from([2, 16, 1_024]))
def test_only_proportions_count(changes: list[int], limit: int, scale: int) -> None:
    held = held_after(changes)

    def verdicts(scale: int) -> list[tuple[str, str]]:
        watch = MemoryWatch()
        limits = MemoryLimits(vram=Limit(limit * MIB * scale, hard=False), leak_min=256 * MIB * scale)
        found: list[tuple[str, str]] = []
        for jobs, mib in enumerate(held):
            verdict = watch.add(plain_sample(jobs, mib * scale), limits)
            found.append((verdict.action, verdict.kind))
        return found

    assert verdicts(1) == verdicts(scale)


# --- the benchmark's processes

BENCH = Path(__file__).parents[2] / "bench"
MODULES = ("leaks", "memory_worlds", "report")


@pytest.fixture(scope="module")
def leaks() -> Iterator[ModuleType]:
    """bench/leaks.py, which is a program and not a package."""
    sys.path.insert(0, str(BENCH))
    try:
        import leaks  # type: ignore[import-not-found]

        yield leaks
    finally:
        sys.path.remove(str(BENCH))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("seed", range(20))
def test_a_process_that_leaks_is_replaced_before_90_percent_and_not_before_it_leaks(
    leaks: ModuleType, seed: int
) -> None:
    outcome = leaks.in_world(("leaks", seed, "policy"), 1_000)
    assert [life.recycled for life in outcome.lives] == [True], outcome
    assert outcome.last.jobs > outcome.onset
    assert outcome.last.share <= leaks.LEVEL


@pytest.mark.parametrize("seed", range(8))
def test_a_process_with_little_room_is_replaced_before_it_runs_out(leaks: ModuleType, seed: int) -> None:
    outcome = leaks.in_world(("tight leaks", seed, "policy"), 1_000)
    assert outcome.last.recycled, outcome
    assert not outcome.last.ran_out


@pytest.mark.parametrize("seed", range(8))
def test_a_cache_in_fragments_is_trimmed_and_never_replaced(leaks: ModuleType, seed: int) -> None:
    outcome = leaks.in_world(("fragments", seed, "policy"), 500)
    assert [life.recycled for life in outcome.lives] == [False], outcome
    assert outcome.last.share <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_process_is_let_be(leaks: ModuleType, seed: int) -> None:
    outcome = leaks.in_world(("healthy", seed, "policy"), 500)
    assert [life.recycled for life in outcome.lives] == [False], outcome


def test_what_was_recorded_from_real_processes_is_judged_rightly(leaks: ModuleType) -> None:
    recordings = leaks.recordings()
    assert recordings
    for trace in recordings.values():
        outcome = leaks.in_recording(trace, "policy")
        assert outcome.last.recycled == bool(trace["leaks"]), outcome
        assert outcome.last.share <= leaks.LEVEL or not trace["leaks"]
