"""What is said of waiting comes true where nothing comes between."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import inputs
from glmtts.protocol import control, events, requests

from ..support.core_world import MakeWorld
from ..support.stage import MakeStage, Stage

CLIENTS = [inputs.Client(f"uid:{number}", f"user{number}") for number in range(5)]
LENGTHS = [30, 10, 50, 20, 10, 10, 40, 20]


def waited(stage: Stage, id: str) -> float:
    return float(next(e.waited_s for e in stage.world.told(id) if isinstance(e, events.Started)))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_the_first_client_is_told_when_each_of_its_jobs_begins(
    make_stage: MakeStage, workers: int, priority: str
) -> None:
    stage = make_stage(workers, queue={"max_share": 1.0})
    ids = [stage.world.request(text="x" * length, priority=priority) for length in LENGTHS]
    told = [next(e for e in stage.world.told(id) if isinstance(e, events.Accepted)) for id in ids]
    started = len([1 for id in ids if stage.world.names(id)[-1] == "started"])
    assert [event.position for event in told] == [0] * started + list(range(len(ids) - started))
    stage.run(60.0)
    for id, event in zip(ids, told, strict=True):
        assert waited(stage, id) == pytest.approx(event.estimated_wait_s, abs=0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_of_many_clients_each_is_told_when_its_job_begins(make_stage: MakeStage, workers: int) -> None:
    stage = make_stage(workers, queue={"max_waiting": 100, "preempt": False, "interactive_workers": 0})
    ids = [
        stage.world.request(text="x" * length, client=client, priority=priority)
        for priority in ("interactive", "batch")
        for length in LENGTHS
        for client in CLIENTS
    ]
    accepted_at = stage.world.now
    stage.run(7.3)
    waiting = [id for id in ids if stage.world.names(id)[-1] in ("accepted", "queued")]
    mine = {id: CLIENTS[ids.index(id) % len(CLIENTS)] for id in waiting}
    told = {}
    for id in waiting:
        get = requests.GetJob(id="", v=1, job=stage.world.job(id))
        answer = stage.world.last(stage.world.request(get, client=mine[id]))
        told[id] = (answer.position, stage.world.now - accepted_at + answer.estimated_wait_s)
    stage.run(1_000.0)
    errors = {id: abs(waited(stage, id) - at) for id, (_, at) in told.items()}
    assert len(errors) > 60
    # Of clients who have had as much as each other it is chance who is first.
    assert all(error <= max(2 * 5.0, 0.35 * told[id][1]) for id, error in errors.items())
    assert sum(error / told[id][1] for id, error in errors.items()) / len(errors) < 0.06


def test_positions_are_those_in_which_jobs_begin(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_waiting": 100})
    stage.world.request(text="first")
    ids = [stage.world.request(text="x" * length, client=client) for length in LENGTHS for client in CLIENTS[:3]]
    positions = {}
    for number, id in enumerate(ids):
        get = requests.GetJob(id="", v=1, job=stage.world.job(id))
        positions[id] = stage.world.last(stage.world.request(get, client=CLIENTS[number % 3])).position
    assert sorted(positions.values()) == list(range(len(ids)))
    stage.run(100.0)
    begun = sorted(ids, key=lambda id: waited(stage, id))
    assert [positions[id] for id in begun] == list(range(len(ids)))


def test_nothing_is_promised_before_anything_was_measured_nor_while_the_queue_is_paused(make_stage: MakeStage) -> None:
    stage = make_stage(learn=())
    stage.world.request()
    second = stage.world.request()
    assert not isinstance(stage.world.told(second)[0].estimated_wait_s, float)
    stage.run(5.0)
    stage.world.operate(control.Pause)
    third = stage.world.request()
    assert not isinstance(stage.world.told(third)[0].estimated_wait_s, float)


def test_a_job_that_takes_longer_than_was_thought_is_not_said_to_be_done_at_any_moment(make_stage: MakeStage) -> None:
    stage = make_stage(segment_s=1_000.0)
    stage._slow = 10.0
    stage.world.request(text="x" * 50)
    stage.run(30.0)
    waits = stage.world.request()
    assert stage.world.told(waits)[0].estimated_wait_s == pytest.approx(0.5, abs=0.01)


def test_after_two_segments_the_rest_is_told_from_their_pace(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage._slow = 2.0
    stage.world.request(text="x" * 50)
    stage.run(5.0)
    waits = stage.world.request()
    assert stage.world.told(waits)[0].estimated_wait_s == pytest.approx(5.0, abs=0.01)


def test_beyond_what_is_gone_through_one_by_one_the_wait_is_still_near(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"interactive_workers": 0})
    ids = [
        stage.world.request(text="x" * 10, client=client, priority="batch", durable=False)
        for _ in range(60)
        for client in CLIENTS
    ]
    told = next(e for e in stage.world.told(ids[-1]) if isinstance(e, events.Accepted))
    assert told.position == pytest.approx(298, abs=5)
    assert told.estimated_wait_s == pytest.approx(299.0, abs=5)
    stage.run(310.0)
    assert waited(stage, ids[-1]) == pytest.approx(told.estimated_wait_s, abs=5)


def test_a_job_that_is_being_written_down_can_be_asked_for_in_a_long_queue(make_world: MakeWorld) -> None:
    world = make_world(journal="holds")
    for number in range(70):
        world.request(text=str(number), priority="batch", durable=False)
    world.request(priority="batch")
    listed = world.last(world.operate(requests.ListJobs, limit=1)).jobs
    answer = world.last(world.request(requests.GetJob(id="", v=1, job=listed[0].job)))
    assert (answer.state, answer.position) == ("waiting", 0)


def test_operators_see_how_many_estimates_came_true(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_share": 1.0})
    for length in LENGTHS:
        stage.world.request(text="x" * length)
    stage.run(60.0)
    estimates = stage.world.last(stage.world.operate(control.Status)).values["estimates"]
    assert estimates == {"jobs": len(LENGTHS) - 1, "within_30_percent": 1.0}
