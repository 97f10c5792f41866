"""The wall clock is shown and never reckoned with; a daemon that stood still blames no worker for it."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from ..support.core_world import BOB, MakeWorld, World
from ..support.stage import MakeStage

DAY_S = 86_400.0
YEARS_S = 20 * 365 * DAY_S


def stand_still(world: World, seconds: float) -> None:
    """The daemon does not run for so long: the date goes on, its own clock does not."""
    world.ahead_s += seconds
    world.step(inputs.StoodStill(seconds))


def alerts(world: World) -> list[str]:
    return [alert["name"] for alert in world.last(world.operate(control.Status)).values["alerts"]]


# --- the wall clock


@pytest.mark.parametrize("by_s", [DAY_S * 3, -DAY_S * 3, YEARS_S, -YEARS_S])
def test_a_clock_that_is_set_is_reported_for_an_hour_and_moves_nothing(make_world: MakeWorld, by_s: float) -> None:
    world = make_world(workers={"hang_timeout_s": 60.0})
    world.ready()
    begun = world.request(text="begun")
    waiting = world.request(text="waits", priority="batch", deadline_s=600.0, key="k")
    before = world.machine.state.context.wall
    world.ahead_s += by_s
    world.pass_time(50.0)
    assert not {"error"} & {*world.names(begun), *world.names(waiting)}
    assert alerts(world) == ["clock"]
    (line,) = [log for log in world.effects(effects.Log) if log.fields.get("alert") == "clock"]
    assert ("set forward by" if by_s > 0 else "set back by") in line.message
    world.say(wire.Beats(jobs=[wire.JobProgress(world.job(begun), 1)]))
    world.finish(world.job(begun))
    world.finish(world.job(waiting))
    (end,) = world.effects(effects.JournalEnd)
    assert end.keep_s == DAY_S, "a span, whatever the date"
    last = world.last(world.request(requests.GetJob(id="", v=1, job=world.job(waiting))))
    assert last.created == pytest.approx(before, abs=0.01)
    new = world.request(text="new")
    assert world.last(world.request(requests.GetJob(id="", v=1, job=world.job(new)))).created == pytest.approx(
        before + 50.0 + by_s, abs=0.01
    )
    world.finish(world.job(new))
    world.pass_time(3_601.0)
    assert alerts(world) == []


def test_the_small_steps_of_a_time_service_are_no_alert(world: World) -> None:
    for _ in range(100):
        world.ahead_s += 30.0
        world.step(inputs.TimePassed())
    assert alerts(world) == []


# --- standstills


def test_a_standstill_is_no_silence_of_a_worker_and_no_set_clock(make_world: MakeWorld) -> None:
    world = make_world(workers={"hang_timeout_s": 60.0})
    world.ready()
    id = world.request(text="healthy", stream=True)
    world.audio(world.job(id), 0)
    world.pass_time(59.0)
    stand_still(world, 63.0)
    world.pass_time(0.5)
    assert world.states() == ["busy"] and alerts(world) == []
    assert any("stood still" in log.message for log in world.effects(effects.Log))
    world.pass_time(1.0)
    assert world.last(id).code == "hung", "its own silence of a minute still counts"


def test_a_worker_that_is_heard_before_a_standstill_is_noticed_sets_no_clock(world: World) -> None:
    world.ready()
    id = world.request(text="spoken meanwhile", stream=True)
    world.ahead_s += 3_600.0
    world.audio(world.job(id), 0)
    world.step(inputs.StoodStill(3_600.0))
    world.step(inputs.TimePassed())
    assert alerts(world) == []
    world.ahead_s += 3_600.0
    world.audio(world.job(id), 1)
    world.step(inputs.TimePassed())
    assert alerts(world) == ["clock"], "a clock that was set is noticed by the next input"


def test_a_load_a_stop_and_a_backoff_get_the_time_back(make_world: MakeWorld) -> None:
    world = make_world(2, workers={"min": 2, "start_timeout_s": 10.0, "stop_timeout_s": 5.0})
    world.ready("w0")
    world.pass_time(9.0)
    world.operate(control.Recycle, worker="w0")
    stand_still(world, 3_600.0)
    world.pass_time(0.9)
    assert world.worker("w1").state.value == "starting"
    assert not any(signal.signal == "kill" for signal in world.effects(effects.Signal))
    world.pass_time(0.2)
    reason = world.worker("w1").exit_reason
    assert reason is not None and reason.cause == "start_timeout"


def test_a_deadline_passes_while_the_daemon_stands_still(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready()
    begun = world.request(text="speaks", deadline_s=60.0)
    waits, patient = world.request(text="waits", deadline_s=62.0), world.request(text="patient", deadline_s=120.0)
    world.pass_time(1.0)
    stand_still(world, 63.0)
    assert {world.last(id).code for id in (begun, waits)} == {"deadline_exceeded"}
    world.pass_time(55.0)
    assert "error" not in world.names(patient)
    world.pass_time(2.0)
    assert world.last(patient).code == "deadline_exceeded"


def test_the_order_of_waiting_jobs_is_kept_over_a_standstill(make_stage: MakeStage) -> None:
    stage = make_stage()
    world = stage.world
    ids = [world.request(text=text) for text in ("aaaa", "bbbb", "cccc", "dddd")]
    urgent = world.request(text="eeee", deadline_s=1_000.0)
    other = world.request(text="ffff", client=BOB)
    stand_still(world, 400.0)
    late = world.request(text="gggg")
    world.request(requests.Cancel(id="", v=1, job=world.job(ids[2])))
    stage.run(10.0)
    assert {world.last(id).__class__.__name__ for id in (*ids[:2], ids[3], urgent, other, late)} == {"Done"}
    order = [text for _, what, text in stage.log if what == "begins"]
    assert order.index("gggg") > max(order.index(text) for text in ("bbbb", "dddd"))


def test_a_rate_is_a_rate_of_real_minutes(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "2/minute"})
    world.ready()
    for _ in range(2):
        world.finish(world.job(world.request()))
    assert world.last(world.request()).code == "rate_limited"
    stand_still(world, 60.0)
    world.finish(world.job(world.request()))


def test_nothing_is_learnt_of_a_job_that_the_daemon_stood_still_in(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready()
    for _ in range(5):
        world.finish(world.job(world.request(text="x" * 20)), synthesis_s=1.0)
    id = world.request(text="x" * 20)
    stand_still(world, 3_600.0)
    world.finish(world.job(id), synthesis_s=3_601.0)
    waiting = [world.request(text="x" * 20) for _ in range(2)][1]
    (accepted,) = [event for event in world.told(waiting) if type(event).__name__ == "Accepted"]
    assert accepted.estimated_wait_s < 10.0
