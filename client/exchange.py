"""Requests and their answers, without I/O: the core feeds the events. Also the caller's handle of a job."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from msgspec import UNSET

from glmtts.protocol import events
from glmtts.protocol.events import Accepted, Audio, Done, Error, ServerEvent

from .errors import ConnectionLost, GlmttsError, ProtocolError, SlowConsumer, Timeout, failure_of
from .speech import Chunk, Speech

T = TypeVar("T")

#: A stream with more unread bytes is given up: its caller is busy with something else.
MAX_UNREAD_BYTES = 32 * 1024 * 1024

#: Pieces of a text that may be sent ahead of their answers.
MAX_TEXTS = 64

#: The newest unread events of a job that are kept.
_MAX_UNREAD_EVENTS = 256

#: The events for a progress display: all but audio and the end.
JobEvent = events.Accepted | events.Queued | events.Started | events.Progress

OnEvent = Callable[[JobEvent], object]

_JOB_EVENTS = (events.Accepted, events.Queued, events.Started, events.Progress, Audio, Done)


def deadline_after(timeout: float | None) -> float:
    """The monotonic time after ``timeout`` seconds; None: never. Raises ValueError for what is no number of seconds."""
    if timeout is None:
        return math.inf
    if math.isnan(timeout):
        raise ValueError("timeout: not a number (nan); give seconds, or None to wait as long as it takes")
    return time.monotonic() + timeout


class Exchange:
    """A request with one answer. It ends exactly once, with an answer or a failure.

    ``frames`` is its message until then; ``may_resend`` says whether it may be sent twice. ``watchers`` are called
    after every change.
    """

    def __init__(self, id: str, op: str, frames: list[bytes], *, may_resend: bool) -> None:
        self.ids = [id]
        self.op = op
        self.frames = frames
        self.may_resend = may_resend
        self.resent = 0
        self.sent = False
        self.finished = False
        self.answer: ServerEvent | None = None
        self.body = b""
        self.failure: GlmttsError | None = None
        self.watchers: list[Callable[[], None]] = []

    @property
    def unanswered(self) -> bool:
        """Whether there is no sign yet that the daemon has read the request."""
        return not self.finished

    def feed(self, event: ServerEvent, body: bytes) -> None:
        """Take an event; only the last one matters here."""
        if self.finished or not event.final:
            return
        if isinstance(event, Error):
            self.fail(failure_of(event))
        else:
            self.succeed(event, body)

    def succeed(self, answer: ServerEvent, body: bytes = b"") -> None:
        """End with an answer, unless it has ended."""
        if not self.finished:
            self.answer, self.body = answer, body
            self._end()

    def fail(self, failure: GlmttsError) -> None:
        """End with an error, unless it has ended."""
        if not self.finished:
            self.failure = failure
            self._end()

    def changed(self) -> None:
        """Call the watchers."""
        for watcher in self.watchers:
            watcher()

    def _end(self) -> None:
        self.finished = True
        self.frames = []
        self.changed()

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    def result(self, kind: type[T]) -> T:
        """The answer, which has to be of this kind. Raises the failure."""
        self.check()
        if not isinstance(self.answer, kind):
            raise ProtocolError(f"The answer to {self.op!r} was of the wrong kind: {type(self.answer).__name__}.")
        return self.answer


class JobExchange(Exchange):
    """The events of a job, up to its one ``done`` or ``error``.

    ``events`` and ``chunks`` have the events and the audio that the caller has not taken yet.
    """

    def __init__(
        self,
        id: str,
        op: str,
        frames: list[bytes],
        *,
        may_resend: bool,
        streaming: bool = False,
        job: str | None = None,
        on_behalf_of: str | None = None,
        outlives: bool = False,
    ) -> None:
        super().__init__(id, op, frames, may_resend=may_resend)
        #: Whether the job is left to the daemon, and not cancelled, when this request is given up.
        self.outlives = outlives
        self.streaming = streaming
        self.job = job
        self.asked_job = job
        self.on_behalf_of = on_behalf_of
        self.accepted: Accepted | None = None
        self.resumed = False
        self.events: deque[JobEvent] = deque(maxlen=_MAX_UNREAD_EVENTS)
        self.chunks: deque[Chunk] = deque()
        self.unread_bytes = 0
        self.next_seq = 0
        #: Pieces of its text that are not answered yet.
        self.texts = 0

    @property
    def unanswered(self) -> bool:
        """Whether there is no sign yet that the daemon has read the request."""
        return not self.finished and (self.job is None or self.asked_job is not None)

    def feed(self, event: ServerEvent, body: bytes) -> None:
        """Take an event of the job; an impossible one ends it with a ProtocolError."""
        if self.finished:
            return
        if isinstance(event, Error):
            self._fail_with(event)
        elif not isinstance(event, _JOB_EVENTS):
            if event.final:
                self.fail(ProtocolError(f"A job was answered with {type(event).__name__}, which is no event of a job."))
        elif self.job is not None and event.job != self.job:
            self.fail(ProtocolError(f"The daemon mixed up two jobs: {event.job!r} came in place of {self.job!r}."))
        else:
            self.job = event.job
            self.frames = []
            if isinstance(event, Audio):
                self._take_audio(event, body)
            elif isinstance(event, Done):
                self._take_done(event, body)
            else:
                if isinstance(event, Accepted):
                    self.accepted = event
                self.events.append(event)
                self.changed()

    def take_chunk(self) -> Chunk:
        """The oldest chunk that has not been taken."""
        chunk = self.chunks.popleft()
        self.unread_bytes -= len(chunk.samples)
        return chunk

    def speech(self) -> Speech:
        """The finished speech. Raises the failure of the job."""
        return Speech.of(self.result(Done), self.body)

    def lost(self, why: str) -> ConnectionLost:
        """The error for a job whose daemon is gone, or does not know it any more."""
        what = f"job {self.job}" if self.job else "a request that it had not accepted yet"
        return ConnectionLost(f"The connection to the daemon was lost over {what}: {why}.", job=self.job)

    def _fail_with(self, event: Error) -> None:
        if self.resumed and event.code == "job_not_found":
            self.fail(self.lost("after reconnection the daemon doesn't know the job any more"))
            return
        failure = failure_of(event)
        failure.job = failure.job or self.job
        self.fail(failure)

    def _take_audio(self, event: Audio, body: bytes) -> None:
        if not self.streaming or event.seq < self.next_seq:
            return
        if event.seq > self.next_seq:
            self._miss(f"chunk {self.next_seq} of its stream is missing")
            return
        self.next_seq += 1
        self.unread_bytes += len(body)
        self.chunks.append(
            Chunk(
                seq=event.seq, samples=body, format=event.format, sample_rate=event.sample_rate, channels=event.channels
            )
        )
        if self.unread_bytes > MAX_UNREAD_BYTES:
            self.fail(
                SlowConsumer(
                    f"The stream was given up with {self.unread_bytes} unread bytes. "
                    "Read a stream before waiting for other jobs, or use a client of its own for it.",
                    job=self.job,
                )
            )
        else:
            self.changed()

    def _take_done(self, event: Done, body: bytes) -> None:
        if self.streaming:
            if event.chunks is not UNSET and event.chunks != self.next_seq:
                self._miss(f"it had {event.chunks} chunks, of which {self.next_seq} came")
                return
            if body and self.next_seq:
                self._miss("it was made once more, and may differ from the part that came before")
                return
            if body:
                # A durable job of which no part is sent while it is made: the file is its one chunk.
                self.unread_bytes += len(body)
                self.chunks.append(
                    Chunk(seq=0, samples=body, format=event.format, sample_rate=event.sample_rate, channels=1)
                )
                body = b""
        elif not body and event.path is UNSET and event.chunks is UNSET and self.op == "synthesize":
            self._miss("it is done, but its audio did not come")
            return
        self.succeed(event, body)

    def _miss(self, what: str) -> None:
        if self.resumed:
            self.fail(self.lost(what))
        else:
            self.fail(ProtocolError(f"Job {self.job}: {what}."))


class Job:
    """A job that the daemon has accepted. ``Client.wait`` takes it, or its ``id``, which can be stored.

    Attributes:
        id: the job's id.
        position: its place in the queue at its acceptance; 0 is the next.
        queue_size: the waiting jobs at that time.
        estimated_wait_s: seconds until its start, None if unknown.
        warning: words about a long or paused queue, or None.
    """

    def __init__(self, exchange: JobExchange) -> None:
        accepted = exchange.accepted
        self._exchange = exchange
        self.id: str = exchange.job or ""
        self.position: int = accepted.position if accepted else 0
        self.queue_size: int = accepted.queue_size if accepted else 0
        self.estimated_wait_s: float | None = None
        self.warning: str | None = None
        if accepted:
            self.estimated_wait_s = None if accepted.estimated_wait_s is UNSET else accepted.estimated_wait_s
            self.warning = None if accepted.warning is UNSET else accepted.warning

    def __repr__(self) -> str:
        return f"Job({self.id!r}, position={self.position})"


def job_id(job: Job | str) -> str:
    """The id of a job, given as a handle or as the id itself."""
    return job.id if isinstance(job, Job) else job


def customer_of(job: Job | str, on_behalf_of: str | None) -> str | None:
    """Whose job it is: what the caller says, or what the handle knows."""
    return job._exchange.on_behalf_of if on_behalf_of is None and isinstance(job, Job) else on_behalf_of


def collected(job: Job | str) -> JobExchange | None:
    """The exchange of a job that has ended, if the handle has it."""
    return job._exchange if isinstance(job, Job) and job._exchange.finished else None


def timed_out(exchange: Exchange) -> Timeout:
    """The error for a request that did not end in time."""
    if isinstance(exchange, JobExchange):
        job = exchange.job
        return Timeout(f"The daemon did not finish {f'job {job}' if job else 'the request'} in time.", job=job)
    return Timeout(f"The daemon did not answer {exchange.op!r} in time.")


def show(exchange: JobExchange, on_event: OnEvent | None) -> None:
    """Call ``on_event`` with the unread events."""
    while exchange.events:
        event = exchange.events.popleft()
        if on_event is not None:
            on_event(event)
