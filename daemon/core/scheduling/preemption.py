"""Which job is suspended at its next segment boundary for one that waits, and when it resumes.

A class is served by its weight also while one of its jobs is suspended: charged is what was spoken of it. So a batch
job resumes when the others have had their share, for at least one segment, and at once when no other job waits."""

from __future__ import annotations

from ..jobs.job import Job
from ..state import State
from ..workers.worker import Worker, WorkerState
from .forecast import Forecast

#: Jobs that one worker may have suspended: each holds memory, and the first of them waits for all.
MAX_SUSPENDED = 3


class Preemption:
    """Suspends at most one job of each worker at a time, and never for a job of a lower class."""

    def __init__(self, state: State, forecast: Forecast) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._forecast = forecast

    @property
    def possible(self) -> bool:
        """Whether there is a job that could be suspended."""
        if not self._context.settings.queue.preempt:
            return False
        return any(self._could_yield(worker) is not None for worker in self._pool.workers.values())

    def look(self, waiting: Job | None) -> None:
        """A job waits, and no worker is free for it: have one suspend its job, if that may be."""
        if waiting is None or not self._context.settings.queue.preempt:
            return
        asked = sum(bool(worker.process.to_suspend) for worker in self._pool.workers.values())
        if asked >= self._queue.length(waiting.request.priority):
            return
        found: tuple[Worker, Job] | None = None
        most = (0, 0.0)
        for worker in self._pool.workers.values():
            job = self._could_yield(worker)
            if job is None or not self.goes_before(waiting, job):
                continue
            # A stream with a listener is suspended only for a higher class.
            if job.request.priority == waiting.request.priority and _is_heard(job):
                continue
            # The lowest class first, and in it the job that has the longest way to go.
            rank = (1 if job.request.priority == "batch" else 0, self._forecast.left_s(job))
            if rank > most:
                found, most = (worker, job), rank
        if found is not None:
            worker, job = found
            self._pool.suspend(worker, job.id)

    def _could_yield(self, worker: Worker) -> Job | None:
        """The job that a worker could suspend."""
        process = worker.process
        if worker.state is not WorkerState.BUSY or process.slots > 1 or process.replace_reason or process.to_suspend:
            return None
        if len(process.suspended) >= MAX_SUSPENDED or len(process.at_hand) != 1:
            return None
        job = self._job_table.live.get(process.at_hand[0])
        if job is None or job.ending is not None or not job.attempt.begun:
            return None
        # In its last segment it is done as soon as it could be suspended.
        last = job.attempt.segments > 0 and job.attempt.segment >= job.attempt.segments - 1
        return None if last else job

    def goes_before(self, waiting: Job, begun: Job) -> bool:
        """Whether a waiting job comes before the rest of one that is being spoken, or is suspended."""
        unspoken_s = begun.account.charged_s - begun.attempt.active_s(self._context.now)
        return self._queue.goes_before(waiting, begun, self._forecast.left_s(begun), unspoken_s=unspoken_s)

    def suspended(self, job: Job) -> None:
        """A job stands still from now on: charged is what was spoken of it."""
        job.attempt.stop(self._context.now)
        job.attempt.suspended = True
        self._queue.settle(job)

    def resumed(self, job: Job) -> None:
        """A job resumes: its client is charged for the remaining time."""
        self._queue.resume(job, self._forecast.left_s(job))


def _is_heard(job: Job) -> bool:
    return job.streams and any(subscriber.all_events for subscriber in job.subscribers)
