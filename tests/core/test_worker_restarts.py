"""Workers live, die and come back by the rules; none is forgotten in any state, and none restarts without a pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs.job import IllegalTransition
from glmtts.daemon.core.workers.process import describe_exit
from glmtts.daemon.core.workers.worker import TRANSITIONS, WITH_PROCESS, WorkerState
from glmtts.protocol import control, events
from glmtts.protocol import worker as wire

from ..support.core_world import World

Make = Callable[..., Any]


def incarnations(world: World) -> int:
    return len(world.effects(effects.Spawn))


def test_an_illegal_transition_raises_and_changes_nothing(world: World) -> None:
    worker = world.worker()
    with pytest.raises(IllegalTransition, match=r"w0: ready -> backoff"):
        worker.enter(WorkerState.BACKOFF)
    assert worker.state is WorkerState.READY
    assert set(TRANSITIONS) == set(WorkerState)
    # Only a worker without a process may start one.
    for state, following in TRANSITIONS.items():
        assert WorkerState.STARTING not in following or state not in WITH_PROCESS or state is WorkerState.STOPPING


def test_the_first_crash_after_work_is_mended_at_once(world: World) -> None:
    world.finish(world.job(world.request()))
    world.forget()
    world.die()
    assert incarnations(world) == 1
    assert world.states() == ["starting"]


def test_false_starts_are_repeated_ever_later(make_world: Make) -> None:
    world = make_world()
    pauses = []
    for _ in range(12):
        died_at = world.now
        world.die(3)
        while world.states() in (["backoff"], ["waiting"]):
            world.pass_time(0.05)
        pauses.append(world.now - died_at)
    expected = [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    for pause, delay in zip(pauses, expected, strict=True):
        assert 0.75 * delay <= pause <= 1.25 * delay + 0.1


@pytest.mark.parametrize("failure", ["exit", "no process", "hang", "nonsense"])
def test_an_hour_of_false_starts_costs_few_processes(make_world: Make, failure: str) -> None:
    world = make_world(workers={"start_timeout_s": 1.0})
    until = world.now + 3_600
    while world.now < until:
        if world.states() == ["starting"]:
            if failure == "exit":
                world.die(3)
            elif failure == "no process":
                world.step(inputs.SpawnFailed(world.incarnation(), "no room"))
            elif failure == "nonsense":
                world.step(inputs.WorkerGarbled(world.incarnation(), "noise"))
        elif world.states() == ["failed"]:
            world.die(-15)
        due = world.machine.next_due
        world.pass_time(max(0.0, due - world.now))
    assert 80 < incarnations(world) < 3_600 / (0.75 * 30) + 10


def test_a_process_that_dies_idle_right_after_its_start_is_not_restarted_without_pause(make_world: Make) -> None:
    world = make_world()
    for _ in range(6):
        world.ready()
        world.die()
        world.pass_time(0.3)
        if world.states() == ["backoff"]:
            break
    assert world.states() == ["backoff"]


def test_a_long_quiet_life_is_no_false_start(make_world: Make) -> None:
    world = make_world()
    for _ in range(5):
        world.ready()
        world.pass_time(31.0)
        world.die()
        assert world.states() == ["starting"]


def test_a_recycle_is_no_fault(world: World) -> None:
    for _ in range(10):
        world.operate(control.Recycle, worker="w0")
        assert world.states() == ["stopping"]
        world.die(0)
        assert world.states() == ["starting"]
        world.ready()
    assert world.worker().faults == 0
    assert world.death().cause == "operator"


def test_a_worker_is_replaced_after_so_many_jobs(make_world: Make) -> None:
    world = make_world(workers={"recycle": {"max_jobs": 2}})
    world.ready()
    for _ in range(2):
        world.finish(world.job(world.request()))
    assert world.messages(wire.StopWorker)
    assert world.states() == ["stopping"]


def test_a_worker_that_grew_too_large_is_replaced_after_its_job(make_world: Make) -> None:
    world = make_world(workers={"recycle": {"max_rss_mib": 500}})
    world.ready()
    large = wire.Memory(rss=501 << 20)
    world.finish(world.job(world.request()), memory=large)
    assert world.states() == ["ready"] and len(world.messages(wire.Trim)) == 1
    world.say(wire.Trimmed(memory=large))
    assert world.states() == ["stopping"]
    world.die(0)
    assert "max_rss_mib" in world.death().detail


def test_an_old_worker_finishes_its_job_before_it_is_replaced(make_world: Make) -> None:
    world = make_world(workers={"recycle": {"max_age_s": 10.0}})
    world.ready()
    id = world.request()
    world.pass_time(10.0)
    assert world.states() == ["draining"]
    world.request()
    assert world.started() == ["hello"]
    world.finish(world.job(id))
    assert world.states() == ["stopping"]
    assert isinstance(world.last(id), events.Done)


def test_a_crash_while_draining_is_called_a_crash(world: World) -> None:
    id = world.request(stream=True)
    world.audio(world.job(id), 0)
    world.operate(control.Recycle, worker="w0")
    world.die(-11)
    assert world.last(id).code == "worker_crashed"
    assert "SIGSEGV" in world.last(id).message
    assert world.death().cause == "crashed"


def test_a_worker_that_does_not_end_is_killed_until_it_does(world: World) -> None:
    world.operate(control.Recycle, worker="w0")
    world.pass_time(16.0)
    assert [s.signal for s in world.effects(effects.Signal)] == ["kill"] * 3
    world.die(-9)
    world.forget()
    world.pass_time(20.0)
    assert not world.effects(effects.Signal)


def test_a_start_that_takes_too_long_is_ended(make_world: Make) -> None:
    world = make_world(workers={"start_timeout_s": 10.0})
    world.pass_time(10.0)
    assert world.states() == ["failed"]
    assert [s.signal for s in world.effects(effects.Signal)] == ["term"]
    world.die(-15)
    assert world.death().cause == "start_timeout"


def test_a_hang_is_noticed_by_progress_and_not_by_time(make_world: Make) -> None:
    world = make_world(workers={"hang_timeout_s": 2.0})
    world.ready()
    id = world.request()
    for done in range(10):
        world.pass_time(1.9)
        world.say(wire.Beat(job=world.job(id), done=done))
    assert world.states() == ["busy"]
    world.pass_time(2.0)
    assert world.states() == ["failed"]
    assert world.worker().process.exit_reason.cause == "hung"


def test_a_shortened_hang_timeout_holds_for_the_job_at_hand(make_world: Make, make_settings: Make) -> None:
    world = make_world(workers={"hang_timeout_s": 600.0})
    world.ready()
    world.request()
    world.pass_time(5.0)
    world.step(inputs.SettingsRead(make_settings(workers={"hang_timeout_s": 10.0}), []))
    world.pass_time(4.9)
    assert world.states() == ["busy"]
    world.pass_time(0.2)
    assert world.states() == ["failed"]


def test_a_reload_moves_the_other_timers_too(make_world: Make, make_settings: Make) -> None:
    world = make_world(2)
    world.ready("w1")
    changed = {"max": 2, "start_timeout_s": 1.0, "recycle": {"max_age_s": 2.0}}
    world.step(inputs.SettingsRead(make_settings(workers=changed), []))
    world.pass_time(1.0)
    assert world.states() == ["failed", "ready"]
    world.pass_time(1.0)
    assert world.states() == ["failed", "stopping"]


def test_an_idle_worker_gives_memory_back_once(world: World) -> None:
    world.finish(world.job(world.request()))
    world.pass_time(299.0)
    assert not world.messages(wire.Trim)
    world.pass_time(1_000.0)
    assert len(world.messages(wire.Trim)) == 1
    world.finish(world.job(world.request()))
    world.pass_time(301.0)
    assert len(world.messages(wire.Trim)) == 2


def test_the_trim_comes_the_full_time_after_the_last_job_and_not_later(world: World) -> None:
    world.finish(world.job(world.request()))
    world.pass_time(250.0)
    world.finish(world.job(world.request()))
    world.pass_time(299.0)
    assert not world.messages(wire.Trim)
    world.pass_time(2.0)
    assert len(world.messages(wire.Trim)) == 1


def test_what_a_dead_process_says_is_not_heard(world: World) -> None:
    id = world.request(stream=True)
    job, old = world.job(id), world.incarnation()
    world.die()
    world.step(inputs.WorkerSaid(old, wire.AudioChunk(job=job, seq=0), b"late"))
    world.step(inputs.WorkerGarbled(old, "noise"))
    world.step(inputs.ProcessEnded(old, -9))
    world.step(inputs.Spawned(old, 99))
    assert world.states() == ["starting"]
    assert not world.bodies(id)


# --- no worker to be had


def broken(world: World, times: int = 5, after_s: float = 0.0) -> None:
    for _ in range(times):
        while world.states()[0] != "starting":
            world.pass_time(1.0)
        world.pass_time(after_s)
        world.die(3, last_words="ImportError: no torch")


@pytest.mark.parametrize("after_s", [0.0, 120.0])
def test_when_no_worker_starts_those_who_wait_are_told_why_and_when(make_world: Make, after_s: float) -> None:
    world = make_world()
    waiting = world.request()
    broken(world, 4, after_s)
    assert world.names(waiting) == ["accepted"]
    broken(world, 1, after_s)
    error = world.last(waiting)
    assert (error.code, error.retryable) == ("unavailable", True)
    assert "ImportError: no torch" in error.message
    world.forget()
    world.pass_time(error.retry_after_s - 0.01)
    assert incarnations(world) == 0
    world.pass_time(0.02)
    assert incarnations(world) == 1
    assert world.last(world.request()).code == "unavailable"


def test_those_who_wait_are_told_too_when_there_is_not_even_a_process(make_world: Make) -> None:
    world = make_world()
    waiting = world.request()
    for _ in range(5):
        while world.states() != ["starting"]:
            world.pass_time(1.0)
        world.step(inputs.SpawnFailed(world.incarnation(), "no such interpreter"))
    assert world.last(waiting).code == "unavailable"
    assert "no such interpreter" in world.last(waiting).message


def test_service_returns_with_the_first_worker_that_is_ready(make_world: Make) -> None:
    world = make_world()
    broken(world)
    world.pass_time(30.0)
    assert world.last(world.request()).code == "unavailable"
    world.ready()
    id = world.request()
    assert world.names(id) == ["accepted", "started"]


def test_a_recycled_worker_is_waited_for_although_its_neighbour_never_starts(make_world: Make) -> None:
    world = make_world(2)
    world.ready("w1")
    broken(world, 8)
    world.operate(control.Recycle, worker="w1")
    id = world.request()
    world.die(0, worker="w1")
    broken(world, 1)
    assert world.names(id) == ["accepted"]
    world.ready("w1")
    assert world.names(id) == ["accepted", "started"]


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-11) == "killed by SIGSEGV"
    assert describe_exit(-123) == "killed by signal 123"
