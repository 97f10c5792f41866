"""Durable jobs: journalled before they are accepted, resumed by the next daemon, found when they have long ended."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from glmtts.protocol import events, requests
from glmtts.protocol.errors import ErrorCode, RequestError

from ..effects import JournalAdd, JournalFind
from ..inputs import (
    Client,
    JournalAdded,
    JournalChanged,
    JournalFound,
    JournalRemoved,
    JournalRow,
    ReplyTo,
    StoredLost,
)
from ..jobs.job import Ending, Job, Subscriber
from ..settings import QueueSettings
from ..state import State
from .completion import Completion
from .deadlines import enqueue

#: Ends of a daemon during one job after which that job counts as their cause. Mostly it is not: a daemon that is
#: killed often breaks off each job of its workers.
MAX_INTERRUPTIONS = 100
#: When a client may ask again whether the journal works.
_RETRY_S = 5.0
#: For how long no durable job is taken after a result could not be kept; then one may try.
UNKEPT_S = 30.0
#: What to do with a key whose result is gone: it stands for the same job for a day.
NEW_KEY = "; send the request with a new key to have it spoken again"
_NO_JOURNAL = "this daemon has no journal."


class DurableJobs:
    """Owns what waits for the disk. A durable job is accepted only when the journal has it."""

    def __init__(self, state: State, completion: Completion) -> None:
        self._state = state
        self._context, self._job_table, self._queue = state.context, state.job_table, state.queue
        self._alerts = state.alerts
        self._completion = completion
        #: Why no durable job is accepted, or ``""``.
        self.problem = _NO_JOURNAL
        #: Jobs that are not on disk yet, and the requests that are answered when they are.
        self._adding: dict[str, list[Subscriber]] = {}
        self.recovered = 0
        #: Why the last result of a durable job could not be kept, and until when no more are taken for that.
        self._unkept = ""
        self._unkept_until = 0.0
        #: Requests about jobs that are looked up in the journal.
        self._finding: set[tuple[ReplyTo, str]] = set()
        #: Jobs whose result would be lost, as it can't be kept and no request waits for it: they wait for the disk.
        self._waits_for_disk: dict[str, Job] = {}

    # --- the journal itself

    def check(self) -> None:
        """Refuse a durable job where the journal can't have it, or its result would be lost."""
        if self.problem:
            raise self._unavailable(self.problem)
        if self._unkept and self._context.now < self._unkept_until:
            raise self._unavailable(self._unkept)

    def is_accepted(self, job: Job) -> bool:
        """Whether a job is on disk, if it has to be."""
        return job.id not in self._adding

    def not_kept(self, job: Job, problem: str) -> bool:
        """The result of a durable job could not be written; returns whether it can be sent to a request instead.

        Otherwise it is lost: the job waits until results can be kept and is spoken once more. So does every waiting job
        that no request waits for.
        """
        self._unkept = f"results can't be kept: {problem}."
        self._unkept_until = self._context.now + UNKEPT_S
        self._alerts.set("results", f"{self._unkept} Durable jobs are refused; see [daemon] state_dir.")
        self._context.log(
            "error", "result of a durable job can't be kept", job=job.id, heard=bool(job.subscribers), reason=problem
        )
        for waiting in [waiting for waiting in self._queue if self._would_be_lost(waiting)]:
            self._queue.remove(waiting)
            self._completion.guarded(waiting, self._hold, waiting)
        return not self._would_be_lost(job)

    def _would_be_lost(self, job: Job) -> bool:
        return job.durable and not job.output_path and not job.subscribers and not self._queue.is_held(job)

    def wait_for_disk(self, job: Job) -> None:
        """Hold a job whose result was lost, and which is in no queue and on no worker, until it can be spoken again."""
        job.excused += 1
        # The stream has no listener any more: the speech is made whole.
        job.streams = False
        self._hold(job)

    def _hold(self, job: Job) -> None:
        self._queue.hold(job)
        self._waits_for_disk[job.id] = job
        if ("disk", "") not in self._context.timers:
            self._context.timers.set(("disk", ""), self._context.now + UNKEPT_S)

    def on_try_disk(self) -> None:
        """Start one of the jobs that wait for the disk, to find out whether it can be written to again."""
        if (job := self._next_for_disk()) is not None:
            self._completion.guarded(job, enqueue, self._state, job)
        if self._waits_for_disk:
            self._context.timers.set(("disk", ""), self._context.now + UNKEPT_S)

    def kept(self) -> None:
        """The result of a durable job was written."""
        if self._unkept:
            self._unkept = ""
            self._context.guarded(self._alerts.set, "results", "")
        while (job := self._next_for_disk()) is not None:
            self._completion.guarded(job, enqueue, self._state, job)

    def leave(self) -> None:
        """Leave the jobs that wait for the disk to the next daemon."""
        while (job := self._next_for_disk()) is not None:
            self._completion.guarded(job, self._completion.leave, job)

    def _next_for_disk(self) -> Job | None:
        """The first of them that was not cancelled meanwhile."""
        while self._waits_for_disk:
            job = self._waits_for_disk.pop(next(iter(self._waits_for_disk)))
            if job.ending is None and self._queue.is_held(job):
                return job
        self._context.timers.cancel(("disk", ""))
        return None

    @staticmethod
    def _unavailable(problem: str) -> RequestError:
        way_out = 'Send "durable": false to have it spoken anyway; a crash of the daemon then loses it.'
        message = f"durable: {problem.rstrip('.')}. {way_out}"
        return RequestError(ErrorCode.UNAVAILABLE, message, retry_after_s=_RETRY_S)

    def on_changed(self, event: JournalChanged) -> list[Job]:
        """The journal can be used now, or can't any more; returns jobs of an earlier daemon to be queued."""
        self.problem = event.problem
        self._context.guarded(self._alerts.set, "journal", event.problem)
        if event.rows:
            self._context.log("info", "durable jobs of an earlier daemon are queued again", jobs=len(event.rows))
        # No code that can raise comes after the jobs are in the table: this handler may be called again.
        found: list[Job] = []
        for row in event.rows:
            # After an exception the row stays in the journal, for the next daemon.
            self._context.guarded(self._recover, row, found)
        return found

    def _recover(self, row: JournalRow, found: list[Job]) -> None:
        context = self._context
        if self._job_table.find(row.job) is not None:
            return
        job = Job(
            id=row.job,
            client=Client.of(row.client, row.user),
            request=row.request,
            recording=row.recording,
            content=row.content,
            format=row.format,
            sample_rate=row.sample_rate,
            # A stream that was broken off has no listener: the speech is made whole, and kept for a ``wait``.
            streams=False,
            accepted_at=context.now - row.age_s,
            created=row.created,
            deadline_at=None if row.deadline_in_s is None else context.now + row.deadline_in_s,
            durable=True,
            attempts=row.attempts,
            excused=row.attempts,
            interrupted=row.attempts,
        )
        self.recovered += 1
        self._job_table.add(job)
        if row.attempts >= MAX_INTERRUPTIONS:
            message = f"the daemon ended {row.attempts} times during this job; it is not tried again"
            self._completion.fail_withdrawn(job, ErrorCode.WORKER_CRASHED, message)
        elif job.deadline_at is not None and job.deadline_at <= context.now:
            message = "not finished within its deadline, which passed while the daemon was down"
            self._completion.fail_withdrawn(job, ErrorCode.DEADLINE_EXCEEDED, message)
        else:
            found.append(job)

    # --- new jobs

    def add(self, job: Job, subscriber: Subscriber) -> None:
        """Journal a job; until that is done it is neither accepted nor started."""
        context = self._context
        row = JournalRow(
            job=job.id,
            client=job.client.key,
            user=job.client.user,
            request=job.request,
            content=job.content,
            format=job.format,
            sample_rate=job.sample_rate,
            created=job.created,
            deadline_in_s=None if job.deadline_at is None else job.deadline_at - context.now,
            recording=job.recording,
            text_length=len(job.request.text),
        )
        self._queue.hold(job)
        self._adding[job.id] = [subscriber]
        context.effects.append(JournalAdd(row))

    def hears_when_written(self, job: Job, subscriber: Subscriber) -> bool:
        """Answer one more request when a job is accepted; returns False if it is already."""
        if job.id not in self._adding:
            return False
        self._adding[job.id].append(subscriber)
        return True

    def on_added(self, event: JournalAdded) -> tuple[Job, list[Subscriber]] | None:
        """Return a job that is on disk and the requests to answer, unless it has ended; refuse one that is not."""
        subscribers = self._adding.pop(event.job, None)
        job = self._job_table.live.get(event.job)
        if subscribers is None or job is None or job.ending is not None:
            return None
        if not event.problem and event.known is None:
            return job, subscribers
        # It was never accepted: nothing is kept of it.
        subscribers = job.subscribers
        self._queue.remove(job)
        self._job_table.drop(job)
        self._job_table.forget_key(job)
        self._context.counters.withdrawn += 1
        error = self._unavailable(event.problem)
        for subscriber in subscribers:
            self._context.answer(subscriber.to, subscriber.id, self._answer_not_added, subscriber, job, event, error)
        return None

    def _answer_not_added(self, subscriber: Subscriber, job: Job, event: JournalAdded, error: RequestError) -> None:
        if event.known is not None:
            self._join(subscriber, job, event.known)
        else:
            after_s = error.retry_after_s
            self._context.refuse(subscriber.to, subscriber.id, error.code, error.message, retry_after_s=after_s)

    def _join(self, subscriber: Subscriber, job: Job, known: tuple[str, str]) -> None:
        """The same key again, of a job that only the journal remembers."""
        id, content = known
        if content != job.content:
            self._context.refuse(subscriber.to, subscriber.id, ErrorCode.BAD_REQUEST, key_taken(id))
            return
        if subscriber.all_events:
            self._context.send(
                subscriber.to, events.Accepted(id=subscriber.id, job=id, position=0, queue_size=len(self._queue))
            )
        self._look_up(subscriber.to, subscriber.wait_for(id), job.client.key)

    # --- jobs that only the journal remembers

    def find(self, to: ReplyTo, request: requests.Wait | requests.GetJob | requests.Cancel, client: str | None) -> bool:
        """Look in the journal for a job that is not in memory; returns whether there is a journal to look in.

        A journal that can't be written can mostly still be read.
        """
        if self.problem == _NO_JOURNAL:
            return False
        self._look_up(to, request, client)
        return True

    def _look_up(
        self, to: ReplyTo, request: requests.Wait | requests.GetJob | requests.Cancel, client: str | None
    ) -> None:
        self._finding.add((to, request.id))
        self._context.effects.append(JournalFind(to, request, client))

    def refuse_lookups(self) -> None:
        """Refuse the requests whose jobs are still being looked up: the daemon exits."""
        while self._finding:
            to, id = self._finding.pop()
            message = "the daemon is stopping; ask again when it has been started again"
            self._context.refuse(to, id, ErrorCode.SHUTTING_DOWN, message)

    def looked_up(self, to: ReplyTo, id: str) -> None:
        """The request does not wait for a lookup any more."""
        self._finding.discard((to, id))

    def on_found(self, event: JournalFound) -> None:
        """Answer with what the journal has."""
        request, row = event.request, event.row
        self.looked_up(event.to, request.id)
        assert isinstance(request, requests.Wait | requests.GetJob | requests.Cancel)
        if row is not None and row.event is None and not event.problem:
            # Left for the next daemon, or its end could not be written yet.
            message = f"job {row.job} has not ended yet; ask again in a moment"
            self._context.refuse(event.to, request.id, ErrorCode.UNAVAILABLE, message, retry_after_s=_RETRY_S)
        elif event.problem:
            message = f"job: {request.job} is not in memory, and the journal can't be read: {event.problem}"
            self._context.refuse(event.to, request.id, ErrorCode.UNAVAILABLE, message, retry_after_s=_RETRY_S)
        elif row is None and self._job_table.has_key_of(request.job, event.client):
            message = self._not_kept(request.job, by_key=True)
            self._context.refuse(event.to, request.id, ErrorCode.JOB_NOT_FOUND, message)
        elif row is None or row.event is None:
            message = no_such_job(request.job, self._context.settings.queue)
            message += "" if event.client is None else self._state.removals.words(event.client)
            self._context.refuse(event.to, request.id, ErrorCode.JOB_NOT_FOUND, message)
        elif isinstance(request, requests.Cancel):
            self._context.send(event.to, events.Result(id=request.id, values={"state": row.state, "job": row.job}))
        elif isinstance(request, requests.GetJob):
            info = _described(row, with_client=event.client is None)
            if _lost_result(row):
                info.note = removed_early(self._context.settings.queue.keep_durable_mib, "keep_durable_mib")
            self._context.send(event.to, events.JobAnswer(id=request.id, **msgspec.structs.asdict(info)))
        elif _lost_result(row):
            keep_mib = self._context.settings.queue.keep_durable_mib
            message = f"job {row.job} has ended, and {removed_early(keep_mib, 'keep_durable_mib')}"
            message += NEW_KEY if row.request.key is not UNSET else ""
            self._context.refuse(event.to, request.id, ErrorCode.JOB_NOT_FOUND, message)
        else:
            self._completion.send(event.to, request.id, Ending(row.state, row.event, result=row.result))

    def on_removed(self, event: JournalRemoved) -> None:
        """The journal was full, and rows or results of the client that held most were removed."""
        self._state.removals.note(event.table, event.client, event.count, shared=event.shared)
        self._context.stir()

    def on_lost(self, event: StoredLost) -> None:
        """A result, or a recording, that should be on disk is not, or can't be read."""
        if not event.job:
            message = "the recording of the voice can't be read any more: it may have been removed just now"
            self._context.log("warning", "recording can't be read", reason=event.problem)
            self._context.refuse(event.to, event.id, ErrorCode.VOICE_NOT_FOUND, message)
            return
        message = f"job {event.job} is done, but its result can't be read: {event.problem}"
        self._context.log("error", "result can't be read", job=event.job, reason=event.problem)
        self._context.refuse(event.to, event.id, ErrorCode.JOB_NOT_FOUND, message)

    def _not_kept(self, id: str, *, by_key: bool) -> str:
        keep = self._context.settings.queue
        return (
            f"job {id} has ended, and its result is not kept any more: results of durable jobs are kept for "
            f"{keep.keep_durable_s:g} s, {keep.keep_durable_mib} MiB of them in all, others for "
            f"{keep.keep_results_s:g} s, {keep.keep_results_mib} MiB{NEW_KEY if by_key else ''}"
        )

    @property
    def waiting(self) -> int:
        """Jobs that wait for the disk, before their acceptance or for room for their result."""
        return len(self._adding) + len(self._waits_for_disk)

    def describe(self) -> dict[str, object]:
        """The journal as ``status`` shows it."""
        unfinished = self._job_table.durable
        return {"ok": not self.problem, "problem": self.problem, "unfinished": unfinished, "recovered": self.recovered}


def no_such_job(id: str, keep: QueueSettings) -> str:
    """The error for a job that is unknown, was forgotten, or is another client's."""
    return (
        f"job: there is no job {id!r} of yours; a job is known for {keep.keep_results_s:g} s after its end, a durable "
        f"one for {keep.keep_durable_s:g} s"
    )


def key_taken(id: str) -> str:
    """The error for an idempotency key that is used for two different jobs."""
    return f"key: it belongs to job {id}, which had another request; use a new key"


def removed_early(keep_mib: int, key: str) -> str:
    """Why the result of an ended job was removed before its time, and what its client can do about that."""
    return (
        f"its result is not kept any more: the results of all clients took more than {keep_mib} MiB ([queue] {key}), "
        "and yours took the most, so it was removed early; fetch results sooner"
    )


def _lost_result(row: JournalRow) -> bool:
    """Whether the result of a job that is done was removed to make room."""
    return isinstance(row.event, events.Done) and not row.result and row.event.path is UNSET


def _described(row: JournalRow, *, with_client: bool) -> events.JobInfo:
    """A job of the journal as clients and operators see it."""
    info = events.JobInfo(
        job=row.job,
        state=row.state,
        priority=row.request.priority,
        created=row.created,
        attempts=row.attempts,
        text_length=row.text_length,
        durable=True,
        output=row.request.output,
        key=row.request.key,
    )
    if with_client:
        info.client, info.user = row.client, row.user
    if isinstance(row.event, events.Error):
        info.code, info.message = row.event.code, row.event.message
    elif row.event is not None:
        done = row.event
        info.audio_s, info.synthesis_s, info.waited_s = round(done.audio_s, 3), done.synthesis_s, done.waited_s
    return info
