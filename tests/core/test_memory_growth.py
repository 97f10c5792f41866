"""Growth of a figure is found, as steep as it is; steps, noise and figures that settle are no growth."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from glmtts.daemon.core.workers.trend import POINTS, Series

MIB = 1 << 20


def series(values: Sequence[float]) -> Series:
    made = Series()
    for job, value in enumerate(values):
        made.add(job, round(value * MIB))
    return made


@pytest.mark.parametrize("mib", [1, 5, 38, 200])
def test_a_steady_leak_is_measured_within_a_fifth_under_noise_of_five_jobs_growth(mib: int) -> None:
    rng = random.Random(mib)
    found = series([9_000 + mib * job + rng.uniform(0, 5 * mib) for job in range(600)]).slope(256 * MIB, 3.0)
    assert found is not None
    assert found.per_job / MIB == pytest.approx(mib, rel=0.2)


def test_a_leak_of_a_tenth_of_its_noise_shows_on_a_coarser_scale() -> None:
    rng = random.Random(1)
    found = series([9_000 + job + rng.uniform(0, 1_000) for job in range(4_000)]).slope(256 * MIB, 3.0)
    assert found is not None
    assert found.jobs > 10 * POINTS
    assert found.per_job / MIB == pytest.approx(1, rel=0.3)


def test_a_leak_that_begins_late_is_measured_from_its_beginning() -> None:
    found = series([9_000.0] * 500 + [9_000 + 50 * job for job in range(1, 11)]).slope(256 * MIB, 1.6)
    assert found is not None
    assert found.jobs in range(8, 11)
    assert found.per_job / MIB == pytest.approx(50, rel=0.01)


def test_a_figure_that_fell_back_is_no_slope() -> None:
    values = [9_000 + 40 * job for job in range(100)]
    assert series(values).slope(256 * MIB, 3.0) is not None
    assert series([*values, 9_000]).slope(256 * MIB, 3.0) is None


def test_one_outlier_hides_nothing() -> None:
    values = [9_000.0 + 40 * job for job in range(20)]
    values[10] = 20_000
    found = series(values).slope(256 * MIB, 3.0)
    assert found is not None
    assert found.per_job / MIB == pytest.approx(40, rel=0.05)


def test_growth_within_what_was_there_before_is_not_above_it() -> None:
    saw = [9_000 + 50 * (job % 40) for job in range(400)]
    found = series(saw[:395]).slope(256 * MIB, 3.0)
    assert found is not None
    assert found.above <= 0


def test_of_samples_after_the_same_job_the_lowest_counts_and_late_ones_are_ignored() -> None:
    one = Series()
    for job in range(10):
        one.add(job, 1_000 + job)
        one.add(job, 500 + job)
        one.add(job, 2_000)
        one.add(job - 1, 1)
    assert one.last == 509
    assert one.highest_lately() == 509


def test_many_samples_take_little_memory() -> None:
    tracemalloc.start()
    try:
        one = Series()
        for job in range(0, 1_000_000, 50):
            one.add(job, job)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert one.last == 999_950
    assert kept < 50_000  # bytes; measured: 12,000 after 20,000 samples
