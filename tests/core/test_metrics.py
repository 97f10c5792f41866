"""Metrics say what status says, are there before anything has happened, and name nobody."""

from __future__ import annotations

from typing import Any

from glmtts.daemon.core.counters import RECYCLE_REASONS, Counters
from glmtts.daemon.core.metric_types import Family, Histogram
from glmtts.protocol import control
from glmtts.protocol.errors import ErrorCode

from ..support.core_world import MakeWorld, World


def measured(world: World) -> dict[str, Family]:
    return {family.name: family for family in world.machine.measure()}


def values(world: World, name: str) -> dict[tuple[str, ...], Any]:
    return dict(measured(world)[name].samples)


def test_every_outcome_and_cause_is_there_from_the_start(world: World) -> None:
    outcomes = {of for (of,) in values(world, "glmtts_jobs_ended_total")}
    assert outcomes == {"done", *(code.value for code in ErrorCode)}
    assert values(world, "glmtts_worker_deaths_total")[("host_oom",)] == 0
    assert values(world, "glmtts_job_wait_seconds")[("batch",)].count == 0


def test_metrics_agree_with_status_in_the_middle_of_work(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.ready("w0")
    world.ready("w1")
    for priority in ("interactive", "batch", "interactive", "batch", "batch"):
        world.request(priority=priority)
    world.request(voice="nobody")
    status = world.last(world.operate(control.Status)).values
    queue = world.last(world.operate(control.Queue)).values
    by_class = {of: count for (of,), count in values(world, "glmtts_jobs_waiting").items()}
    assert by_class == status["queue"]["by_class"] and sum(by_class.values()) == status["queue"]["waiting"]
    assert sum(values(world, "glmtts_jobs_running").values()) == status["queue"]["running"]
    assert {of: n for (of,), n in values(world, "glmtts_jobs_running").items()} == {
        name: of["running"] for name, of in queue["classes"].items()
    }
    assert (
        values(world, "glmtts_jobs_refused_total")[("voice_not_found",)]
        == 1
        == status["counts"]["refused"]["voice_not_found"]
    )
    states = {state: n for (state,), n in values(world, "glmtts_workers").items() if n}
    assert states == {state: n for state, n in status["workers"].items() if n and state != "total"}


def test_a_retry_is_counted_and_is_no_second_wait(world: World) -> None:
    id = world.request()
    world.die()
    world.come_back()
    world.finish(world.job(id))
    assert values(world, "glmtts_job_retries_total")[()] == 1
    assert values(world, "glmtts_job_wait_seconds")[("interactive",)].count == 1
    assert values(world, "glmtts_worker_deaths_total")[("crashed",)] == 1
    assert values(world, "glmtts_worker_restarts_total")[()] == 1


def test_what_was_handed_over_does_not_change_any_more(world: World) -> None:
    world.finish(world.job(world.request()))
    before = values(world, "glmtts_job_audio_seconds")[()]
    world.finish(world.job(world.request()))
    assert (before.count, values(world, "glmtts_job_audio_seconds")[()].count) == (1, 2)


def test_alerts_are_seen_with_what_they_are_about(world: World) -> None:
    world.sample(nvml="failing", detail="Unknown Error")
    raised = {of for of, value in values(world, "glmtts_alert_active").items() if value}
    assert raised == {("nvml", "")}
    assert values(world, "glmtts_alert_active")[("journal", "")] == 0


def test_no_label_grows_with_users_or_jobs(world: World) -> None:
    def series() -> int:
        return sum(len(family.samples) for family in world.machine.measure())

    before = series()
    for number in range(50):
        id = world.request(text=f"text {number}")
        world.finish(world.job(id))
    assert series() == before


def test_every_reason_for_a_recycle_is_one_that_is_counted_from_the_start(world: World) -> None:
    world.operate(control.Recycle, worker="w0")
    counted = values(world, "glmtts_worker_recycles_total")
    assert counted[("operator",)] == 1 and {of for (of,) in counted} == set(RECYCLE_REASONS)
    assert set(Counters().recycles) == set(RECYCLE_REASONS)


def test_names_are_as_prometheus_has_them(world: World) -> None:
    world.sample(world.gpu(used_mib=10))
    for family in world.machine.measure():
        assert (family.name.startswith("glmtts_") and family.help.endswith(".")) or family.help.endswith(")"), family
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert not any(unit in family.name for unit in ("_ms", "_mib", "_percent")), family.name
        for labels, value in family.samples:
            assert len(labels) == len(family.labels) and all(isinstance(label, str) for label in labels)
            assert isinstance(value, Histogram) == (family.kind == "histogram")
