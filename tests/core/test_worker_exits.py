"""What a death means: who has to wait for it, who is blamed, and what the client is told."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import inputs
from glmtts.daemon.core.exit_causes import POLICIES, Cause
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World

NO_FAULT = {Cause.REQUESTED, Cause.OPERATOR, Cause.RECYCLED, Cause.LEAK, Cause.UNLOADED}


def test_every_cause_has_a_policy_and_only_faults_make_anybody_wait() -> None:
    assert set(POLICIES) == set(Cause)
    assert {cause for cause, policy in POLICIES.items() if not policy.fault} == NO_FAULT


def test_nobody_is_blamed_for_what_is_no_fault_nor_for_memory_that_others_took() -> None:
    blamed = {cause for cause, policy in POLICIES.items() if policy.blames_job}
    assert blamed == {Cause.CRASHED, Cause.CUDA_CONTEXT, Cause.HUNG, Cause.PROTOCOL}


@pytest.mark.parametrize(
    ("returncode", "oom_killed", "cause", "code"),
    [
        (-11, False, "crashed", "worker_crashed"),
        (3, False, "crashed", "worker_crashed"),
        (-9, True, "host_oom", "worker_crashed"),
        (71, False, "out_of_memory", "out_of_memory"),
        (72, False, "cuda_context", "worker_crashed"),
        (73, False, "gpu_lost", "worker_crashed"),
    ],
)
def test_a_client_is_told_what_its_worker_died_of(
    make_world: MakeWorld, returncode: int, oom_killed: bool, cause: str, code: str
) -> None:
    world = make_world(workers={"restart": {"max_attempts": 1}})
    world.ready()
    id = world.request()
    world.step(inputs.ProcessEnded(world.incarnation(), returncode, oom_killed=oom_killed))
    assert world.death().cause == cause
    assert world.last(id).code == code


@pytest.mark.parametrize(("code", "cause"), [("out_of_memory", "out_of_memory"), ("cuda_context", "cuda_context")])
def test_what_a_worker_says_of_its_end_counts_more_than_how_it_ends(world: World, code: str, cause: str) -> None:
    job = world.job(world.request())
    world.say(wire.Failed(job=job, code=code, message="of a text", reason="in its own words", fatal=True))
    assert world.states() == ["failed"]
    world.die(-9)
    assert world.death().cause == cause
    assert world.death().detail == "in its own words"


def test_a_process_that_cannot_load_for_want_of_memory_is_no_failed_start(make_world: MakeWorld) -> None:
    world = make_world()
    world.die(71)
    assert world.death().cause == "out_of_memory"
