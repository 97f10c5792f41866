"""Workers live, die and come back by the rules; none is forgotten in any state, and none restarts without a pause."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control
from glmtts.protocol import worker as wire
from glmtts.protocol.system_words import exit_in_words

from ..support.core_world import MakeSettings, MakeWorld, World


def incarnations(world: World) -> int:
    return len(world.effects(effects.Spawn))


def test_after_its_first_crash_a_worker_starts_again_at_once(world: World) -> None:
    world.finish(world.job(world.request()))
    world.forget()
    world.die()
    assert incarnations(world) == 1
    assert world.states() == ["starting"]


def test_false_starts_are_repeated_ever_later(make_world: MakeWorld) -> None:
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
def test_an_hour_of_false_starts_costs_few_processes(make_world: MakeWorld, failure: str) -> None:
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
        world.pass_time(max(0.0, (world.machine.next_due or until) - world.now))
    assert 80 < incarnations(world) < 3_600 / (0.75 * 30) + 10


def test_a_process_that_dies_idle_right_after_its_start_is_not_restarted_without_pause(make_world: MakeWorld) -> None:
    world = make_world()
    for _ in range(6):
        world.ready()
        world.die()
        world.pass_time(0.3)
        if world.states() == ["backoff"]:
            break
    assert world.states() == ["backoff"]


def test_a_long_quiet_life_is_no_false_start(make_world: MakeWorld) -> None:
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


def test_a_start_that_takes_too_long_is_ended(make_world: MakeWorld) -> None:
    world = make_world(workers={"start_timeout_s": 10.0})
    world.pass_time(10.0)
    assert world.states() == ["failed"]
    assert [s.signal for s in world.effects(effects.Signal)] == ["term"]
    world.die(-15)
    assert world.death().cause == "start_timeout"


def test_a_hang_is_noticed_by_progress_and_not_by_time(make_world: MakeWorld) -> None:
    world = make_world(workers={"hang_timeout_s": 2.0})
    world.ready()
    id = world.request()
    for done in range(10):
        world.pass_time(1.9)
        world.say(wire.Beats(jobs=[wire.JobProgress(world.job(id), done)]))
    assert world.states() == ["busy"]
    world.pass_time(2.0)
    assert world.states() == ["failed"]
    world.die(-15)
    assert world.death().cause == "hung"


def test_a_reload_moves_the_timers_that_run(make_world: MakeWorld, make_settings: MakeSettings) -> None:
    world = make_world(3, workers={"hang_timeout_s": 600.0})
    world.ready("w1")
    world.request()
    world.ready("w2")
    changed = {"max": 3, "hang_timeout_s": 3.0, "start_timeout_s": 1.0, "recycle": {"max_age_s": 2.0}}
    world.step(inputs.SettingsRead(make_settings(workers=changed), []))
    world.pass_time(1.0)
    assert world.states() == ["failed", "busy", "ready"]
    world.pass_time(1.0)
    assert world.states() == ["failed", "draining", "ready"]
    world.pass_time(1.0)
    assert world.states() == ["failed", "failed", "busy"]


def test_an_idle_worker_trims_its_memory_once_the_full_time_after_its_last_job(world: World) -> None:
    world.finish(world.job(world.request()))
    world.pass_time(250.0)
    world.finish(world.job(world.request()))
    world.pass_time(299.0)
    assert not world.messages(wire.Trim)
    world.pass_time(2.0)
    assert len(world.messages(wire.Trim)) == 1
    world.pass_time(1_000.0)
    assert len(world.messages(wire.Trim)) == 1
    world.finish(world.job(world.request()))
    world.pass_time(301.0)
    assert len(world.messages(wire.Trim)) == 2


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


def broken(world: World, times: int = 5, ends: str = "at once") -> None:
    for _ in range(times):
        while world.states()[0] != "starting":
            world.pass_time(1.0)
        if ends == "without a process":
            world.step(inputs.SpawnFailed(world.incarnation(), "ImportError: no torch"))
        else:
            world.pass_time(120.0 if ends == "after minutes" else 0.0)
            world.die(3, last_words="ImportError: no torch")


@pytest.mark.parametrize("ends", ["at once", "after minutes", "without a process"])
def test_when_no_worker_starts_waiting_clients_are_told_why_and_when_to_retry(make_world: MakeWorld, ends: str) -> None:
    world = make_world()
    waiting = world.request()
    broken(world, 4, ends)
    assert world.names(waiting) == ["accepted"]
    broken(world, 1, ends)
    error = world.last(waiting)
    assert (error.code, error.retryable) == ("unavailable", True)
    assert "ImportError: no torch" in error.message
    world.forget()
    world.pass_time(error.retry_after_s - 0.01)
    assert incarnations(world) == 0
    world.pass_time(0.02)
    assert incarnations(world) == 1
    assert world.last(world.request()).code == "unavailable"


def test_service_returns_with_the_first_worker_that_is_ready(make_world: MakeWorld) -> None:
    world = make_world()
    broken(world)
    world.pass_time(30.0)
    assert world.last(world.request()).code == "unavailable"
    world.ready()
    id = world.request()
    assert world.names(id) == ["accepted", "started"]


def test_a_recycled_worker_is_waited_for_although_its_neighbour_never_starts(make_world: MakeWorld) -> None:
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
    assert exit_in_words(3) == "exited with status 3"
    assert exit_in_words(-11) == "killed by SIGSEGV"
    assert exit_in_words(-123) == "killed by signal 123"
    assert exit_in_words(139) == "exited with status 139 (SIGSEGV in a process that it had started)"
