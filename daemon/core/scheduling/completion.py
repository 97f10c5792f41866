"""The end of a job: told to everybody who waits for it, once, and of a durable one not before the end is on disk."""

from __future__ import annotations

import msgspec

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import CancelJob

from ..effects import JournalEnd, SendStored, SettleOutput, Tell
from ..inputs import JournalEnded, ReplyTo
from ..jobs.job import Ending, Job
from ..jobs.job_table import KEY_HOLDS_S
from ..state import State

#: What those are told who wait for a durable job when the daemon ends.
_GOES_ON = "the daemon stops; the job is durable and goes on when it is started again: ask for it with 'wait'"


class Completion:
    """Ends jobs, and keeps their ends for a while for whoever asks again."""

    def __init__(self, state: State) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool, self._alerts = state.queue, state.pool, state.alerts
        #: Ended jobs by how they ended: ``done``, or the code of their error.
        self.outcomes: dict[str, int] = {}
        #: Durable jobs that were left for the next daemon.
        self.left = 0
        #: Outputs of jobs whose end was told, but is not on disk as the journal fails: an attempt of the next daemon
        #: has to know them.
        self._unsettled: dict[str, SettleOutput] = {}

    def fail(
        self,
        job: Job,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        """End a live job with an error, if it is not ending already; a worker that has it is told to leave it.

        ``reason`` is for the log, where ``message`` may quote what the client sent.
        """
        if job.ending is None:
            self._withdraw(job)
            self.fail_withdrawn(job, code, message, retry_after_s=retry_after_s, reason=reason)

    def _withdraw(self, job: Job) -> None:
        """The job waits no more, and nobody works on it."""
        if job in self._queue:
            self._queue.remove(job)
        elif (worker := self._pool.workers.get(job.attempt.worker or "")) is not None and job.id in worker.jobs:
            self._context.effects.append(Tell(worker.incarnation, CancelJob(job=job.id)))

    def fail_withdrawn(
        self,
        job: Job,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        """End a live job that is in no queue and on no worker."""
        event = events.Error.of("", code, message, job=job.id, retry_after_s=retry_after_s)
        self._context.log(
            "info" if code is ErrorCode.CANCELLED else "warning",
            "job ended in an error",
            job=job.id,
            **({"worker": job.attempt.worker} if job.attempt.worker else {}),
            client=job.client.key,
            code=code.value,
            reason=message if reason is None else reason,
        )
        if reason is not None and reason != message:
            self._context.log("debug", "what its client was told", job=job.id, worker=job.attempt.worker, told=message)
        self.end(job, Ending("cancelled" if code is ErrorCode.CANCELLED else "failed", event))

    def fail_waiting(self, code: ErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        """End all that wait, but for durable ones: these can wait for better times."""
        for job in list(self._queue):
            if not job.durable:
                self.fail(job, code, message, retry_after_s=retry_after_s)

    def refuse_if_unavailable(self) -> None:
        """Keep no client waiting for a worker that can't be had."""
        unavailable = self._pool.unavailable()
        self._alerts.set("unavailable", unavailable[0] if unavailable else "")
        if unavailable:
            reason, retry_after_s = unavailable
            self.fail_waiting(ErrorCode.UNAVAILABLE, reason, retry_after_s=retry_after_s)

    def end(self, job: Job, ending: Ending) -> None:
        """A job has ended, and is in no queue and on no worker any more."""
        context = self._context
        self._settle_account(job)
        job.ending = ending
        context.timers.cancel(("deadline", job.id))
        if not job.durable:
            self._tell(job, ending)
            return
        keep = context.settings.queue
        keep_s = max(keep.keep_durable_s, KEY_HOLDS_S) if job.request.key is not msgspec.UNSET else keep.keep_durable_s
        context.effects.append(
            JournalEnd(
                job=job.id,
                state=ending.state,
                event=ending.event,
                result=ending.result,
                expires_at=context.wall + keep_s,
                keep_bytes=keep.keep_durable_mib << 20,
            )
        )

    def _settle_account(self, job: Job) -> None:
        """Its client is charged for the time that it really took."""
        job.attempt.stop(self._context.now)
        self._queue.settle(job)

    def on_written(self, event: JournalEnded) -> None:
        """The end of a durable job is on disk; or it can't be yet, and nobody is kept waiting for that."""
        job = self._job_table.live.get(event.job)
        if job is not None and job.ending is not None:
            self._tell(job, job.ending, settle=not event.problem)
        elif not event.problem and (settle := self._unsettled.pop(event.job, None)) is not None:
            self._context.effects.append(settle)

    def wait_no_more(self) -> None:
        """The daemon has to end, and the disk does not answer: tell the ends that are not on it."""
        for job in list(self._job_table.live.values()):
            if job.ending is not None:
                self._context.log("warning", "end of a job is not on disk: it will be spoken again", job=job.id)
                self._tell(job, job.ending, settle=False)

    def _tell(self, job: Job, ending: Ending, *, settle: bool = True) -> None:
        context = self._context
        job.enter(ending.state)
        outcome = ending.event.code if isinstance(ending.event, events.Error) else "done"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if isinstance(ending.event, events.Done):
            context.counters.done(job, ending.event, context.now - job.accepted_at)
        context.stir()
        for subscriber in job.subscribers:
            self.send(subscriber.to, subscriber.id, ending, heard=subscriber.heard)
        if context.watched:
            context.publish(f"job.{ending.state}", job=job.id, outcome=outcome, worker=job.attempt.worker or None)
        if job.output_path and job.attempts:
            settled = SettleOutput(job.id, job.output_path, wanted=ending.state == "done")
            if settle:
                context.effects.append(settled)
            else:
                self._unsettled[job.id] = settled
        keep = context.settings.queue
        self._job_table.end(job, ending, context.now + keep.keep_results_s)
        if self._job_table.result_bytes > keep.keep_results_mib << 20 or ("expire", "") not in context.timers:
            self.expire()

    def send(self, to: ReplyTo, id: str, ending: Ending, *, heard: bool = False) -> None:
        """Tell somebody how a job ended, with its audio if it has any and he has not ``heard`` it as a stream."""
        if ending.result and isinstance(ending.event, events.Done) and not heard:
            event = msgspec.structs.replace(ending.event, id=id, chunks=msgspec.UNSET)
            self._context.effects.append(SendStored(to, event, ending.result))
        else:
            self._context.send(to, ending.event, ending.body, id=id)

    def leave(self, job: Job) -> None:
        """A durable job is left to the next daemon; who waits for it is told so."""
        self._withdraw(job)
        self._settle_account(job)
        self._context.timers.cancel(("deadline", job.id))
        for subscriber in job.subscribers:
            error = events.Error.of(subscriber.id, ErrorCode.SHUTTING_DOWN, _GOES_ON, job=job.id)
            self._context.send(subscriber.to, error)
        self.left += 1
        self._job_table.drop(job)

    def expire(self) -> None:
        """Forget what was kept for long enough."""
        again = self._job_table.expire(self._context.now, self._context.settings.queue.keep_results_mib << 20)
        if again is not None:
            # Not at every expiry by itself: a busy daemon would do nothing else.
            self._context.timers.set(("expire", ""), max(again, self._context.now + 1.0))
