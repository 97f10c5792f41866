"""Health is what a client would meet, told in bounded time, and nothing is started for the question."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import inputs
from glmtts.protocol import control
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World


def health(world: World, **keys: Any) -> dict[str, Any]:
    values: dict[str, Any] = world.last(world.operate(control.Health, **keys)).values
    return values


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {worker["name"]: worker["verdict"] for worker in answer["workers"]}


def names(answer: dict[str, Any]) -> list[str]:
    return [problem["name"] for problem in answer["problems"]]


def test_a_daemon_that_speaks_is_ready(world: World) -> None:
    assert health(world) == {"state": "running", "ready": True, "healthy": True, "asleep": False, "problems": []}


def test_one_that_loads_is_not_ready_yet(make_world: MakeWorld) -> None:
    answer = health(make_world())
    assert not answer["ready"] and names(answer) == ["loading"]


@pytest.mark.parametrize(("operation", "name"), [(control.Pause, "paused"), (control.Drain, "draining")])
def test_one_that_starts_no_job_is_not_ready(world: World, operation: Any, name: str) -> None:
    world.request()
    world.operate(operation)
    answer = health(world)
    assert not answer["ready"] and names(answer)[0] == name
    world.operate(control.Resume)
    assert health(world)["ready"]


def test_after_a_cuda_error_it_is_not_ready_until_the_next_process_is(world: World) -> None:
    job = world.job(world.request())
    reason = "CUDA error: an illegal memory access was encountered"
    world.say(wire.Failed(job=job, code="cuda_context", message=reason, reason=reason, fatal=True))
    answer = health(world)
    assert not answer["healthy"] and reason in answer["problems"][0]["what"]
    world.come_back()
    answer = health(world)
    assert answer["healthy"] and names(answer) == ["worker_died"]  # it happened, and is told


def test_with_the_breaker_open_it_is_down_and_says_of_what(make_world: MakeWorld) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2, "backoff_initial_s": 20.0, "backoff_max_s": 30.0}})
    for _ in range(3):
        world.die(1, last_words="no module named torch")
        while world.states() == ["backoff"] and world.pool.circuit_breaker.state.value == "closed":
            world.pass_time(1.0)
    answer = health(world)
    assert (answer["ready"], names(answer)[0]) == (False, "workers_crash")
    assert "no module named torch" in answer["problems"][0]["what"]


def test_with_a_full_disk_speech_goes_on_and_the_disk_is_named(make_world: MakeWorld) -> None:
    world = make_world(journal="none")
    world.ready()
    world.step(inputs.JournalChanged("/state/journal.db: the disk is full"))
    answer = health(world)
    assert answer["healthy"] and names(answer) == ["journal"] and "disk is full" in answer["problems"][0]["what"]


def test_with_all_workers_unloaded_for_want_of_jobs_it_is_ready(make_world: MakeWorld) -> None:
    world = make_world(workers={"idle_unload_s": 10.0})
    world.ready()
    world.pass_time(11.0)
    world.die(0)
    assert world.states() == []
    answer = health(world, deep=True)
    assert (answer["ready"], answer["healthy"], answer["asleep"], answer["workers"]) == (True, True, True, [])
    assert world.names(world.request())[-1] == "accepted" and world.states() == ["starting"]


def test_a_gpu_that_others_have_filled_is_named(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "vram_mib": 8_000})
    world.sample(world.gpu(0, used_mib=23_000))
    answer = health(world)
    assert not answer["ready"] and names(answer) == ["gpu_full"]
    assert "GPU 0 has 1,000 MiB free, and a worker needs 8,000 MiB" in answer["problems"][0]["what"]


# --- deep


def test_every_worker_speaks_a_word_and_is_timed(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.ready("w0")
    world.ready("w1")
    id = world.operate(control.Health, deep=True)
    assert world.told(id) == [] and [m.check for m in world.messages(wire.Check)] == ["c1", "c1"]
    world.pass_time(0.25)
    world.say(wire.Checked(check="c1"), worker="w0")
    world.say(wire.Checked(check="c1", problem="RuntimeError: no sound"), worker="w1")
    answer = world.last(id).values
    assert verdicts(answer) == {"w0": "spoke", "w1": "failed"} and not answer["healthy"] and answer["ready"]
    assert [worker["took_s"] for worker in answer["workers"]] == [0.25, 0.25]


def test_one_that_is_at_a_job_that_moves_is_not_asked_for_more(world: World) -> None:
    job = world.job(world.request())
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 3, 9)]))
    answer = health(world, deep=True)
    assert verdicts(answer) == {"w0": "speaking"} and answer["healthy"] and not world.messages(wire.Check)


def test_one_that_gives_no_answer_is_not_waited_for_any_longer_than_was_said(world: World) -> None:
    id = world.operate(control.Health, deep=True, timeout_s=3.0)
    world.pass_time(2.9)
    assert world.told(id) == []
    world.pass_time(0.2)
    answer = world.last(id).values
    assert verdicts(answer) == {"w0": "silent"} and not answer["healthy"]
    world.say(wire.Checked(check="c1"))  # too late, and harmless
    assert len(world.told(id)) == 1


def test_one_that_dies_of_its_word_is_known_at_once(world: World) -> None:
    id = world.operate(control.Health, deep=True)
    world.die(-11)
    (worker,) = world.last(id).values["workers"]
    assert (worker["verdict"], worker["problem"]) == ("failed", "killed by SIGSEGV")


def test_one_that_has_no_process_is_absent_and_that_is_not_well(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.ready("w0")
    id = world.operate(control.Health, deep=True)
    world.say(wire.Checked(check="c1"))
    answer = world.last(id).values
    assert verdicts(answer) == {"w0": "spoke", "w1": "absent"} and answer["ready"] and not answer["healthy"]


def test_more_checks_than_a_few_at_a_time_are_refused(world: World) -> None:
    for _ in range(8):
        world.operate(control.Health, deep=True)
    refused = world.last(world.operate(control.Health, deep=True))
    assert (refused.code, refused.retryable) == ("unavailable", True)


def test_a_worker_takes_jobs_while_it_is_checked(world: World) -> None:
    world.operate(control.Health, deep=True)
    job = world.job(world.request())
    world.finish(job)
    assert world.states() == ["ready"]
