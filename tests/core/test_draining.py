"""The daemon drains, resumes and stops in any order, and a client that goes or lags harms nobody else."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World


def stop(world: World) -> None:
    world.step(inputs.StopAsked("SIGTERM"))


def exited(world: World) -> bool:
    return len(world.effects(effects.Exit)) == 1


# --- clients that go or lag


def test_a_stream_whose_client_is_gone_is_not_spoken_for_nobody(world: World) -> None:
    stream, whole = world.request(stream=True), world.request(connection=2)
    world.step(inputs.ConnectionClosed(1))
    assert world.messages(wire.CancelJob)
    world.step(inputs.ConnectionClosed(2))
    world.say(wire.Failed(job=world.job(stream), code="cancelled", message="cancelled"))
    world.finish(world.job(whole))
    assert world.machine.scheduler.completion.outcomes == {"cancelled": 1, "done": 1}


def test_a_stream_that_another_client_hears_goes_on_without_the_one_who_left(world: World) -> None:
    id = world.request(stream=True)
    wait = world.request(requests.Wait(id="", v=1, job=world.job(id)), connection=2)
    world.step(inputs.ConnectionClosed(1))
    world.audio(world.job(id), 0)
    assert world.names(wait) == ["audio"]


def test_a_client_that_does_not_read_ends_its_own_stream(world: World) -> None:
    id = world.request(stream=True)
    world.audio(world.job(id), 0)
    for _ in range(2):
        world.step(inputs.ConnectionOverrun(1, world.job(id)))
    assert world.names(id) == ["accepted", "started", "audio", "error"]
    assert world.last(id).code == "slow_consumer"


def test_a_client_that_does_not_read_ends_no_other_client_s_stream(world: World) -> None:
    id = world.request(stream=True)
    wait = world.request(requests.Wait(id="", v=1, job=world.job(id)), connection=2)
    for _ in range(2):
        world.step(inputs.ConnectionOverrun(1, world.job(id)))
    world.audio(world.job(id), 0)
    world.finish(world.job(id), None, chunks=1)
    assert world.last(id).code == "slow_consumer"
    assert world.names(wait) == ["audio", "done"]
    assert not world.machine.describe()["connections"]


# --- drain


def test_a_drain_finishes_what_was_accepted_and_takes_no_more(world: World) -> None:
    first, second = world.request(), world.request()
    drain = world.operate(control.Drain)
    assert world.last(world.request()).code == "shutting_down"
    world.finish(world.job(first))
    assert not world.told(drain)
    world.finish(world.job(second))
    assert world.last(drain).values == {"drained": True, "left": 0}
    assert world.machine.lifecycle.phase == "drained"


def test_each_operator_waits_for_a_drain_as_long_as_they_said(world: World) -> None:
    id = world.request()
    patient, hasty = world.operate(control.Drain), world.operate(control.Drain, timeout_s=2.0)
    world.pass_time(2.0)
    assert world.last(hasty).values == {"drained": False, "left": 1}
    assert not world.told(patient)
    world.finish(world.job(id))
    assert world.last(patient).values["drained"]
    assert len(world.told(hasty)) == 1


def test_a_drain_of_a_paused_queue_starts_it(world: World) -> None:
    world.operate(control.Pause)
    id = world.request()
    world.operate(control.Drain)
    assert world.names(id) == ["accepted", "started"]
    assert world.last(world.operate(control.Pause)).code == "shutting_down"


def test_a_drain_that_is_taken_back_is_answered_and_leaves_nothing_behind(world: World) -> None:
    world.request()
    drain = world.operate(control.Drain, timeout_s=5.0)
    world.operate(control.Resume)
    assert world.last(drain).values == {"drained": False, "left": 1, "resumed": True}
    assert world.names(world.request()) == ["accepted"]
    world.pass_time(10.0)
    assert len(world.told(drain)) == 1
    assert world.machine.lifecycle.phase == "running"


# --- stop


def test_a_stop_finishes_the_jobs_then_the_workers_then_the_daemon(world: World) -> None:
    first, second = world.request(), world.request()
    stop(world)
    assert world.last(world.request()).code == "shutting_down"
    world.finish(world.job(first))
    world.finish(world.job(second))
    assert isinstance(world.last(second), events.Done)
    assert world.states() == ["stopping"]
    assert not exited(world)
    world.die(0)
    assert exited(world)


def test_a_stop_does_not_wait_longer_than_it_may(make_world: MakeWorld) -> None:
    world = make_world(daemon={"drain_timeout_s": 10.0})
    world.ready()
    running, waiting = world.request(), world.request()
    stop(world)
    world.pass_time(10.0)
    assert world.last(running).code == world.last(waiting).code == "shutting_down"
    world.pass_time(5.0)
    assert [s.signal for s in world.effects(effects.Signal)] == ["kill"]
    world.die(-9)
    assert exited(world)


def test_a_second_stop_ends_at_once(world: World) -> None:
    id = world.request()
    stop(world)
    stop(world)
    assert world.last(id).code == "shutting_down"
    assert [s.signal for s in world.effects(effects.Signal)] == ["kill"]
    world.die(-9)
    assert exited(world)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("state", ["starting", "ready", "busy", "failed", "backoff", "draining", "stopping"])
def test_a_stop_ends_a_worker_in_any_state_and_leaves_no_timer(make_world: MakeWorld, state: str, times: int) -> None:
    world = make_world(daemon={"drain_timeout_s": 1.0})
    if state not in ("starting", "backoff"):
        world.ready()
    if state in ("busy", "draining"):
        world.request()
    if state in ("draining", "stopping"):
        world.operate(control.Recycle, worker="w0")
    if state == "failed":
        world.step(inputs.WorkerGarbled(world.incarnation(), "noise"))
    if state == "backoff":
        world.die(3)
        world.die(3)
    assert world.states() == [state]
    world.forget()
    for _ in range(times):
        stop(world)
    world.pass_time(1.0)
    assert world.states() in (["stopping"], ["failed"], ["stopped"])
    if world.states() != ["stopped"]:
        world.die(0)
    assert world.states() == ["stopped"]
    assert exited(world)
    assert {purpose for purpose, _ in world.machine.state.context.timers} <= {"expire"}
    world.pass_time(1_000.0)
    assert not world.effects(effects.Spawn)


def test_a_stopping_daemon_can_not_be_resumed_and_still_drains(world: World) -> None:
    id = world.request()
    stop(world)
    assert world.last(world.operate(control.Resume)).code == "shutting_down"
    drain = world.operate(control.Drain)
    world.finish(world.job(id))
    assert world.last(drain).values["drained"]
    world.die(0)
    assert exited(world)


def test_an_operator_is_told_how_many_jobs_a_stop_waits_for(world: World) -> None:
    world.request()
    assert world.last(world.operate(control.Stop)).values == {"state": "stopping", "left": 1}


def test_time_never_goes_back(world: World) -> None:
    id = world.request(deadline_s=5.0)
    world.now -= 50.0
    world.step(inputs.TimePassed())
    assert world.names(id) == ["accepted", "started"]
    assert world.machine.state.context.now >= 100.0


def test_without_an_audience_nothing_is_published(world: World) -> None:
    world.finish(world.job(world.request()))
    assert not world.effects(effects.Publish)
    world.machine.watched = True
    world.finish(world.job(world.request()))
    topics = [effect.topic for effect in world.effects(effects.Publish)]
    assert topics == ["job.waiting", "job.running", "job.done"]
