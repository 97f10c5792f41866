"""Texts that come in pieces: what of them can be spoken, and when they are complete.

A job waits for its text in the queue, where it takes no place, or suspended in its worker, which speaks other jobs
meanwhile. The worker gets whole sentences alone, unless the client asks for what there is."""

from __future__ import annotations

from glmtts.protocol import requests, texts
from glmtts.protocol.errors import ErrorCode, RequestError
from glmtts.protocol.worker import AddText

from ...engines import sentences
from ..effects import Tell
from ..jobs.job import Ended, Job, Pieces
from ..state import State
from ..workers.worker import WorkerState
from .completion import Completion
from .deadlines import enqueue, keep_apart

#: Pieces beyond one for each character that a text may have: those with ``flush`` or ``last`` alone.
_BARE_PIECES = 1_000


class TextPieces:
    """Adds pieces to the texts of jobs, and hands to workers what can be spoken of them, in its order and once."""

    def __init__(self, state: State, completion: Completion) -> None:
        self._state = state
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._completion = completion

    def open(self, job: Job) -> None:
        """An accepted job waits for its text, or in the queue if there is a sentence of it."""
        assert job.pieces is not None
        keep_apart(self._state, job)
        self._wait_for_more(job)
        self._take(job, job.pieces, flush=False)

    def add(self, job: Job | Ended, request: requests.Text) -> None:
        """Add a piece. Raises RequestError, and changes nothing, for a piece that the job can't take."""
        pieces = self._check(job, request)
        assert isinstance(job, Job)
        pieces.raw += request.text
        pieces.count += 1
        if request.text:
            self._wait_for_more(job)
        self._completion.guarded(job, self._added, job, pieces, request)

    def _check(self, job: Job | Ended, request: requests.Text) -> Pieces:
        if isinstance(job, Ended) or job.ending is not None:
            raise RequestError(ErrorCode.BAD_REQUEST, f"job: {request.job} has ended, and takes no more text")
        pieces = job.pieces
        if pieces is None:
            raise RequestError(
                ErrorCode.BAD_REQUEST, f"job: the text of {request.job} was complete: it was not opened with more"
            )
        if pieces.complete:
            raise RequestError(
                ErrorCode.BAD_REQUEST, f"job: the last piece of the text of {request.job} has come, or came too late"
            )
        limit = self._context.settings.limits.text_chars
        length = len(pieces.raw) + len(request.text)
        if length > limit:
            message = f"text: {length} characters with those that came before; at most {limit} are accepted for a job"
            raise RequestError(ErrorCode.TOO_LARGE, f"{message}; send last, and the rest as another job")
        if pieces.count >= limit + _BARE_PIECES:
            message = f"text: more than {limit + _BARE_PIECES} pieces for a text of {limit} characters"
            raise RequestError(ErrorCode.TOO_LARGE, f"{message}; send last, and the rest as another job")
        return pieces

    def _added(self, job: Job, pieces: Pieces, request: requests.Text) -> None:
        if request.last:
            self._complete(job, pieces)
        else:
            self._take(job, pieces, flush=request.flush)

    def on_timeout(self, id: str) -> None:
        """No piece has come for text_timeout_s: what came is the whole text."""
        job = self._job_table.live.get(id)
        if job is not None and job.ending is None and job.pieces is not None and not job.pieces.complete:
            after_s = self._context.settings.limits.text_timeout_s
            self._context.log("info", "text taken as complete", job=id, no_piece_for_s=after_s)
            self._complete(job, job.pieces)

    def on_drain_timeout(self, name: str) -> None:
        """A worker that is replaced has waited for text_timeout_s: it waits no longer for texts to be complete."""
        worker = self._pool.workers[name]
        if worker.state is not WorkerState.DRAINING:
            return
        message = "the worker is replaced, and the last piece of the text has not come; begin again"
        for id in list(worker.jobs):
            job = self._job_table.live.get(id)
            if job is not None and job.pieces is not None and not job.pieces.complete:
                self._completion.guarded(job, self._completion.fail, job, ErrorCode.UNAVAILABLE, message)

    def _wait_for_more(self, job: Job) -> None:
        self._context.timers.set(("text", job.id), self._context.now + self._context.settings.limits.text_timeout_s)

    def _complete(self, job: Job, pieces: Pieces) -> None:
        self._context.timers.cancel(("text", job.id))
        self._job_table.complete(pieces, job.client.key)
        if texts.has_words(pieces.raw):
            self._take(job, pieces, flush=True)
        else:
            self._completion.fail(job, ErrorCode.BAD_REQUEST, f"text: {texts.NOTHING_TO_SPEAK}, and no more has come")

    def _take(self, job: Job, pieces: Pieces, *, flush: bool) -> None:
        """Take what came into the text, and hand on what can be spoken of it: all with ``flush``."""
        text = texts.fold(pieces.raw)
        if text != job.request.text:
            job.request.text = text
            job.account.profile = None
            if not pieces.blamed:
                job.content = ""
        # A character that came after a flush may have joined the one before it.
        ready = min(pieces.ready, len(text))
        if not flush:
            ready = sentences.whole(text, ready)
        elif texts.has_words(text[ready:]):
            ready = len(text)
        pieces.ready = max(pieces.ready, ready)
        if job.state == "running":
            self._send(job, pieces)
        elif pieces.ready and not job.attempts and self._queue.is_held(job):
            enqueue(self._state, job)

    def _send(self, job: Job, pieces: Pieces) -> None:
        """Send the worker what it does not have yet. A job that waited for it may resume."""
        worker, attempt = self._pool.workers[job.attempt.worker], job.attempt
        text = job.request.text[attempt.sent : pieces.ready]
        if not text and not pieces.complete:
            return
        job.account.cost_s = self._state.estimator.expect_s(job, job.account.load)
        # No code that can raise stands between the message and what is known of it.
        self._context.effects.append(Tell(worker.incarnation, AddText(job=job.id, text=text, last=pieces.complete)))
        attempt.sent = max(attempt.sent, pieces.ready)
        attempt.texts += 1
        if text and job.streams:
            attempt.given.append(text)
        attempt.waits_for_text = False
        worker.process.has_text(job.id)
