"""How long a job may wait: into the queue, and out of it when its deadline can't be kept."""

from __future__ import annotations

from ..context import Context
from ..jobs.estimates import Estimator
from ..jobs.job import Job
from ..jobs.queue import WaitingQueue


def enqueue(context: Context, queue: WaitingQueue, estimator: Estimator, job: Job) -> None:
    """Put an accepted job into the queue; it may be started from now on."""
    job.cost_s = estimator.expect_s(job)
    queue.push(job)
    context.stir()
    if job.deadline_at is not None:
        # While it waits it is given up as soon as it can't be done in time any more.
        due = job.deadline_at - estimator.least_s(job)
        context.timers.set(("deadline", job.id), max(context.now, due))
