"""An operator is told of trouble by the figures that docs/alerts.md names, and not at each turn of a figure."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.monitoring.alert_rules import Condition, Figures, Finding, GpuFigures, Totals
from glmtts.daemon.core.monitoring.alert_table import ALERTS
from glmtts.daemon.core.settings import AlertSettings
from glmtts.daemon.core.workers.memory_watch import Trend

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
        ("gpu_memory_high", gpu(901), gpu(900), gpu(850)),
        (
            "responses_slow",
            lately(responses=3, response_s=183.0),
            lately(responses=3, response_s=180.0),
            lately(responses=3, response_s=150.0),
        ),
        ("errors_many", lately(ended=40, failed=5), lately(ended=40, failed=4), lately(ended=40, failed=3)),
        (
            "slower_than_real_time",
            lately(spoken=3, synthesis_s=10.1, audio_s=10.0),
            lately(spoken=3, synthesis_s=10.0, audio_s=10.0),
            lately(spoken=3, synthesis_s=9.0, audio_s=10.0),
        ),
        ("crash_loop", lately(faults=3), lately(faults=2), lately(faults=1)),
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


def test_a_queue_is_long_from_the_number_that_clients_are_warned_at() -> None:
    assert verdicts("queue_long", Figures(waiting=4, warn_waiting=4)) == {"": True}
    assert verdicts("queue_long", Figures(waiting=3, warn_waiting=4)) == {"": False}
    assert verdicts("queue_long", Figures(waiting=9, warn_waiting=0)) == {"": False}


def test_a_daemon_whose_workers_were_unloaded_misses_none() -> None:
    assert verdicts("no_worker_ready", Figures(serving=0, wanted=1)) == {"": True}
    assert verdicts("no_worker_ready", Figures(serving=0, wanted=0)) == {"": False}


def test_a_growing_worker_and_a_faulty_gpu_are_named() -> None:
    (finding,) = judge("memory_trend", Figures(trends={"w1": Trend("leak", 38 << 20, 60)}))
    assert finding.of == "w1" and finding.bad and "38 MiB per job" in finding.message
    (finding,) = judge("gpu_xid", gpu(0, xid=79))
    assert finding.bad and "Xid 79" in finding.message


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
