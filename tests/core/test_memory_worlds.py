"""A few dozen of the benchmark's processes: what leaks is replaced in time, what does not is let be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

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
