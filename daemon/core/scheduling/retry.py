"""What becomes of the jobs of a worker that died: another attempt, quarantine, or the end."""

from __future__ import annotations

from collections.abc import Collection

from glmtts.protocol.errors import ErrorCode

from ..context import Context
from ..exit_causes import POLICIES, Cause
from ..jobs.job import Job
from ..jobs.job_table import JobTable, content_digest
from ..jobs.queue import WaitingQueue
from ..workers.process import ExitReason
from .completion import Completion
from .quarantine import Quarantine


class Retries:
    """Decides them, and remembers of which contents workers died."""

    def __init__(self, context: Context, job_table: JobTable, queue: WaitingQueue, completion: Completion) -> None:
        self._context = context
        self._job_table = job_table
        self._queue = queue
        self._completion = completion
        self.quarantine = Quarantine()

    @staticmethod
    def content(job: Job) -> str:
        """The digest of a live job's content."""
        job.content = job.content or content_digest(job.request, job.recording)
        return job.content

    def deaths_of(self, content: str) -> int:
        """How many workers died of this content, where that is too many; else 0."""
        limit = self._context.settings.workers.restart.quarantine_after
        deaths = self.quarantine.deaths(content, self._context.now)
        return deaths if limit and deaths >= limit else 0

    def quarantined_count(self) -> int:
        """How many contents are refused."""
        limit = self._context.settings.workers.restart.quarantine_after
        return self.quarantine.count(self._context.now, limit) if limit else 0

    def refuse_quarantined(self, job: Job) -> bool:
        """End a job that was taken out of the queue if jobs of its content killed workers meanwhile."""
        if not self.quarantine or not (deaths := self.deaths_of(self.content(job))):
            return False
        self._completion.fail_withdrawn(job, ErrorCode.QUARANTINED, quarantine_message(deaths))
        return True

    def decide(self, death: ExitReason, jobs: list[str], culprits: Collection[str] | None = None) -> None:
        """A worker died with these jobs.

        ``culprits``: those that may be to blame, where it is known; else each that it was working on may be.
        """
        had = [self._job_table.live.get(id) for id in jobs]
        affected: list[Job] = []
        for job in had:
            if job is None or job.state != "running" or job.ending is not None:
                continue
            if job.begun:
                affected.append(job)
            else:
                # It had lain ready in the worker: neither is it to blame, nor was that an attempt.
                self._wait_again(job)
        policy = POLICIES[death.cause]
        if policy.blames_job:
            self._blame(
                [job for job in affected if not job.suspended and (culprits is None or job.id in culprits)], death
            )
        for job in affected:
            if job.suspended:
                # The worker died of another one.
                job.excused += 1
            self._after_death(job, death)

    def _blame(self, jobs: list[Job], death: ExitReason) -> None:
        """Count a worker's death against what it was speaking."""
        holds_s = self._context.settings.workers.restart.quarantine_s
        for job in {self.content(job): job for job in jobs}.values():
            self.quarantine.blame(
                self.content(job),
                self._context.now,
                holds_s,
                cause=death.cause.value,
                detail=death.detail,
                client=job.client.key,
                job=job.id,
            )

    def _after_death(self, job: Job, death: ExitReason) -> None:
        """Another attempt for a job whose worker died, or its end."""
        policy = POLICIES[death.cause]
        tried = job.attempts - job.excused
        attempts_left = tried < self._context.settings.workers.restart.max_attempts and not job.audio_was_sent
        deaths = self.deaths_of(self.content(job)) if policy.blames_job else 0
        out_of_memory = death.cause is Cause.OUT_OF_MEMORY and not job.suspended
        if attempts_left and deaths:
            message = f"{quarantine_message(deaths)}; the last: {death.detail}"
            self._completion.fail(job, ErrorCode.QUARANTINED, message)
        elif attempts_left and not (out_of_memory and job.needs_fresh):
            job.needs_fresh = job.needs_fresh or out_of_memory
            died = job.worker
            self._wait_again(job)
            self._context.log("info", "job waits for another attempt", job=job.id, worker=died, after=death.detail)
        else:
            notes = ""
            if job.audio_was_sent:
                notes = "; a part of it had been sent, so it was not started again"
            elif out_of_memory and job.needs_fresh:
                notes = ", and so did the one before; a shorter text may fit"
            # What the worker died of was not the job that it had put aside.
            code = ErrorCode.WORKER_CRASHED if job.suspended else policy.code
            self._completion.fail(job, code, f"the worker failed ({death.detail}){notes}")

    def _wait_again(self, job: Job) -> None:
        """Back to the front of the queue."""
        self.take_back(job)
        self._queue.push(job, front=True)

    def take_back(self, job: Job) -> None:
        """It is as if the job had not been begun, but that its client is charged for the time that it has had."""
        job.enter("waiting")  # running -> waiting
        job.stop(self._context.now)
        self._queue.settle(job)
        job.charged_s = job.settled_s = job.earlier_s = job.border_s = 0.0
        job.worker = None
        job.begun = job.suspended = False
        job.segment = job.segments = 0
        job.audio_s = 0.0
        job.told_position = -1


def quarantine_message(deaths: int) -> str:
    """What a client is told of a content that is not tried again."""
    return f"{deaths} workers died of this very job lately; it is not tried again"
