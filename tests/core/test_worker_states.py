"""A worker is only ever in a state that its table allows, and nothing of a process outlives it."""

from __future__ import annotations

import pytest

from glmtts.daemon.core.jobs.job import IllegalTransition
from glmtts.daemon.core.workers.process import Process
from glmtts.daemon.core.workers.worker import SERVING, TRANSITIONS, WITH_PROCESS, Worker, WorkerState
from glmtts.protocol.worker import Memory, Ready

READY = Ready(
    engine="e", engine_version="1", sample_rates=[24_000], voices=[], default_voice="", clones_voices=False, slots=2,
    load_s=1.0, warmup_s=1.0, memory=Memory(rss=1),
)  # fmt: skip


def test_every_state_can_be_left_and_reached() -> None:
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(WorkerState) == set(TRANSITIONS)
    assert all(TRANSITIONS[state] for state in WorkerState)
    assert SERVING < WITH_PROCESS


def test_a_fault_is_never_forgotten_on_the_way_to_the_next_start() -> None:
    # A failed process is followed by a backoff; one that ends in good order never is.
    assert TRANSITIONS[WorkerState.FAILED] == {WorkerState.BACKOFF, WorkerState.STOPPED}
    assert all(WorkerState.BACKOFF not in following for state, following in TRANSITIONS.items() if state != "failed")
    # Only a worker without a process, or with one that is gone, starts another.
    for state, following in TRANSITIONS.items():
        assert WorkerState.STARTING not in following or state not in WITH_PROCESS or state is WorkerState.STOPPING


@pytest.mark.parametrize("state", list(WorkerState))
def test_a_transition_that_the_table_does_not_have_raises_and_changes_nothing(state: WorkerState) -> None:
    for following in WorkerState:
        worker = Worker(name="w0", gpu=None, state=state)
        if following in TRANSITIONS[state]:
            worker.enter(following)
            assert worker.state is following
        else:
            with pytest.raises(IllegalTransition, match=f"w0: {state} -> {following}"):
                worker.enter(following)
            assert worker.state is state


def test_the_first_jobs_are_begun_and_the_others_lie_ready() -> None:
    process = Process(ready=READY)
    assert [process.take(job, 1.0) for job in ("a", "b", "c")] == [True, True, False]
    assert (list(process.begun), set(process.moved)) == (["a", "b"], {"a", "b"})
    process.give_back("a")
    assert process.begin_ready(2.0) == ["b", "c"]
    assert process.moved == {"b": (1.0, -1), "c": (2.0, -1)}


def test_a_suspended_job_frees_its_slot_and_is_not_watched() -> None:
    process = Process(ready=READY)
    for job in ("a", "b"):
        process.take(job, 1.0)
    process.to_suspend.add("a")
    process.suspend("a")
    assert process.may_resume and list(process.begun) == ["b"] and set(process.moved) == {"b"}
    process.resume("a", 3.0)
    assert not process.may_resume and process.moved["a"] == (3.0, -1)
    assert process.give_up_jobs() == ["a", "b"]
    assert not process.jobs and not process.moved


def test_suspended_jobs_are_watched_while_there_is_no_other() -> None:
    process = Process(ready=READY)
    for job in ("a", "b", "c"):
        process.take(job, 1.0)
        process.suspend(job)
    process.begin_ready(2.0)
    assert set(process.moved) == {"a", "b", "c"}
    process.take("d", 3.0)
    assert process.moved == {"d": (3.0, -1)}
    process.give_back("d")
    process.begin_ready(4.0)
    process.resume("b", 5.0)
    assert process.moved == {"b": (5.0, -1)}


def test_a_beat_that_repeats_its_number_is_no_progress() -> None:
    process = Process(ready=READY)
    process.take("a", 1.0)
    process.progressed("a", 2.0, 5)
    process.progressed("a", 3.0, 5)
    assert process.moved["a"] == (2.0, 5)
    process.progressed("a", 4.0)
    assert process.moved["a"] == (4.0, 5)
