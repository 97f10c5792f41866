"""Of the jobs of a worker that died each is tried again that may be, and none is blamed that was not at work."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import inputs
from glmtts.protocol import events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World
from ..support.stage import MakeStage

ALICE, BOB = inputs.Client("uid:1001", "alice"), inputs.Client("uid:1002", "bob")


def attempts(world: World, id: str) -> list[int]:
    return [event.attempt for event in world.told(id) if isinstance(event, events.Started)]


def test_a_client_is_not_charged_twice_for_a_job_that_is_tried_again(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"preempt": False})
    world = stage.world
    stage.world.request(text="x" * 100)
    stage.run(1.0)
    share = world.machine.state.queue._class_queues["interactive"]._share
    virtual = share.virtual
    world.die()
    world.come_back()
    assert share.had("uid:1001") - virtual == pytest.approx(1.0 + 10.0, abs=0.1)


def test_a_job_that_is_tried_again_goes_before_its_client_s_others_and_others_have_their_turns(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    world.ready()
    for text, client in (("first", ALICE), ("second", ALICE), ("other", BOB)):
        world.request(text=text, client=client)
    world.die()
    world.come_back()
    while world.worker().jobs:
        world.finish(world.worker().jobs[0])
    order = world.started()[1:]
    assert sorted(order) == ["first", "other", "second"]
    assert order.index("first") < order.index("second")
    assert order.index("other") < 2


def test_what_ran_out_of_memory_is_tried_once_more_on_a_process_that_had_no_other_job(make_world: MakeWorld) -> None:
    world = make_world(2)
    for name in ("w0", "w1"):
        world.ready(name)
    world.finish(world.job(world.request(text="used")), worker="w0")
    id = world.request(text="large")
    name = world.last(id).worker
    world.say(_out_of_memory(world.job(id)), worker=name)
    world.die(-15, worker=name)
    for worker in world.pool:
        if worker.state == "starting":
            world.ready(worker.name)
    assert attempts(world, id) == [1, 2]
    again = [event.worker for event in world.told(id) if isinstance(event, events.Started)][-1]
    assert world.worker(again).process.jobs_taken == 1
    world.say(_out_of_memory(world.job(id)), worker=again)
    error = world.last(id)
    assert (error.code, "a shorter text may fit" in error.message) == ("out_of_memory", True)


def _out_of_memory(job: str) -> wire.Failed:
    return wire.Failed(job=job, code="out_of_memory", message="CUDA out of memory", fatal=True)


def test_a_durable_job_that_kills_workers_is_quarantined_and_its_end_written_down(world: World) -> None:
    id = world.request(text="killer", priority="batch")
    for _ in range(2):
        world.die()
        world.come_back()
    assert world.last(id).code == "worker_crashed"
    assert world.ends[world.job(id)].state == "failed"
    refused = world.last(world.request(text="killer", priority="batch"))
    assert refused.code == "quarantined"


def test_a_job_that_was_cancelled_is_not_tried_again_though_its_end_is_not_on_disk_yet(world: World) -> None:
    id = world.request(priority="batch")
    world.journal = "holds"
    world.request(requests.Cancel(id="", v=1, job=world.job(id)))
    world.die()
    world.come_back()
    assert attempts(world, id) == [1]
    world.write()
    assert world.last(id).code == "cancelled"


def test_a_job_that_is_tried_again_has_its_whole_deadline_and_no_more(world: World) -> None:
    id = world.request(deadline_s=5.0)
    world.pass_time(2.0)
    world.die()
    world.come_back()
    assert attempts(world, id) == [1, 2]
    world.pass_time(3.0)
    assert world.last(id).code == "deadline_exceeded"
