"""A process with several jobs dies: the one that is to blame is blamed, and no other."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World

N = 16


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    world = make_world(
        workers={"hang_timeout_s": 10.0, "restart": {"backoff_initial_s": 0.1, "breaker_failures": 50}},
        queue={"max_waiting": 50},
    )
    world.ready(slots=N)
    return world


def speak(world: World, count: int = N) -> list[str]:
    """Requests for jobs that the worker begins side by side; returns the jobs."""
    jobs = [world.job(world.request(text=f"text {number}")) for number in range(count)]
    assert list(world.worker().process.begun) == jobs
    return jobs


def die(world: World, *noted: str, returncode: int = -11) -> None:
    """The process dies, and another is ready; ``noted``: what its flight recorder says."""
    world.step(inputs.ProcessEnded(world.incarnation(), returncode, "", False, "flow" if noted else "", noted))
    world.come_back(slots=N)


def read(world: World, *noted: str) -> None:
    """The flight recorder that the core has asked for is read."""
    (asked,) = world.effects(effects.ReadRecorder)
    world.forget()
    world.step(inputs.RecorderRead(asked.incarnation, "flow" if noted else "", noted))


def begun(world: World) -> list[str]:
    return list(world.worker().process.begun)


def beats(world: World, *jobs: str, done: int) -> None:
    world.say(wire.Beats(jobs=[wire.JobProgress(job, done) for job in jobs]))


def test_one_bad_job_of_sixteen_is_quarantined_after_two_deaths_alone_and_all_others_are_done(world: World) -> None:
    jobs = speak(world)
    bad, deaths = jobs[5], 0
    die(world)
    done = []
    while world.live:
        (job,) = begun(world)
        if job == bad:
            deaths += 1
            die(world)
        else:
            world.finish(job)
            done.append(job)
    assert done == jobs[:5] + jobs[6:] and deaths == 2
    assert world.effects_codes() == ["worker_crashed"]
    (blamed,) = world.machine.scheduler.retries.quarantine.describe(world.now, 1)
    assert (blamed["job"], blamed["deaths"]) == (bad, 2)
    assert world.last(world.request(text="text 5")).code == "quarantined"


def test_a_job_that_the_flight_recorder_names_alone_is_blamed_and_the_others_go_on_together(world: World) -> None:
    jobs = speak(world, 4)
    die(world, jobs[1])
    assert begun(world) == [jobs[1]] and world.machine.scheduler.retries.quarantine.count(world.now, 1) == 1
    world.finish(jobs[1])
    assert sorted(begun(world)) == sorted(jobs[:1] + jobs[2:])
    assert all(not world.live[job].alone and world.live[job].excused == 1 for job in begun(world))


def test_of_the_jobs_in_a_note_none_is_blamed_and_those_alone_are_separated(world: World) -> None:
    jobs = speak(world, 4)
    die(world, *jobs[:2])
    assert not world.machine.scheduler.retries.quarantine
    assert [world.live[job].alone for job in jobs] == [True, True, False, False]


def test_a_note_of_a_job_that_is_gone_blames_none(world: World) -> None:
    jobs = speak(world, 3)
    world.request(requests.Cancel(id="", v=1, job=jobs[0]))
    die(world, jobs[0])
    assert not world.machine.scheduler.retries.quarantine
    assert sorted(begun(world)) == sorted(jobs[1:]) and not any(world.live[job].alone for job in jobs[1:])


def test_a_batch_that_hangs_has_its_flight_recorder_read_while_the_process_is_still_there(world: World) -> None:
    jobs = speak(world, 3)
    world.pass_time(10.1)
    assert set(world.live) == set(jobs) and not world.effects_codes()
    read(world, jobs[2])
    assert world.live[jobs[2]].alone and not world.live[jobs[0]].alone
    assert all(job.state == "waiting" for job in world.live.values())
    assert world.machine.scheduler.retries.quarantine.count(world.now, 1) == 1


def test_a_process_that_ends_before_its_recorder_is_read_brings_the_note_along(world: World) -> None:
    jobs = speak(world, 3)
    world.pass_time(10.1)
    die(world, jobs[2], returncode=-15)
    assert [world.live[job].alone for job in jobs] == [False, False, True]


def test_without_a_note_all_jobs_of_a_batch_that_hangs_are_suspects(world: World) -> None:
    jobs = speak(world, 3)
    world.pass_time(10.1)
    read(world)
    assert not world.machine.scheduler.retries.quarantine and all(world.live[job].alone for job in jobs)


def test_the_one_job_that_stands_still_among_others_is_to_blame(world: World) -> None:
    jobs = speak(world, 3)
    for second in range(11):
        world.pass_time(1.0)
        if world.worker().state.value == "busy":
            beats(world, jobs[0], jobs[2], done=second)
    assert not world.effects(effects.ReadRecorder)
    assert [world.live[job].excused for job in jobs] == [1, 0, 1]
    assert [world.live[job].alone for job in jobs] == [False, True, False]


def test_a_job_without_an_end_in_sight_is_to_blame_alone(world: World) -> None:
    jobs = speak(world, 3)
    world.say(wire.Beats(jobs=[wire.JobProgress(jobs[0], 1, 10), wire.JobProgress(jobs[1], 10_000, 10)]))
    assert [world.live[job].excused for job in jobs] == [1, 0, 1]


def fatal(world: World, job: str = "", code: str = "cuda_context", suspects: list[str] | None = None) -> None:
    world.say(wire.Failed(job=job, code=code, message="m", fatal=True, suspects=suspects or []))


def test_the_suspects_that_a_worker_names_are_separated(world: World) -> None:
    jobs = speak(world, 3)
    fatal(world, suspects=jobs[:2])
    read(world)
    assert [world.live[job].alone for job in jobs] == [True, True, False]
    assert not world.machine.scheduler.retries.quarantine


def test_only_the_job_that_ran_out_of_memory_gets_a_fresh_process(world: World) -> None:
    jobs = speak(world, 3)
    fatal(world, jobs[1], "out_of_memory")
    assert [world.live[job].needs_fresh for job in jobs] == [False, True, False]
    world.come_back(slots=N)
    assert begun(world) == [jobs[1]] and world.effects(effects.Spawn)[-1].slots == 0


def test_after_an_unexplained_lack_of_memory_the_next_process_takes_half_until_an_operator_replaces_it(
    world: World,
) -> None:
    jobs = speak(world, 3)
    fatal(world, code="out_of_memory")
    read(world)
    assert all(world.live[job].alone and not world.live[job].needs_fresh for job in jobs)
    world.come_back(slots=8)
    assert world.effects(effects.Spawn)[-1].slots == 8
    world.operate(control.Workers)
    assert "8 at once" in world.effects(effects.Send)[-1].event.values["workers"][0]["reason"]  # type: ignore[union-attr]
    for job in jobs:
        world.finish(job)
    world.die()
    world.come_back(slots=8)
    assert world.effects(effects.Spawn)[-1].slots == 8, "a crash changes nothing"
    world.operate(control.Recycle, worker="w0")
    spawned = [effect.slots for effect in world.effects(effects.Spawn)]
    if spawned[-1] == 8:
        world.die(0)
    assert world.effects(effects.Spawn)[-1].slots == 0


def test_nothing_runs_beside_a_job_that_runs_alone_and_operators_see_why(world: World) -> None:
    jobs = speak(world, 2)
    die(world)
    later = world.job(world.request(text="later"))
    assert begun(world) == [jobs[0]] and world.live[later].state == "waiting"
    assert world.live[jobs[0]].describe().alone is True
    world.finish(jobs[0])
    assert begun(world) == [jobs[1]]
    world.finish(jobs[1])
    assert begun(world) == [later]


@pytest.mark.parametrize(
    ("after_s", "others_are_taken"),
    [(0.0, True), (31.0, False)],
    ids=["a process is on its way", "it takes long"],
)
def test_a_worker_is_kept_for_a_job_alone_when_no_other_comes(
    make_world: MakeWorld, after_s: float, others_are_taken: bool
) -> None:
    world = make_world(2, workers={"min": 2, "hang_timeout_s": 500.0, "start_timeout_s": 500.0})
    world.ready("w0", 4)
    world.ready("w1", 4)
    for number in range(6):
        world.request(text=f"text {number}")
    suspects, others = list(world.worker("w0").process.begun), list(world.worker("w1").process.begun)
    world.step(inputs.ProcessEnded(world.incarnation("w0"), -11))
    world.pass_time(after_s)
    late = world.job(world.request(text="late"))
    assert (late in world.worker("w1").process.begun) == others_are_taken
    for job in others:
        world.finish(job, worker="w1")
    if not others_are_taken:
        assert list(world.worker("w1").process.begun) == suspects[:1], "nothing at hand: the job that runs alone"


def test_a_job_beside_which_three_workers_died_comes_to_its_end_alone(world: World) -> None:
    (healthy,) = speak(world, 1)
    for number in range(3):
        assert not world.live[healthy].alone
        bad = world.job(world.request(text=f"bad {number}"))
        die(world, bad)
        if number < 2:
            world.finish(bad)
    assert world.live[healthy].alone and begun(world) == [healthy]
    die(world)
    assert begun(world) == [bad], "those that run alone take turns"
    world.finish(bad)
    die(world)
    assert not world.live and world.effects_codes() == ["worker_crashed"]


def test_an_effect_that_fails_leaves_no_job_undecided(world: World) -> None:
    speak(world, 3)
    world.pass_time(10.1)
    (asked,) = world.effects(effects.ReadRecorder)
    world.step(inputs.EffectFailed(asked, "a bug of the shell"))
    assert all(job.state == "waiting" and job.alone for job in world.live.values())


def test_a_batch_job_that_runs_alone_gives_way_and_goes_on_when_nothing_else_is_at_hand(world: World) -> None:
    book = world.job(world.request(text="book", priority="batch"))
    world.job(world.request(text="other", priority="batch"))
    die(world)
    assert begun(world) == [book]
    urgent = world.job(world.request(text="urgent"))
    assert world.messages(wire.SuspendJob)[-1].job == book
    world.say(wire.Suspended(job=book))
    assert begun(world) == [urgent]
    second = world.job(world.request(text="second"))
    assert begun(world) == [urgent, second], "beside a job that is suspended others run side by side"
    world.finish(urgent)
    assert not world.messages(wire.ResumeJob)
    world.finish(second)
    assert [message.job for message in world.messages(wire.ResumeJob)] == [book] and begun(world) == [book]
    third = world.job(world.request(text="third", priority="batch"))
    assert begun(world) == [book] and world.live[third].state == "waiting"
