"""What a death means: who has to wait for it, who is blamed, and what the client is told."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import inputs
from glmtts.daemon.core.exit_causes import POLICIES, Cause
from glmtts.protocol import worker as wire

NO_FAULT = {Cause.REQUESTED, Cause.OPERATOR, Cause.RECYCLED, Cause.LEAK, Cause.UNLOADED}


def test_every_cause_has_a_policy_and_only_faults_make_anybody_wait() -> None:
    assert set(POLICIES) == set(Cause)
    assert {cause for cause, policy in POLICIES.items() if not policy.fault} == NO_FAULT


def test_nobody_is_blamed_for_what_is_no_fault_nor_for_memory_that_others_took() -> None:
    blamed = {cause for cause, policy in POLICIES.items() if policy.blames_job}
    assert blamed == {Cause.CRASHED, Cause.CUDA_CONTEXT, Cause.HUNG, Cause.PROTOCOL}


@pytest.mark.parametrize(
    ("ended", "cause", "code"),
    [
        ({"returncode": -11}, "crashed", "worker_crashed"),
        ({"returncode": 3}, "crashed", "worker_crashed"),
        ({"returncode": -9, "oom_killed": True}, "host_oom", "worker_crashed"),
        ({"returncode": 71}, "out_of_memory", "out_of_memory"),
        ({"returncode": 72}, "cuda_context", "worker_crashed"),
        ({"returncode": 73}, "gpu_lost", "worker_crashed"),
    ],
)
def test_a_client_is_told_what_its_worker_died_of(
    make_world: Any, ended: dict[str, Any], cause: str, code: str
) -> None:
    world = make_world(workers={"restart": {"max_attempts": 1}})
    world.ready()
    id = world.request()
    world.step(inputs.ProcessEnded(world.incarnation(), **ended))
    assert world.worker().last_death.cause == cause
    assert world.last(id).code == code


@pytest.mark.parametrize(("code", "cause"), [("out_of_memory", "out_of_memory"), ("cuda_context", "cuda_context")])
def test_what_a_worker_says_of_its_end_counts_more_than_how_it_ends(world: Any, code: str, cause: str) -> None:
    job = world.job(world.request())
    world.say(wire.Failed(job=job, code=code, message="of a text", reason="in its own words", fatal=True))
    assert world.states() == ["failed"]
    world.die(-9)
    assert world.worker().last_death.cause == cause
    assert world.worker().last_death.detail == "in its own words"


def test_a_process_that_cannot_load_for_want_of_memory_is_no_failed_start(make_world: Any) -> None:
    world = make_world()
    world.die(71)
    assert world.worker().last_death.cause == "out_of_memory"
