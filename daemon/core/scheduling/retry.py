"""Jobs of a worker that died: each is retried, quarantined, or ended.

A death counts against a job that was alone in the process, or is known to be the cause. Where several may be, all of
them are suspects: none is blamed, and each gets a worker to itself from then on. A death there is its own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

from msgspec import Struct

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode

from ..effects import ReadRecorder, Send
from ..exit_causes import POLICIES, Cause
from ..jobs.job import Attempt, Job
from ..jobs.job_table import content_digest
from ..shares import Removals, SharedRows
from ..state import State
from ..workers.process import ExitReason, Process
from ..workers.worker import Worker
from .completion import Completion

#: Contents that are remembered.
_MAX_ENTRIES = 1_000
#: A job beside which others killed their workers this often gets a worker to itself, so that it comes to an end.
_OFTEN = 3


class Entry(Struct):
    """Deaths of workers by one content: ``expires_at`` on the core's clock, and the last death in words."""

    deaths: int
    expires_at: float
    cause: str = ""
    detail: str = ""
    client: str = ""
    job: str = ""


class Quarantine:
    """Counts the workers that died of a content, until ``holds_s`` after the last one.

    A content counts for the client of the job that a worker died of last.
    """

    def __init__(self, removals: Removals | None = None) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._of_client: SharedRows[str] = SharedRows()
        self._removals = removals or Removals()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def blame(
        self,
        digest: str,
        now: float,
        holds_s: float,
        *,
        cause: str = "",
        detail: str = "",
        client: str = "",
        job: str = "",
    ) -> int:
        """Count one more worker that died of a content; returns their number."""
        count = self.deaths(digest, now) + 1
        self._drop(digest)
        self._entries[digest] = Entry(count, now + holds_s, cause, detail, client, job)
        self._of_client.add(client, digest)
        if len(self._entries) > _MAX_ENTRIES:
            loser, oldest = self._of_client.first_out()
            self._removals.note("quarantine", loser, shared=len(self._of_client.shares) > 1)
            self._drop(oldest)
        return count

    def _drop(self, digest: str) -> bool:
        entry = self._entries.pop(digest, None)
        return entry is not None and self._of_client.remove(entry.client, digest)

    def deaths(self, digest: str, now: float) -> int:
        """The number of workers that died of a content lately."""
        entry = self._entries.get(digest)
        if entry is not None and entry.expires_at <= now:
            self._drop(digest)
            return 0
        return entry.deaths if entry is not None else 0

    def clear(self, digest: str) -> bool:
        """Forget the deaths of a content, after it was spoken or by an operator; returns whether there were any."""
        return self._drop(digest)

    def clear_all(self) -> int:
        """Forget all; returns how many there were."""
        count = len(self._entries)
        for digest in list(self._entries):
            self._drop(digest)
        return count

    def count(self, now: float, at_least: int) -> int:
        """The number of contents that are refused."""
        return sum(entry.deaths >= at_least and entry.expires_at > now for entry in self._entries.values())

    def describe(self, now: float, at_least: int) -> list[dict[str, Any]]:
        """The refused contents as operators see them, the newest first."""
        return [
            {
                "content": digest,
                "deaths": entry.deaths,
                "cause": entry.cause,
                "detail": entry.detail,
                "client": entry.client,
                "job": entry.job,
                "expires_in_s": round(entry.expires_at - now, 3),
            }
            for digest, entry in reversed(self._entries.items())
            if entry.deaths >= at_least and entry.expires_at > now
        ]


class Retries:
    """Owns the quarantine: contents that killed workers, by digest, are refused before they kill another."""

    def __init__(self, state: State, completion: Completion) -> None:
        self._context, self._job_table, self._queue = state.context, state.job_table, state.queue
        self._completion = completion
        self.quarantine = Quarantine(state.removals)

    @staticmethod
    def content(job: Job) -> str:
        """The content to which the deaths of a live job are counted: its digest, with the client for an own voice."""
        job.content = job.content or content_digest(job.request, job.recording)
        return blamed(job.content, job.client.key if job.own_voice else "")

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

    def failed(self, worker: Worker, candidates: Sequence[str] | None = None) -> None:
        """The core has failed a process: decide about its jobs, or first have its flight recorder read.

        ``candidates``: the jobs that may be to blame, where it is known; else each that it was working on may be.
        """
        process = worker.process
        process.candidates = process.begun if candidates is None else candidates
        if len(process.candidates) > 1 and process.exit_reason and _is_judged(process.exit_reason.cause):
            self._context.effects.append(ReadRecorder(worker.incarnation))
        else:
            self.decide(worker, process)

    def decide(self, worker: Worker, process: Process, noted: Collection[str] = ()) -> None:
        """Decide about the jobs of a process that has failed or ended, once.

        ``noted``: the jobs in the last note of its flight recorder.
        """
        death = process.exit_reason
        if death is None or not process.jobs:
            return
        judged, shares = _is_judged(death.cause), process.shares
        culprit, suspects = _verdict(process, noted)
        if death.cause is Cause.OUT_OF_MEMORY and suspects and shares:
            self._halve_slots(worker, process)
        affected: list[Job] = []
        for job in [self._job_table.live.get(id) for id in process.give_up_jobs()]:
            if job is None or job.state != "running" or job.ending is not None:
                continue
            if job.attempt.begun:
                affected.append(job)
            else:
                # It lay ready in the worker: it is not to blame, and that was no attempt.
                self._completion.guarded(job, self.wait_again, job)
        if judged and len(affected) > 1:
            self._context.log(
                "info",
                "worker died with several jobs",
                worker=worker.name,
                of=culprit or "unknown",
                suspects=[*suspects],
            )
        own = [job for job in affected if not job.attempt.suspended and (not judged or job.id == culprit)]
        if POLICIES[death.cause].blames_job:
            self._context.guarded(self._blame, own, death)
        for job in affected:
            if job not in own:
                # The worker died of another one, or may have.
                job.excused += 1
            if judged and shares and not job.attempt.suspended:
                often = job.excused - job.interrupted >= _OFTEN
                job.alone = job.alone or job.id == culprit or job.id in suspects or often
            self._completion.guarded(job, self._after_death, job, death, job in own)

    def _halve_slots(self, worker: Worker, process: Process) -> None:
        """A process ran out of memory, and which of its jobs was too much is unknown: the next one takes fewer."""
        slots = process.ready.slots if process.ready else 1
        worker.most_slots = max(1, slots // 2)
        self._context.log(
            "warning",
            "worker takes fewer jobs at once, because several together ran out of memory",
            worker=worker.name,
            slots=worker.most_slots,
            before=slots,
        )

    def _blame(self, jobs: list[Job], death: ExitReason) -> None:
        """Count a worker's death against what it was speaking."""
        holds_s = self._context.settings.workers.restart.quarantine_s
        for job in jobs:
            if job.pieces is not None:
                job.pieces.blamed = True
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

    def _after_death(self, job: Job, death: ExitReason, own: bool) -> None:
        """Another attempt for a job whose worker died, or its end; ``own``: the death is the job's own."""
        policy = POLICIES[death.cause]
        tried = job.attempts - job.excused
        goes_on = job.attempt.can_go_on
        # Of a job that is followed the audio goes to requests that can fetch it again.
        sent = job.attempt.chunks > 0 and not goes_on and not job.request.follow
        attempts_left = tried < self._context.settings.workers.restart.max_attempts and not sent
        deaths = self.deaths_of(self.content(job)) if policy.blames_job else 0
        out_of_memory = death.cause is Cause.OUT_OF_MEMORY and own
        if attempts_left and deaths:
            message = f"{quarantine_message(deaths)}; the last: {death.detail}"
            self._completion.fail(job, ErrorCode.QUARANTINED, message)
        elif attempts_left and not (out_of_memory and job.needs_fresh):
            job.needs_fresh = job.needs_fresh or out_of_memory
            died, sent_bytes = job.attempt.worker, {"goes_on_after_bytes": job.attempt.size} if goes_on else {}
            self.wait_again(job, None if goes_on else f"the worker failed ({death.detail})")
            self._context.log(
                "info", "job waits for another attempt", job=job.id, worker=died, after=death.detail, **sent_bytes
            )
        else:
            notes = ""
            if sent:
                notes = "; part of the audio had been sent, so the job was not retried"
            elif out_of_memory and job.needs_fresh:
                notes = ", and so did the one before; a shorter text may fit"
            # Of another job's death the client gets no code that speaks of its own.
            code = policy.code if own else ErrorCode.WORKER_CRASHED
            self._completion.fail(job, code, f"the worker failed ({death.detail}){notes}")

    def leave_followers(self, job: Job, why: str) -> None:
        """End the requests that heard a part of the audio: what another attempt makes might not fit it."""
        message = f"{why} after a part of the audio was sent; the job is tried again"
        error = events.Error.of("", ErrorCode.WORKER_CRASHED, message, job=job.id)
        for subscriber in [subscriber for subscriber in job.subscribers if subscriber.heard]:
            self._context.effects.append(Send(subscriber.to, error, None, subscriber.id))
            self._job_table.remove_subscriber(job, subscriber)

    def wait_again(self, job: Job, anew: str | None = None) -> None:
        """Put a job back at the front of the queue. Its stream goes on where it broke, if it can.

        ``anew``: why it begins anew instead; requests that heard a part of it end.
        """
        attempt = job.attempt
        if anew is not None:
            self.leave_followers(job, anew)
        self.take_back(job)
        if attempt.can_go_on and anew is None:
            job.attempt = attempt.again()
        self._queue.push(job, front=True)

    def take_back(self, job: Job) -> None:
        """Drop the attempt; its client is charged for the time that it took."""
        job.enter("waiting")  # running -> waiting
        job.attempt.stop(self._context.now)
        self._queue.settle(job)
        job.account.charged_s = job.account.settled_s = 0.0
        job.attempt = Attempt()
        job.told_position = -1


def _is_judged(cause: Cause) -> bool:
    """Whether a job may be the reason for a death of this cause."""
    return POLICIES[cause].blames_job or cause is Cause.OUT_OF_MEMORY


def _verdict(process: Process, noted: Collection[str]) -> tuple[str, Sequence[str]]:
    """The job that a process died of, ``""`` where it is unknown; then, those of which it may have been one."""
    candidates = process.begun if process.candidates is None else process.candidates
    found = [id for id in candidates if id in noted] or candidates
    if len(found) == 1 and 1 in (len(candidates), len(noted)):
        return found[0], ()
    return "", found


def blamed(content: str, owner: str) -> str:
    """A content as the quarantine knows it: with a client's own voice (``owner``) it is that client's alone."""
    return hashlib.sha256(f"{content} {owner}".encode()).hexdigest() if owner else content


def quarantine_message(deaths: int) -> str:
    """The error for a content that is not tried again."""
    return f"{deaths} workers died of this job lately; it is quarantined and not tried again"
