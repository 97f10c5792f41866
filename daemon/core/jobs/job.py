"""A job and its states.

::

    waiting -> running -> done
       |  ^------'  |`---> failed          (back to waiting: another attempt after its worker died)
       |            `----> cancelled
       `-> failed, cancelled

A running job may be suspended in its worker for another one, or while it waits for more of its text. The end of a
durable job is sent when it is on disk: until then the job keeps its state, and has its end in ``ending``."""

from __future__ import annotations

import hashlib
import math

from msgspec import UNSET, Struct, field
from msgspec.structs import replace

from glmtts.protocol.audio_formats import AudioFormat
from glmtts.protocol.events import Done, Error, JobInfo
from glmtts.protocol.requests import VERSION, JobState, Synthesize, Wait
from glmtts.protocol.worker import Replay

from ..inputs import Client, ReplyTo

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "waiting": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"waiting", "done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


#: Bytes of a job's audio that are kept while it is made, for requests that come later and follow it from its beginning.
MAX_MADE_BYTES = 16 << 20

#: Subscribers that one job may have: clients can ask for its events as often as they like, and each costs memory.
MAX_SUBSCRIBERS = 64


class IllegalTransition(Exception):
    """A bug: the table does not have this transition."""


class Subscriber(Struct):
    """A request that is answered with a job's events: all of them, or only the last."""

    to: ReplyTo
    id: str
    all_events: bool
    #: Whether it got the stream from its beginning.
    heard: bool = False
    #: Whether it takes the audio while it is made, or whole with the last event.
    audio: bool = True

    def wait_for(self, job: str) -> Wait:
        """The same as a request for the rest of a job's events."""
        return Wait(id=self.id, v=VERSION, job=job, events="all" if self.all_events else "final")


class Ending(Struct):
    """How a job ends: its last event with ``id`` open, and its audio, as a body or as a file at ``result``."""

    state: JobState
    event: Done | Error
    body: bytes | memoryview | None = None
    result: str = ""


class Account(Struct):
    """The scheduler's charge for a job to its client, in seconds of an engine's time (Attempt.work_s)."""

    #: The job's expected time, and the load that it was expected at: the worker's slots while it waits.
    cost_s: float = 0.0
    load: int = 1
    #: What its client was charged so far, and how much of that is known to be right, because it was spoken before the
    #: job was last suspended.
    charged_s: float = 0.0
    settled_s: float = 0.0
    #: Its place in the order in which jobs came to its client's part of the queue.
    place: int = 0
    #: Its length and what it is like, as the estimator has found them.
    profile: tuple[int, tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def latency_s(self) -> float:
        """Seconds from the job's start to its end, as far as they can be expected."""
        return self.cost_s * self.load


class Pieces(Struct):
    """The text of a job that comes in pieces. The request has as much as came, folded."""

    #: The text as it came, and the number of pieces.
    raw: str
    count: int = 1
    #: Up to where the folded text may be spoken: the end of a sentence.
    ready: int = 0
    #: Whether the last piece came.
    complete: bool = False
    #: Whether a worker died of it: from then on its content is what it was then.
    blamed: bool = False


class Attempt(Struct):
    """One try at a job in a worker; a retry starts with a fresh one. Empty before the job was given to a worker.

    A stream that a retry can go on with is carried over (:meth:`again`): what was sent of it stays sent.
    """

    worker: str = ""
    #: Whether the worker works on it; until then it lies ready there, and its client takes it for waiting.
    begun: bool = False
    suspended: bool = False
    #: Whether it is suspended because it has spoken all of its text that came.
    waits_for_text: bool = False
    #: Whether it was suspended for another job: the engine keeps its state then, where a segment may be half done.
    gave_way: bool = False
    #: Up to where the worker has the text, and how many pieces it was sent.
    sent: int = 0
    texts: int = 0
    #: Since when the worker works on it without a break, and the seconds of work before that.
    active_since: float | None = None
    earlier_s: float = 0.0
    #: Slots of the worker, the engine's time that the job took, as the worker last said, and ``active_s`` at that time.
    slots: int = 1
    told_s: float = 0.0
    told_at_s: float = 0.0
    #: Seconds of work at its last segment boundary.
    boundary_s: float = 0.0
    first_audio_at: float | None = None
    #: Whether the daemon has stood still during it: how long it takes is then unknown.
    stood_still: bool = False
    #: The chunks of the stream that were sent, their bytes, and the SHA-256 of these.
    chunks: int = 0
    size: int = 0
    digest: bytes = b""
    #: The engine that began the stream and its version, if it makes the same bytes again; the texts in pieces
    #: that it was given; and the last segment that clients know to be spoken.
    made_by: tuple[str, str] | None = None
    given: list[str] = []
    told_segment: int = 0
    #: The pieces of a stream that can be followed, as long as they are all here.
    made: list[bytes | memoryview] = []
    made_bytes: int = 0
    segment: int = 0
    segments: int = 0
    audio_s: float = 0.0

    @property
    def can_go_on(self) -> bool:
        """Whether another attempt can make the stream again, and send it from where this one got to."""
        return self.chunks > 0 and self.made_by is not None and len(self.digest) == hashlib.sha256().digest_size

    @property
    def replay(self) -> Replay | None:
        """The part of the stream that an earlier attempt has sent."""
        return Replay(self.size, self.digest, self.chunks) if self.chunks else None

    def again(self) -> Attempt:
        """The attempt after this one, which goes on with the stream."""
        return Attempt(
            sent=self.sent,
            first_audio_at=self.first_audio_at,
            chunks=self.chunks,
            size=self.size,
            digest=self.digest,
            made_by=self.made_by,
            given=self.given,
            told_segment=self.told_segment,
            made=self.made,
            made_bytes=self.made_bytes,
            audio_s=self.audio_s,
        )

    def keep(self, piece: bytes | memoryview) -> None:
        """Keep a piece of the stream, unless that would be too much: then nothing is kept."""
        self.made_bytes += len(piece)
        if self.made_bytes <= MAX_MADE_BYTES:
            self.made.append(piece)
        else:
            self.made.clear()

    def active_s(self, now: float) -> float:
        """For how many seconds the worker has worked on it."""
        return self.earlier_s + (now - self.active_since if self.active_since is not None else 0.0)

    def tell_work(self, work_s: float, now: float) -> None:
        """The worker has said how much of the engine's time the job took."""
        # A worker's memory may be corrupt: neither NaN nor infinity is a time.
        if self.slots > 1 and 0.0 < work_s < math.inf and work_s >= self.told_s:
            self.told_s, self.told_at_s = work_s, self.active_s(now)

    def work_s(self, now: float = 0.0) -> float:
        """Seconds of the engine's time that it took so far; once it is stopped, ``now`` makes no difference.

        In a worker with one slot that is all the time. In one with several it is the job's part, as the worker says,
        and an equal part for each slot of the time since then: an engine that stands still says nothing.
        """
        if self.slots == 1:
            return self.active_s(now)
        return self.told_s + (self.active_s(now) - self.told_at_s) / self.slots

    def resume(self, now: float) -> None:
        """The worker works on it from now on."""
        self.active_since = now
        self.suspended = self.waits_for_text = False

    def stop(self, now: float) -> None:
        """The worker does not work on it any more, for now or for good."""
        self.earlier_s = self.active_s(now)
        self.active_since = None


class Job(Struct, kw_only=True):
    """One request for speech from its acceptance to its end. Times are the core's clock, in seconds."""

    id: str
    client: Client
    request: Synthesize
    recording: bytes | memoryview | None
    #: Digest of what is spoken and how (job_table.content_digest), once it was needed.
    content: str = ""
    format: AudioFormat
    #: In Hz; None where the worker chooses the nearest to the default that the format can hold.
    sample_rate: int | None
    #: Whether audio goes out while it is made; not so where no request could get it (REQ, ``events: "final"``).
    streams: bool
    accepted_at: float
    created: float
    deadline_at: float | None = None
    #: Whether the journal has it, so that it survives the daemon.
    durable: bool = False
    #: Where its file goes, if the request names one in the outputs folder.
    output_path: str = ""
    #: Whether its voice is a registered recording, and one that its client has for itself.
    cloned: bool = False
    own_voice: bool = False
    state: JobState = "waiting"
    account: Account = field(default_factory=Account)
    attempt: Attempt = field(default_factory=Attempt)
    attempts: int = 0
    #: How many of these were not its fault: the daemon ended, or the worker died of another job, or may have.
    excused: int = 0
    #: How many of them the end of a daemon broke off.
    interrupted: int = 0
    #: It ran out of GPU memory once: it is tried once more, on a process that has had no other job.
    needs_fresh: bool = False
    #: A worker died of it, or may have, beside other jobs: its next attempts have a worker to themselves.
    alone: bool = False
    waited_s: float = 0.0
    #: The waiting time and the position that its client was last sent; -1: none since it came into the queue.
    estimated_wait_s: float | None = None
    told_position: int = -1
    subscribers: list[Subscriber] = []
    ending: Ending | None = None
    #: Of a job whose text comes in pieces.
    pieces: Pieces | None = None

    @property
    def waits_for_text(self) -> bool:
        """Whether it can't go on before more of its text comes."""
        if self.pieces is None or not self.live:
            return False
        return self.attempt.waits_for_text or (self.state == "waiting" and not self.pieces.ready)

    @property
    def is_heard(self) -> bool:
        """Whether a request gets its audio while it is made."""
        return self.streams and any(subscriber.all_events and subscriber.audio for subscriber in self.subscribers)

    @property
    def label(self) -> str | None:
        """The caption that its client has given it."""
        return None if self.request.label is UNSET else self.request.label

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in ("waiting", "running")

    def enter(self, state: JobState) -> None:
        """Change the state. Raises IllegalTransition, and changes nothing, where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"job {self.id}: {self.state} -> {state}")
        self.state = state

    def describe(
        self, position: int | None = None, estimated_wait_s: float | None = None, *, with_client: bool = True
    ) -> JobInfo:
        """The job as operators see it, and clients without ``with_client``."""

        attempt = self.attempt
        info = JobInfo(
            job=self.id,
            state=self.state,
            priority=self.request.priority,
            created=self.created,
            attempts=self.attempts,
            text_length=len(self.request.text),
            output=self.request.output,
            key=self.request.key,
            label=self.request.label,
        )
        if with_client:
            info.client, info.user = self.client.key, self.client.user
            if self.alone and self.live:
                info.alone = True
        if position is not None:
            info.position = position
        if estimated_wait_s is not None:
            info.estimated_wait_s = estimated_wait_s
        if self.durable:
            info.durable = True
        if attempt.worker:
            info.worker = attempt.worker
        if attempt.segments:
            info.segment, info.segments = attempt.segment, attempt.segments
        if attempt.audio_s > 0:
            info.audio_s = round(attempt.audio_s, 3)
        if self.attempts:
            info.waited_s = round(self.waited_s, 6)
        event = self.ending.event if self.ending is not None and not self.live else None
        if isinstance(event, Error):
            info.code, info.message = event.code, event.message
        elif event is not None:
            info.audio_s, info.synthesis_s = round(event.audio_s, 3), event.synthesis_s
        elif self.waits_for_text:
            info.waits_for_text = True
        elif attempt.suspended:
            info.suspended = True
        return info


class Ended(Struct):
    """An ended job as the table keeps it for a while: the answer to ``job``, and the last event with its audio."""

    info: JobInfo
    client: Client
    ending: Ending
    expires_at: float
    body_dropped: bool = False

    @property
    def state(self) -> str:
        """How it ended."""
        return self.info.state

    @property
    def size(self) -> int:
        """Bytes of audio that it holds."""
        return len(self.ending.body) if self.ending.body is not None else 0

    def describe(self, *, with_client: bool) -> JobInfo:
        """The job as operators see it, and clients without ``with_client``."""
        return self.info if with_client else replace(self.info, client=UNSET, user=UNSET)
