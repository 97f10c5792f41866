"""Waiting times are told from what was measured, and not at all before."""

from __future__ import annotations

import math

import pytest

from glmtts.daemon.core.estimate import Estimator


def test_nothing_is_promised_before_anything_was_measured() -> None:
    estimator = Estimator()
    assert estimator.wait_s(100, 1) is None
    assert estimator.retry_after_s(1) == 1.0


def test_the_wait_grows_with_the_text_and_shrinks_with_the_workers() -> None:
    estimator = Estimator()
    estimator.learn(100, 10.0)
    assert estimator.wait_s(50, 1) == 5.0
    assert estimator.wait_s(50, 2) == 2.5
    assert estimator.wait_s(50, 0) is None
    assert estimator.retry_after_s(2) == 5.0


def test_it_follows_a_machine_that_gets_slower() -> None:
    estimator = Estimator()
    estimator.learn(100, 1.0)
    for _ in range(30):
        estimator.learn(100, 10.0)
    wait = estimator.wait_s(100, 1)
    assert wait is not None
    assert 9.5 < wait <= 10.0


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1.0])
def test_a_damaged_worker_spoils_no_estimate(nonsense: float) -> None:
    estimator = Estimator()
    estimator.learn(100, 10.0)
    estimator.learn(100, nonsense)
    assert estimator.wait_s(100, 1) == 10.0
