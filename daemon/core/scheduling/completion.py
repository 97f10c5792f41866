"""The end of a job: sent once to every request that waits for it; of a durable job when the end is on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import KEY_HOLDS_S
from glmtts.protocol.worker import CancelJob

from ..context import INTERNAL_ERROR
from ..effects import Effect, JournalEnd, MeasureOutputs, Send, SendStored, SettleOutput, Tell
from ..inputs import JournalEnded, ReplyTo
from ..jobs.job import Ending, Job
from ..state import State
from ..workers.worker import Worker
from .output_shares import OutputShares

#: The error for requests that wait for a durable job when the daemon ends.
_LEFT = "the daemon stops; the job is durable and resumes when the daemon is started again: ask for it with 'wait'"


class Completion:
    """Ends every job exactly once, and counts how jobs ended."""

    def __init__(self, state: State, output_shares: OutputShares) -> None:
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool, self._alerts = state.queue, state.pool, state.alerts
        self._output_shares = output_shares
        #: Ended jobs by how they ended: ``done``, or the code of their error.
        self.outcomes: dict[str, int] = {}
        #: Durable jobs that were left for the next daemon.
        self.left = 0
        #: Outputs of jobs whose end was sent, but is not on disk as the journal fails: an attempt of the next daemon
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
        """End a live job with an error, if it is not ending already; a worker that has it gets a cancel.

        ``reason`` is for the log, where ``message`` may quote what the client sent.
        """
        if job.ending is None and job.id in self._job_table.live:
            cancel = self._withdraw(job)
            self._end_in_error(job, code, message, retry_after_s)
            self._context.effects.extend(cancel)
            self._log_error(job, code, message, reason)

    def _withdraw(self, job: Job) -> list[Effect]:
        """Take a job out of the queue; returns the effect that cancels it in a worker."""
        if job in self._queue:
            self._queue.remove(job)
        elif (worker := self._worker_of(job)) is not None:
            self._pool.expect_end(worker, job.id)
            return [Tell(worker.incarnation, CancelJob(job=job.id))]
        return []

    def _worker_of(self, job: Job) -> Worker | None:
        worker = self._pool.workers.get(job.attempt.worker)
        return worker if worker is not None and job.id in worker.jobs else None

    def guarded(self, job: Job, act: Callable[..., object], *arguments: Any) -> None:
        """Call a part of a step that concerns one job. An exception in it ends this job, and no other."""
        if not self._context.guarded(act, *arguments):
            self.fail(job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def end_lost(self) -> None:
        """End the jobs that an exception has left in no queue and on no worker."""
        for job in list(self._job_table.live.values()):
            placed = job in self._queue if job.state == "waiting" else self._worker_of(job) is not None
            if not placed:
                self._context.guarded(self.fail, job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

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
        self._end_in_error(job, code, message, retry_after_s)
        self._log_error(job, code, message, reason)

    def _end_in_error(self, job: Job, code: ErrorCode, message: str, retry_after_s: float | None) -> None:
        event = events.Error.of("", code, message, job=job.id, retry_after_s=retry_after_s)
        self.end(job, Ending("cancelled" if code is ErrorCode.CANCELLED else "failed", event))

    def _log_error(self, job: Job, code: ErrorCode, message: str, reason: str | None) -> None:
        worker = {"worker": job.attempt.worker} if job.attempt.worker else {}
        self._context.log(
            "info" if code is ErrorCode.CANCELLED else "warning",
            "job ended in an error",
            job=job.id,
            **worker,
            client=job.client.key,
            code=code.value,
            reason=message if reason is None else reason,
        )
        if reason is not None and reason != message:
            self._context.log("debug", "error sent to the client", job=job.id, message_sent=message)

    def fail_waiting(self, code: ErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        """End every waiting job that is not durable: durable ones can wait for better times."""
        for job in list(self._queue):
            if not job.durable:
                self.guarded(job, partial(self.fail, job, code, message, retry_after_s=retry_after_s))

    def refuse_if_unavailable(self) -> None:
        """Keep no client waiting for a worker that can't be had."""
        unavailable = self._pool.unavailable()
        if unavailable:
            reason, retry_after_s = unavailable
            self.fail_waiting(ErrorCode.UNAVAILABLE, reason, retry_after_s=retry_after_s)
        self._alerts.set("unavailable", unavailable[0] if unavailable else "")

    def end(self, job: Job, ending: Ending) -> None:
        """A job has ended, and is in no queue and on no worker any more."""
        context = self._context
        context.guarded(self._settle_account, job)
        if not job.durable:
            self._tell(job, ending)
            return
        keep = context.settings.queue
        keep_s = max(keep.keep_durable_s, KEY_HOLDS_S) if job.request.key is not msgspec.UNSET else keep.keep_durable_s
        written = JournalEnd(
            job=job.id,
            state=ending.state,
            event=ending.event,
            result=ending.result,
            keep_s=keep_s,
            keep_bytes=keep.keep_durable_mib << 20,
            keep_free=context.settings.limits.disk_reserve_mib << 20,
        )
        context.timers.cancel(("deadline", job.id))
        job.ending = ending
        context.effects.append(written)

    def _settle_account(self, job: Job) -> None:
        """Charge its client for the time that it really took."""
        job.attempt.stop(self._context.now)
        self._queue.settle(job)

    def on_written(self, event: JournalEnded) -> None:
        """The end of a durable job is on disk; or it can't be yet, and its clients don't wait for that."""
        job = self._job_table.live.get(event.job)
        if job is not None and job.ending is not None:
            self._tell(job, job.ending, settle=not event.problem)
        elif not event.problem and (settle := self._unsettled.pop(event.job, None)) is not None:
            self._context.effects.append(settle)

    def wait_no_more(self) -> None:
        """The daemon has to end, and the disk does not answer: send the ends that are not on it."""
        for job in list(self._job_table.live.values()):
            if job.ending is not None:
                self._context.guarded(partial(self._tell, job, job.ending, settle=False))
                self._context.log("warning", "end of a job is not on disk: it will be spoken again", job=job.id)

    def _tell(self, job: Job, ending: Ending, *, settle: bool = True) -> None:
        context = self._context
        # Code that can raise comes before the job ends, or after every subscriber has its last event.
        told: list[Effect] = [_last_event(s.to, s.id, ending, heard=s.heard) for s in job.subscribers]
        outcome = ending.event.code if isinstance(ending.event, events.Error) else "done"
        if job.output_path and job.attempts:
            settled = SettleOutput(job.id, job.output_path, wanted=ending.state == "done", client=job.client.key)
            if isinstance(ending.event, events.Done):
                context.guarded(self._output_shares.wrote, job.client, ending.event.bytes or 0)
            elif outcome == ErrorCode.OUTPUT_FAILED:
                told.append(MeasureOutputs())
            if settle:
                told.append(settled)
            else:
                self._unsettled[job.id] = settled
        keep = context.settings.queue
        job.enter(ending.state)
        job.ending = ending
        context.timers.cancel(("deadline", job.id))
        if job.pieces is not None:
            context.timers.cancel(("text", job.id))
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self._job_table.end(job, ending, context.now + keep.keep_results_s)
        if self._job_table.result_bytes > keep.keep_results_mib << 20 or ("expire", "") not in context.timers:
            context.guarded(self.expire)
        context.effects.extend(told)
        if isinstance(ending.event, events.Done):
            context.counters.done(job, ending.event, context.now - job.accepted_at)
        context.stir()
        if context.watched:
            context.publish(f"job.{ending.state}", job=job.id, outcome=outcome, worker=job.attempt.worker or None)

    def send(self, to: ReplyTo, id: str, ending: Ending) -> None:
        """Send the last event of a job that has ended, with its audio if it has any."""
        self._context.effects.append(_last_event(to, id, ending))

    def leave(self, job: Job) -> None:
        """Leave a durable job to the next daemon; requests that wait for it get an error that says so."""
        error = events.Error.of("", ErrorCode.SHUTTING_DOWN, _LEFT, job=job.id)
        told: list[Effect] = [Send(s.to, error, None, s.id) for s in job.subscribers]
        told += self._withdraw(job)
        self._context.guarded(self._settle_account, job)
        self._context.timers.cancel(("deadline", job.id))
        self.left += 1
        self._job_table.drop(job)
        self._context.effects.extend(told)

    def expire(self) -> None:
        """Forget what was kept for long enough."""
        again = self._job_table.expire(self._context.now, self._context.settings.queue.keep_results_mib << 20)
        if again is not None:
            # Not at every expiry by itself: a busy daemon would do nothing else.
            self._context.timers.set(("expire", ""), max(again, self._context.now + 1.0))


def _last_event(to: ReplyTo, id: str, ending: Ending, *, heard: bool = False) -> Send | SendStored:
    """The last event of a job, with its audio if it has any and this client has not ``heard`` it as a stream."""
    if ending.result and isinstance(ending.event, events.Done) and not heard:
        return SendStored(to, msgspec.structs.replace(ending.event, id=id, chunks=msgspec.UNSET), ending.result)
    return Send(to, ending.event, ending.body, id)
