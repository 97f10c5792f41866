"""Operators see who waits, for how long, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import inputs
from glmtts.protocol import control, requests

from ..support.core_world import MakeWorld, World
from ..support.stage import MakeStage

BOB = inputs.Client("uid:1002", "bob")


def queue(world: World, **keys: Any) -> dict[str, Any]:
    return dict(world.last(world.operate(control.Queue, **keys)).values)


@pytest.mark.usefixtures("no_head_start")
def test_the_queue_shows_classes_clients_and_jobs_in_their_order(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_waiting": 100})
    world = stage.world
    world.request(text="at work")
    for number in range(3):
        world.request(text=f"alice {number:4}")
    world.request(text="bob" + " " * 6 + ".", client=BOB, deadline_s=60.0)
    world.request(text="x" * 30, client=BOB, priority="batch")
    values = queue(world)
    assert values["paused"] is False
    interactive, batch = values["classes"]["interactive"], values["classes"]["batch"]
    assert (interactive["waiting"], interactive["running"], interactive["weight"]) == (4, 1, 4)
    assert (round(interactive["work_s"], 2), batch["waiting"], round(batch["work_s"], 2)) == (4.0, 1, 3.0)
    assert values["classes"]["vip"] == {"waiting": 0, "running": 0, "suspended": 0, "work_s": 0.0, "weight": 16}
    assert [(who["client"], who["user"], who["waiting"], who["running"]) for who in values["clients"]] == [
        ("uid:1001", "alice", 3, 1),
        ("uid:1002", "bob", 2, 0),
    ]
    assert [round(who["work_s"], 2) for who in values["clients"]] == [3.0, 4.0]
    assert [job["position"] for job in values["jobs"]] == list(range(5))
    # The class and the client that have had nothing yet come first.
    assert [(job["user"], job["priority"], job["durable"]) for job in values["jobs"][:3]] == [
        ("bob", "batch", True),
        ("bob", "interactive", False),
        ("alice", "interactive", False),
    ]
    assert [job["deadline_in_s"] for job in values["jobs"]] == [None, 60.0, None, None, None]
    assert values["more"] == 0


def test_the_first_jobs_alone_are_shown_and_how_many_more_there_are(world: World) -> None:
    for _ in range(8):
        world.request(priority="batch")
    values = queue(world, limit=3)
    assert (len(values["jobs"]), values["more"]) == (3, 4)
    assert queue(world, limit=0)["more"] == 7


def test_of_very_many_clients_those_with_the_most_are_shown(make_world: MakeWorld) -> None:
    world = make_world(queue={"max_waiting_batch": 10_000})
    for number in range(300):
        client = inputs.Client(f"uid:{number}", f"user{number}")
        for _ in range(1 + (number == 250)):
            world.request(client=client, priority="batch")
    clients = queue(world)["clients"]
    assert len(clients) == 200
    assert clients[0]["client"] == "uid:250"


def test_a_job_that_is_being_written_counts_for_its_client_and_has_no_place_yet(make_world: MakeWorld) -> None:
    world = make_world(journal="holds")
    world.request(priority="batch")
    values = queue(world)
    assert (values["classes"]["batch"]["waiting"], values["clients"][0]["waiting"]) == (1, 1)
    assert (values["jobs"], values["more"]) == ([], 1)


def test_limits_of_one_client_are_found_by_any_of_its_names(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "10/minute", "gateways": ["gate"]})
    world.request()
    world.request(client=inputs.Client("uid:7", "gate"), on_behalf_of="carol")
    for name, key in (("alice", "uid:1001"), ("1001", "uid:1001"), ("gate/carol", "uid:7/carol")):
        (shown,) = world.last(world.operate(control.GetLimits, client=name)).values["clients"]
        assert (shown["client"], shown["jobs"]) == (key, 1)
    assert len(world.last(world.operate(control.GetLimits)).values["clients"]) == 2
    assert world.last(world.request(requests.Ping(id="", v=1))).version == "1"
