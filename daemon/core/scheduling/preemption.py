"""Which job is suspended for one that waits, and when it resumes.

A worker with one slot suspends its job at the next segment boundary, one with several at the next step of the engine.

A class is served by its weight also while one of its jobs is suspended: charged is what was spoken of it. So a batch
job resumes when the others have had their share, for at least one segment, and at once when no other job waits."""

from __future__ import annotations

from glmtts.protocol.worker import MAX_SUSPENDED

from ..jobs.job import Job
from ..state import State
from ..workers.worker import Worker, WorkerState
from .forecast import Forecast


class Preemption:
    """Suspends at most ``MAX_SUSPENDED`` jobs of each worker, and never one for a job of a lower class."""

    def __init__(self, state: State, forecast: Forecast) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._forecast = forecast

    @property
    def possible(self) -> bool:
        """Whether there is a job that could be suspended."""
        if not self._context.settings.queue.preempt:
            return False
        return any(self._could_yield(worker) for worker in self._pool.workers.values())

    def look(self, waiting: Job | None) -> None:
        """A job waits, and no worker is free for it: have one suspend its job, if that may be."""
        if waiting is None or not self._context.settings.queue.preempt:
            return
        asked = sum(len(worker.process.to_suspend) for worker in self._pool.workers.values())
        if asked >= self._queue.length(waiting.request.priority):
            return
        found: tuple[Worker, Job] | None = None
        most = (0, 0.0)
        for worker in self._pool.workers.values():
            for job in self._could_yield(worker):
                if not self.goes_before(waiting, job):
                    continue
                # A stream with a listener is suspended only for a higher class.
                if job.request.priority == waiting.request.priority and job.is_heard:
                    continue
                # The lowest class first, and in it the job that has the longest way to go.
                rank = (1 if job.request.priority == "batch" else 0, self._forecast.left_s(job))
                if rank > most:
                    found, most = (worker, job), rank
        if found is not None:
            worker, job = found
            self._pool.suspend(worker, job.id)

    def _could_yield(self, worker: Worker) -> list[Job]:
        """The jobs of which a worker could suspend one."""
        process = worker.process
        if worker.state is not WorkerState.BUSY or process.replace_reason or worker.name == self._pool.reserved:
            return []
        if self._suspended_for_others(worker) + len(process.to_suspend) >= MAX_SUSPENDED:
            return []
        # A job that lies ready would begin in the place of one that is suspended.
        at_hand = process.at_hand
        if len(at_hand) > process.slots or (process.slots == 1 and process.to_suspend):
            return []
        jobs = [self._job_table.live.get(id) for id in at_hand if id not in process.to_suspend]
        return [job for job in jobs if job is not None and self._goes_on(job)]

    @staticmethod
    def _goes_on(job: Job) -> bool:
        """Whether a job is being spoken, and will be after the next moment at which it can be suspended."""
        attempt = job.attempt
        if job.ending is not None or not attempt.begun:
            return False
        # In its last segment it is done as soon as a worker with one slot could suspend it.
        ends = attempt.slots == 1 and (job.pieces is None or job.pieces.complete)
        return not (ends and attempt.segments > 0 and attempt.segment >= attempt.segments - 1)

    def _suspended_for_others(self, worker: Worker) -> int:
        """How many jobs a worker has suspended for others; those that wait for text, or did, are bounded otherwise.

        With one slot a job is suspended between two segments, where its engine keeps little. So texts in pieces take
        turns there in any number.
        """
        live, process = self._job_table.live, worker.process
        jobs = [live.get(id) for id in process.suspended]
        return sum(job is None or job.pieces is None or (process.shares and job.attempt.gave_way) for job in jobs)

    def look_at_turns(self) -> None:
        """Have a running job give way to one whose text comes in pieces, which had to wait for it and now has some."""
        if not self._context.settings.queue.preempt:
            return
        for worker in self._pool.workers.values():
            process = worker.process
            if len(process.suspended) <= len(process.without_text) or process.to_suspend:
                continue
            first = self.next_suspended(worker)
            if first is None or first.pieces is None:
                continue
            begun = [job for job in self._could_yield(worker) if self._has_turn(first, job)]
            if begun:
                self._pool.suspend(worker, max(begun, key=self._forecast.left_s).id)

    def next_suspended(self, worker: Worker, *, batch: bool = True) -> Job | None:
        """The suspended job of a worker that resumes first: the last one, or where texts come in pieces, in turns.

        Without ``batch``, batch jobs do not resume.
        """
        live, process = self._job_table.live, worker.process
        jobs = [live[id] for id in process.suspended if id in live and id not in process.without_text]
        jobs = [job for job in jobs if job.ending is None and (batch or job.request.priority != "batch")]
        if any(job.pieces is not None for job in jobs):
            return min(jobs, key=self._queue.turn)
        return jobs[-1] if jobs else None

    def _has_turn(self, job: Job, begun: Job) -> bool:
        unspoken_s = begun.account.charged_s - begun.attempt.work_s(self._context.now)
        return self._queue.has_turn(job, begun, unspoken_s=unspoken_s)

    def goes_before(self, waiting: Job, begun: Job) -> bool:
        """Whether a waiting job comes before the rest of one that is being spoken, or is suspended."""
        if begun.pieces is not None and begun.attempt.suspended:
            alike = waiting.client.key == begun.client.key and waiting.request.priority == begun.request.priority
            return not alike and self._has_turn(waiting, begun)
        unspoken_s = begun.account.charged_s - begun.attempt.work_s(self._context.now)
        return self._queue.goes_before(waiting, begun, self._forecast.left_s(begun), unspoken_s=unspoken_s)

    def suspended(self, job: Job, *, without_text: bool = False) -> None:
        """A job stands still from now on: charged is what was spoken of it."""
        job.attempt.stop(self._context.now)
        job.attempt.suspended = True
        job.attempt.waits_for_text = without_text
        job.attempt.gave_way = not without_text
        self._queue.settle(job)

    def resumed(self, job: Job) -> None:
        """A job resumes: its client is charged for the remaining time."""
        self._queue.resume(job, self._forecast.left_s(job))
