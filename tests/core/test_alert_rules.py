"""An operator is told of trouble by the figures that docs/alerts.md names, and not at each turn of a figure."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.monitoring.alert_rules import Condition, Figures, Finding, GpuFigures, Totals
from glmtts.daemon.core.monitoring.alert_table import ALERTS
from glmtts.daemon.core.settings import AlertSettings

SETTINGS = AlertSettings()


def judge(name: str, figures: Figures) -> list[Finding]:
    rule = ALERTS[name].rule
    assert rule is not None
    return list(rule(figures, SETTINGS))


def verdicts(name: str, figures: Figures) -> dict[str, bool | None]:
    return {finding.of: finding.bad for finding in judge(name, figures)}


def gpu(used: int | None, total: int | None = 1_000, xid: int = 0) -> Figures:
    return Figures(gpus={0: GpuFigures(used, total, xid)})


def lately(**totals: Any) -> Figures:
    return Figures(lately=Totals(**totals))


@pytest.mark.parametrize(
    ("name", "bad", "between", "good"),
    [
        ("gpu_memory_high", *(gpu(used) for used in (901, 900, 850))),
        ("responses_slow", *(lately(responses=3, response_s=total) for total in (183.0, 180.0, 150.0))),
        ("errors_many", *(lately(ended=40, failed=failed) for failed in (5, 4, 3))),
        ("slower_than_real_time", *(lately(spoken=3, synthesis_s=s, audio_s=10.0) for s in (10.1, 10.0, 9.0))),
        ("crash_loop", *(lately(faults=faults) for faults in (3, 2, 1))),
    ],
)
def test_a_figure_is_bad_over_its_threshold_and_good_only_well_below_it(
    name: str, bad: Figures, between: Figures, good: Figures
) -> None:
    assert [list(verdicts(name, figures).values()) for figures in (bad, between, good)] == [[True], [None], [False]]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("responses_slow", lately(responses=2, response_s=1_000.0)),
        ("errors_many", lately(ended=2, failed=2)),
        ("slower_than_real_time", lately(spoken=2, synthesis_s=100.0, audio_s=1.0)),
        ("slower_than_real_time", lately(spoken=9, synthesis_s=0.0, audio_s=0.0)),
    ],
)
def test_a_few_jobs_say_nothing(name: str, figures: Figures) -> None:
    assert verdicts(name, figures) == {"": False}


def test_a_gpu_whose_memory_nobody_knows_is_not_judged() -> None:
    assert verdicts("gpu_memory_high", gpu(None)) == verdicts("gpu_memory_high", gpu(5, None)) == {}


@pytest.mark.parametrize(
    ("name", "figures", "bad"),
    [
        ("queue_long", Figures(waiting=4, warn_waiting=4), True),
        ("queue_long", Figures(waiting=3, warn_waiting=4), False),
        ("queue_long", Figures(waiting=9, warn_waiting=0), False),
        ("no_worker_ready", Figures(serving=0, wanted=1), True),
        ("no_worker_ready", Figures(serving=0, wanted=0), False),  # all were unloaded
    ],
)
def test_a_queue_is_long_by_its_setting_and_a_worker_is_missed_if_one_is_wanted(
    name: str, figures: Figures, bad: bool
) -> None:
    assert verdicts(name, figures) == {"": bad}


def test_an_alert_comes_when_it_was_bad_for_long_and_goes_when_it_was_good_for_long() -> None:
    condition = Condition()
    bad, between, good = Finding("", True), Finding("", None), Finding("", False)

    def judged(finding: Finding, *times: float) -> list[bool]:
        return [condition.judge(finding, now, 30.0, 60.0) for now in times]

    assert judged(bad, 0, 29) == [False, False]
    assert judged(good, 29.5) == [False], "it was over in between"
    assert judged(bad, 30, 59, 60) == [False, False, True]
    assert judged(good, 61, 120) == [True, True]
    assert judged(between, 120.5) == [True], "nor is it well"
    assert judged(good, 121, 180, 181) == [True, True, False]
