"""Puts an accepted job into the queue, and ends it when its deadline passes or can't be met."""

from __future__ import annotations

from glmtts.protocol.errors import ErrorCode

from ..jobs.job import Job
from ..state import State
from .completion import Completion

#: A standstill from this length on spoils the measured time of a job, in seconds.
_NOTABLE_S = 1.0


def enqueue(state: State, job: Job) -> None:
    """Put an accepted job into the queue; it may be started from now on."""
    context = state.context
    job.account.load = state.pool.engine.slots if state.pool.engine else 1
    job.account.cost_s = state.estimator.expect_s(job, job.account.load)
    state.queue.push(job)
    context.stir()
    if job.deadline_at is not None:
        # While it waits it is given up as soon as it can't be done in time any more.
        due = job.deadline_at - state.estimator.least_s(job)
        context.timers.set(("deadline", job.id), max(context.now, due))


def keep_apart(state: State, job: Job) -> None:
    """Keep an accepted job of whose text nothing can be spoken yet."""
    state.queue.keep_apart(job)
    if job.deadline_at is not None:
        state.context.timers.set(("deadline", job.id), job.deadline_at)


def age(state: State, seconds: float) -> None:
    """Make every live job older: time has passed for its client in which the daemon did not run."""
    timers = state.context.timers
    for job in state.job_table.live.values():
        job.accepted_at -= seconds
        job.attempt.stood_still |= job.attempt.begun and seconds >= _NOTABLE_S
        if job.attempt.first_audio_at is not None:
            job.attempt.first_audio_at -= seconds
        if job.deadline_at is not None:
            job.deadline_at -= seconds
            if (due := timers.due(("deadline", job.id))) is not None:
                timers.set(("deadline", job.id), due - seconds)
    state.queue.reorder()


def on_deadline(state: State, completion: Completion, id: str) -> None:
    """End a job that is not finished in the time that its client gave it, or can't be any more."""
    job = state.job_table.live.get(id)
    if job is None or job.ending is not None or job.deadline_at is None:
        return
    left_s = job.deadline_at - state.context.now
    begun = job.attempt.begun
    if left_s > 0.0 and begun:
        state.context.timers.set(("deadline", job.id), job.deadline_at)
        return
    if left_s > 0.0:
        needs = f"it takes about {job.account.latency_s:.1f} s, and only {left_s:.1f} s were left until its deadline"
        message = f"not started in time: {needs}"
    else:
        message = f"not finished within its deadline, which passed while it {'was spoken' if begun else 'waited'}"
    completion.fail(job, ErrorCode.DEADLINE_EXCEEDED, message)
