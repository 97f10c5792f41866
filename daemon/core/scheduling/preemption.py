"""Which job is put aside at its next segment border for one that waits, and when it goes on.

A class is served by its weight also while one of its jobs is aside: charged is what was spoken of it, so a batch job
goes on as soon as the others have had their share, at least for one segment, and at once when nobody else waits."""

from __future__ import annotations

from ..context import Context
from ..jobs.job import Job
from ..jobs.job_table import JobTable
from ..jobs.queue import WaitingQueue
from ..workers.pool import Pool
from ..workers.worker import Worker, WorkerState
from .forecast import Forecast

#: Jobs that one worker may have put aside: each holds memory, and the first of them waits for all.
MAX_ASIDE = 3


class Preemption:
    """Decides it."""

    def __init__(
        self, context: Context, job_table: JobTable, queue: WaitingQueue, pool: Pool, forecast: Forecast
    ) -> None:
        self._context = context
        self._job_table = job_table
        self._queue = queue
        self._pool = pool
        self._forecast = forecast

    @property
    def possible(self) -> bool:
        """Whether there is a job that could be put aside."""
        if not self._context.settings.queue.preempt:
            return False
        return any(self._could_yield(worker) is not None for worker in self._pool.workers.values())

    def look(self, waiting: Job | None) -> None:
        """A job waits, and no worker is free for it: have one put its job aside, if that may be."""
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
            # Who hears a stream wants no gap in it: at most for what is more urgent than all that he asks for.
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
        """The job that a worker could put aside."""
        process = worker.process
        if worker.state is not WorkerState.BUSY or process.slots > 1 or process.replace_reason or process.to_suspend:
            return None
        if len(process.suspended) >= MAX_ASIDE or len(process.at_hand) != 1:
            return None
        job = self._job_table.live.get(process.at_hand[0])
        if job is None or job.ending is not None or not job.begun:
            return None
        # In its last segment it is done as soon as it could be put aside.
        last = job.segments > 0 and job.segment >= job.segments - 1
        return None if last else job

    def goes_before(self, waiting: Job, begun: Job) -> bool:
        """Whether a waiting job comes before the rest of one that is being spoken, or is put aside."""
        unspoken_s = begun.charged_s - begun.active_s(self._context.now)
        return self._queue.goes_before(waiting, begun, self._forecast.left_s(begun), unspoken_s=unspoken_s)

    def put_aside(self, job: Job) -> None:
        """A job stands still from now on: charged is what was spoken of it."""
        job.stop(self._context.now)
        job.suspended = True
        self._queue.settle(job)

    def resumed(self, job: Job) -> None:
        """A job goes on: the rest of it is charged for."""
        self._queue.go_on(job, self._forecast.left_s(job))


def _is_heard(job: Job) -> bool:
    return job.streams and any(subscriber.all_events for subscriber in job.subscribers)
