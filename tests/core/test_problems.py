"""What is wrong is said once, the gravest first, and each time with what to do."""

from __future__ import annotations

from typing import Any

from glmtts.daemon.core import inputs
from glmtts.protocol import control

from ..support.core_world import MakeWorld, World


def problems(world: World, **facts: Any) -> list[dict[str, str]]:
    world._ids += 1
    id = f"r{world._ids}"
    world.step(inputs.Controlled(inputs.ReplyTo(1 << 40), control.Status(id=id, v=1), None, facts))
    found: list[dict[str, str]] = world.last(id).values["attention"]
    return found


def test_of_a_daemon_that_is_well_there_is_nothing_to_say(world: World) -> None:
    assert problems(world) == []


def test_the_gravest_comes_first_and_nothing_comes_twice(make_world: MakeWorld) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2, "backoff_initial_s": 20.0, "backoff_max_s": 30.0}})
    world.step(inputs.JournalChanged("/state/journal.db: the disk is full"))
    for _ in range(3):
        world.die(1, last_words="no module named torch")
        while world.states() == ["backoff"] and world.pool.circuit_breaker.state.value == "closed":
            world.pass_time(1.0)
    found = problems(world, internal_errors=1)
    # Of the workers there are three alerts besides, which say no more.
    assert [problem["name"] for problem in found] == ["workers_crash", "journal", "internal_errors"]
    assert [problem["severity"] for problem in found] == ["down", "bad", "note"]
    assert all(problem["what"].endswith(".") and problem["do"] for problem in found)


def test_a_death_is_told_for_ten_minutes(world: World) -> None:
    world.die()
    world.ready()
    assert [problem["name"] for problem in problems(world)] == ["worker_died"]
    world.pass_time(601.0)
    assert problems(world) == []


def test_a_model_that_is_never_loaded_in_time_is_given_more(make_world: MakeWorld) -> None:
    world = make_world(workers={"start_timeout_s": 5.0})
    assert problems(world)[0]["do"].startswith("Wait")
    world.pass_time(5.0)
    world.die(-9)
    while world.states() != ["starting"]:
        world.pass_time(0.5)
    (problem, *_) = problems(world)
    assert problem["name"] == "loading" and "start_timeout_s" in problem["do"] and "reload" in problem["do"]


def test_a_job_that_stands_still_is_seen_long_before_its_worker_is_killed(make_world: MakeWorld) -> None:
    world = make_world(workers={"hang_timeout_s": 60.0})
    world.ready()
    for text in ("long", "waits", "waits too", "and waits", "waits as well"):
        world.request(text=text)
    world.pass_time(14.0)
    assert "no_progress" not in {problem["name"] for problem in problems(world)}
    world.pass_time(2.0)
    # More workers are not what those who wait lack.
    (problem,) = [problem for problem in problems(world) if problem["name"] != "one_client"]
    assert problem["name"] == "no_progress" and "for 16 s" in problem["what"] and "After 60 s" in problem["what"]


def test_a_queue_that_nobody_has_most_of_is_too_long_for_its_workers_and_nobodys_fault(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["alice"]}, queue={"warn_waiting": 4})
    world.ready()
    for number in range(6):
        world.request(text=f"text {number}", on_behalf_of=f"visitor{number}")
    assert [problem["name"] for problem in problems(world)] == ["too_few_workers"]
    for number in range(40):
        world.request(text=f"chapter {number}", priority="batch", durable=False)
    found = problems(world)
    assert [problem["name"] for problem in found] == ["one_client", "too_few_workers"]
    assert "40 of the 45 waiting jobs" in found[0]["what"] and "uid:1001" in found[0]["do"]
