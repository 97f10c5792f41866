"""Processes are replaced before they fail, one at a time, and behind a spare wherever there is room for one."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, events
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World

MIB = 1 << 20


@pytest.fixture
def roomy(make_world: MakeWorld) -> World:
    """One worker, ready, and a host with room for many."""
    world = make_world()
    world.sample()
    world.ready()
    world.forget()
    return world


def leaking(world: World, job: int, mib: int) -> None:
    world.pass_time(0.5)
    world.finish(world.job(world.request()), memory=wire.Memory(rss=(1_000 + job * mib) << 20))


def test_a_spare_is_loaded_first_and_nobody_waits(roomy: World) -> None:
    roomy.operate(control.Recycle, worker="w0")
    assert roomy.states() == ["ready", "starting"]
    assert not roomy.messages(wire.StopWorker)
    id = roomy.request()
    assert roomy.names(id) == ["accepted", "started"]
    roomy.ready("w1")
    assert roomy.states() == ["draining", "ready"]
    roomy.finish(roomy.job(id))
    roomy.die(0)
    assert roomy.states() == ["ready"]
    assert isinstance(roomy.last(id), events.Done)
    spare = roomy.worker("w1")
    # It goes on with the history of the place that it has taken over.
    assert (spare.replaces, spare.restarts, spare.jobs_done, spare.faults) == (None, 1, 1, 0)
    assert spare.last_exit and spare.last_exit.cause == "operator"


def test_while_the_old_one_finishes_its_job_no_third_one_is_started(roomy: World) -> None:
    roomy.request()
    roomy.operate(control.Recycle, worker="w0")
    roomy.ready("w1")
    assert roomy.states() == ["draining", "ready"]
    for _ in range(3):
        roomy.sample()
        roomy.pass_time(0.5)
    assert roomy.states() == ["draining", "ready"]


def test_without_room_for_a_spare_it_is_drained_and_started_again(roomy: World) -> None:
    roomy.sample(host_mib=50)
    roomy.operate(control.Recycle, worker="w0")
    assert roomy.states() == ["stopping"]
    waiting = roomy.request()
    roomy.die(0)
    roomy.ready()
    assert roomy.names(waiting) == ["accepted", "started"]


def test_a_spare_leaves_those_at_work_some_air_on_their_gpu(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "max": 1})
    world.sample(world.gpu())
    world.ready()
    # There are 8,500 MiB for the 8,000 that a spare needs.
    world.sample(world.gpu(used_mib=15_500, w0=8_000))
    world.operate(control.Recycle, worker="w0")
    assert world.states() == ["stopping"]


def test_all_are_replaced_one_after_the_other(make_world: MakeWorld) -> None:
    world = make_world(3)
    for name in ("w0", "w1", "w2"):
        world.ready(name)
    world.operate(control.Recycle, worker="all")
    assert world.states() == ["stopping", "ready", "ready"]
    for name, states in (
        ("w0", ["ready", "stopping", "ready"]),
        ("w1", ["ready", "ready", "stopping"]),
        ("w2", ["ready", "ready", "ready"]),
    ):
        world.die(0, worker=name)
        assert world.states().count("stopping") == 0
        world.ready(name)
        assert world.states() == states


def test_a_spare_that_dies_costs_nobody_the_worker_that_works(roomy: World) -> None:
    roomy.operate(control.Recycle, worker="w0")
    roomy.die(3, worker="w1")
    assert roomy.states()[0] == "ready"
    roomy.pass_time(30.0)
    assert roomy.states() == ["ready", "starting"]
    roomy.ready("w1")
    assert roomy.states() == ["stopping", "ready"]


def test_a_spare_that_runs_out_of_memory_is_given_up(roomy: World) -> None:
    roomy.operate(control.Recycle, worker="w0")
    roomy.forget()
    roomy.die(71, worker="w1")
    assert roomy.states() == ["stopping"]
    assert not roomy.effects(effects.Spawn)
    roomy.die(0)
    assert roomy.states() == ["starting"]


def test_a_worker_that_dies_while_its_spare_is_loaded_is_replaced_by_it(roomy: World) -> None:
    roomy.operate(control.Recycle, worker="w0")
    roomy.die(-11)
    assert roomy.states() == ["starting"]
    assert [incarnation.name for incarnation in roomy.effects(effects.Spawn)] == ["w1"]
    roomy.ready("w1")
    assert roomy.worker("w1").replaces is None


def test_a_worker_is_replaced_after_so_many_jobs(make_world: MakeWorld) -> None:
    world = make_world(workers={"recycle": {"max_jobs": 2}})
    world.ready()
    for _ in range(2):
        world.finish(world.job(world.request()))
    assert world.messages(wire.StopWorker) and world.states() == ["stopping"]


def test_an_old_worker_finishes_its_job_before_it_is_replaced(make_world: MakeWorld) -> None:
    world = make_world(workers={"recycle": {"max_age_s": 10.0}})
    world.ready()
    id = world.request()
    world.pass_time(10.0)
    world.request()
    assert world.states() == ["draining"] and world.started() == ["hello"]
    world.finish(world.job(id))
    assert world.states() == ["stopping"] and isinstance(world.last(id), events.Done)


def test_a_worker_that_grew_too_large_is_trimmed_and_replaced_after_its_job(make_world: MakeWorld) -> None:
    world = make_world(workers={"recycle": {"max_rss_mib": 500}})
    world.ready()
    large = wire.Memory(rss=501 << 20)
    world.finish(world.job(world.request()), memory=large)
    assert world.states() == ["ready"] and len(world.messages(wire.Trim)) == 1
    world.say(wire.Trimmed(memory=large))
    assert world.states() == ["stopping"]
    world.die(0)
    assert "max_rss_mib" in world.death().detail


def test_a_leak_is_trimmed_then_replaced_and_the_log_says_why(make_world: MakeWorld) -> None:
    world = make_world(workers={"recycle": {"max_rss_mib": 4_000}})
    world.sample()
    world.ready(memory=wire.Memory(rss=1_000 * MIB))
    for job in range(1, 90):
        leaking(world, job, 38)
        if world.messages(wire.Trim) and not world.worker().process.replace_reason:
            world.say(wire.Trimmed(memory=wire.Memory(rss=(1_000 + job * 38) << 20)))
        if world.worker().process.replace_reason:
            break
    assert world.messages(wire.Trim)
    assert 1_000 + job * 38 < 4_000
    assert (reason := world.worker().process.replace_reason) and reason.cause == "leak"
    assert "38 MiB per job" in reason.detail
    assert world.states() == ["ready", "starting"]


def test_a_process_that_was_told_to_end_is_not_told_again_by_a_job_that_runs_away(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready()
    job = world.job(world.request())
    world.step(inputs.StopAsked("SIGTERM"))
    world.step(inputs.StopAsked("SIGINT"))
    assert world.states() == ["stopping"]
    world.say(wire.Beats(jobs=[wire.JobProgress(job, 100_000, 10)]))
    assert world.states() == ["stopping"]
