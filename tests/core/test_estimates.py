"""Waiting times are told from what was measured, and not at all before."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtts.daemon.core.jobs.estimates import _MAX_KINDS, Estimator
from glmtts.protocol.requests import Prompt

from ..support.core_world import MakeJob


def learned(make_job: MakeJob, *measured: tuple[int, float], **keys: object) -> Estimator:
    estimator = Estimator()
    for length, seconds in measured:
        estimator.learn(make_job(text="x" * length, **keys), seconds)
    return estimator


def expected(estimator: Estimator, make_job: MakeJob, length: int, **keys: object) -> float:
    return estimator.expect_s(make_job(text="x" * length, **keys))


def test_before_anything_was_measured_longer_texts_are_thought_to_take_longer_and_nothing_is_promised(
    make_job: MakeJob,
) -> None:
    estimator = Estimator()
    assert not estimator.trained
    assert expected(estimator, make_job, 10) < expected(estimator, make_job, 100)
    assert estimator.least_s(make_job(text="x" * 5_000)) == 0.0
    assert not estimator.brief


def test_from_one_length_alone_time_is_taken_to_be_proportional_to_it(make_job: MakeJob) -> None:
    estimator = learned(make_job, (100, 10.0), (100, 10.0))
    assert expected(estimator, make_job, 100) == pytest.approx(10.0)
    assert expected(estimator, make_job, 50) == pytest.approx(5.0)


def test_a_start_that_every_job_has_is_told_from_the_time_for_each_character(make_job: MakeJob) -> None:
    rng = random.Random(1)
    lengths = [rng.randint(5, 500) for _ in range(60)]
    estimator = learned(make_job, *((length, (0.4 + 0.02 * length) * rng.uniform(0.95, 1.05)) for length in lengths))
    for length in (5, 50, 500, 2_000):
        assert expected(estimator, make_job, length) == pytest.approx(0.4 + 0.02 * length, rel=0.1)


def test_it_follows_a_machine_that_gets_slower(make_job: MakeJob) -> None:
    estimator = learned(make_job, *[(100, 1.0)] * 50, *[(100, 10.0)] * 20)
    assert 6.0 < expected(estimator, make_job, 100) <= 10.0
    for _ in range(40):
        estimator.learn(make_job(text="x" * 100), 10.0)
    assert 9.5 < expected(estimator, make_job, 100) <= 10.0


def test_it_follows_a_machine_that_gets_faster(make_job: MakeJob) -> None:
    estimator = learned(make_job, *[(100, 10.0)] * 50, *[(100, 1.0)] * 60)
    assert 1.0 <= expected(estimator, make_job, 100) < 1.5


def test_kinds_of_jobs_are_told_apart_and_a_new_kind_goes_by_what_is_like_it(make_job: MakeJob) -> None:
    estimator = learned(make_job, *[(100, 1.0)] * 5)
    prompt = {"prompt": Prompt(text="x"), "recording": b"x"}
    assert expected(estimator, make_job, 100, **prompt) == pytest.approx(1.0)
    for _ in range(5):
        estimator.learn(make_job(text="x" * 100, **prompt), 3.0)
    assert expected(estimator, make_job, 100, **prompt) == pytest.approx(3.0)
    assert expected(estimator, make_job, 100) == pytest.approx(1.0)
    slow = {"options": {"steps": 50}}
    for _ in range(5):
        estimator.learn(make_job(text="x" * 100, **slow), 7.0)
    assert expected(estimator, make_job, 100, **slow) == pytest.approx(7.0)
    assert expected(estimator, make_job, 100) == pytest.approx(1.0)


def test_one_odd_job_does_not_stand_for_its_kind(make_job: MakeJob) -> None:
    estimator = learned(make_job, *[(100, 1.0)] * 20)
    estimator.learn(make_job(text="x" * 100, options={"seconds": 60.0}), 60.0)
    assert expected(estimator, make_job, 100, options={"seconds": 60.0}) < 10.0


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1.0])
def test_a_damaged_worker_spoils_no_estimate(make_job: MakeJob, nonsense: float) -> None:
    estimator = learned(make_job, (100, 10.0), (100, nonsense))
    assert expected(estimator, make_job, 100) == pytest.approx(10.0)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(0.0, 1e5)), max_size=40), st.integers(1, 5_000))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_measured_an_estimate_is_a_time(
    make_job: MakeJob, measured: list[tuple[int, float]], length: int
) -> None:
    estimator = learned(make_job, *measured)
    job = make_job(text="x" * length)
    assert 0.0 < estimator.expect_s(job) < math.inf
    assert 0.0 <= estimator.least_s(job) <= estimator.expect_s(job) + 1e-9


def test_what_a_job_takes_at_least_is_known_after_a_few_of_its_very_kind(make_job: MakeJob) -> None:
    estimator = learned(make_job, *[(100, 10.0)] * 7)
    assert estimator.least_s(make_job(text="x" * 100)) == 0.0
    estimator.learn(make_job(text="x" * 100), 10.0)
    assert estimator.least_s(make_job(text="x" * 100)) == pytest.approx(5.0)
    assert estimator.least_s(make_job(text="x" * 100, options={"steps": 1})) == 0.0


def test_jobs_that_take_no_longer_than_handing_them_over_are_brief(make_job: MakeJob) -> None:
    estimator = learned(make_job, (10, 0.001))
    assert estimator.brief
    for _ in range(3):
        estimator.learn(make_job(text="x" * 10), 1.0)
    assert not estimator.brief


def test_kinds_that_are_not_asked_for_any_more_are_forgotten(make_job: MakeJob) -> None:
    estimator = Estimator()
    for number in range(2 * _MAX_KINDS):
        estimator.learn(make_job(options={"number": number}), 1.0)
    assert len(estimator._kinds) <= _MAX_KINDS


def test_an_estimate_was_right_if_it_was_within_30_percent_of_what_came() -> None:
    estimator = Estimator()
    assert (estimator.compared, estimator.within) == (0, None)
    for estimated_s, waited_s in ((0.0, 0.01), (10.0, 10.0), (7.1, 10.0), (13.1, 10.0), (0.0, 5.0)):
        estimator.judge(estimated_s, waited_s)
    assert (estimator.compared, estimator.within) == (4, 0.5)
