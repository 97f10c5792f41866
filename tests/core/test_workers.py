"""What holds of a worker in each state, and that nothing of a process outlives it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from glmtts.daemon.core.jobs.job import IllegalTransition
from glmtts.daemon.core.workers.gpu_attribution import Share
from glmtts.daemon.core.workers.worker import NOBODY_KNOWS, SERVING, TRANSITIONS, WITH_PROCESS, Worker, WorkerState
from glmtts.protocol.worker import Memory, Ready

READY = Ready(
    engine="e", engine_version="1", sample_rates=[24_000], voices=[], default_voice="", clones_voices=False, slots=2,
    load_s=1.0, warmup_s=1.0, memory=Memory(rss=1),
)  # fmt: skip


def test_every_state_can_be_left_and_reached() -> None:
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(WorkerState)
    assert all(TRANSITIONS[state] for state in WorkerState)
    assert SERVING < WITH_PROCESS


def test_a_fault_is_never_forgotten_on_the_way_to_the_next_start() -> None:
    # Whatever failed backs off first; what ended in good order never does.
    assert TRANSITIONS[WorkerState.FAILED] == {WorkerState.BACKOFF, WorkerState.STOPPED}
    assert all(WorkerState.BACKOFF not in following for state, following in TRANSITIONS.items() if state != "failed")


@pytest.mark.parametrize("state", list(WorkerState))
def test_only_what_the_table_has_is_possible(state: WorkerState) -> None:
    for following in WorkerState:
        worker = Worker(name="w0", gpu=None, state=state)
        if following in TRANSITIONS[state]:
            worker.enter(following)
            assert worker.state is following
        else:
            with pytest.raises(IllegalTransition):
                worker.enter(following)
            assert worker.state is state


def test_the_first_jobs_are_begun_and_the_others_lie_ready() -> None:
    worker = Worker(name="w0", gpu=None, ready=READY, jobs=["a", "b", "c"])
    assert list(worker.begun) == ["a", "b"]
    worker.ready = None
    assert list(worker.begun) == ["a"]


def test_a_worker_is_fresh_until_its_process_gets_a_job() -> None:
    worker = Worker(name="w0", gpu=None, state=WorkerState.READY)
    assert worker.fresh
    worker.jobs_taken = 1
    assert not worker.fresh


def test_nothing_of_a_process_holds_for_the_next_but_the_history_of_its_place() -> None:
    fresh = Worker(name="w0", gpu=1)
    history = {"jobs_done_in_all": 7, "restarts": 3, "faults": 2, "renewing": True, "replaces": "w1"}
    used = replace(
        fresh, pid=1, ready=READY, jobs=["a"], moved={"a": (1.0, 2)}, leaves_at_once=True, stuck=True, reason="why",
        kills=4, trimmed=True, jobs_taken=5, jobs_done=4, memory=Memory(rss=5), share=Share(1, "process"),
        process_state="D", busy_vram=[1, 2], **history,
    )  # fmt: skip
    before = used.watch
    used.clear_process()
    assert used.watch is not before
    assert used.share is NOBODY_KNOWS
    assert replace(used, watch=fresh.watch) == replace(fresh, **history)
