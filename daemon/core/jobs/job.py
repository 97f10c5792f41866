"""A job and its states.

::

    waiting -> running -> done
       |  ^------'  |`---> failed          (back to waiting: another attempt after its worker died)
       |            `----> cancelled
       `-> failed, cancelled

A running job may be put aside in its worker for another one (``suspended``). The end of a durable job is told when it
is on disk: until then it keeps its state, and has its end in ``ending``."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct

from glmtts.protocol.audio_formats import AudioFormat
from glmtts.protocol.events import Done, Error, JobInfo
from glmtts.protocol.requests import VERSION, JobState, Synthesize, Wait

from ..inputs import Client, ReplyTo

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "waiting": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"waiting", "done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


#: Subscribers that one job may have: clients can ask to hear it as often as they like, and each costs memory.
MAX_SUBSCRIBERS = 64


class IllegalTransition(Exception):
    """A bug: the table does not have this transition."""


class Subscriber(Struct):
    """Somebody who is told of a job: under ``id``, and if not ``all_events`` of its end alone."""

    to: ReplyTo
    id: str
    all_events: bool
    #: Whether he has heard the stream from its beginning.
    heard: bool = False

    def wait_for(self, job: str) -> Wait:
        """His request as one for the rest of a job's events."""
        return Wait(id=self.id, v=VERSION, job=job, events="all" if self.all_events else "final")


class Ending(Struct):
    """How a job ends: its last event with ``id`` open, and its audio, as a body or as a file at ``result``."""

    state: JobState
    event: Done | Error
    body: bytes | memoryview | None = None
    result: str = ""


class Job(Struct, kw_only=True):
    """One accepted request for speech. Times are the core's clock, in seconds."""

    id: str
    client: Client
    request: Synthesize
    recording: bytes | memoryview | None
    #: Digest of what is spoken and how (ledger.content_digest), once somebody needed it.
    content: str = ""
    format: AudioFormat
    #: In Hz; None where the worker chooses the nearest to the default that the format can hold.
    sample_rate: int | None
    #: Whether audio goes out while it is made; not so where nobody would hear it (REQ, ``events: "final"``).
    streams: bool
    accepted_at: float
    created: float
    deadline_at: float | None = None
    #: Whether the journal has it, so that it survives the daemon.
    durable: bool = False
    #: Where its file goes, if it asked for one in the outputs folder.
    output_path: str = ""
    #: Whether its voice is a registered recording.
    cloned: bool = False
    state: JobState = "waiting"
    #: Seconds for which it is expected to occupy a worker, and for how many its client is charged.
    cost_s: float = 0.0
    charged_s: float = 0.0
    #: How much of that is known to be right, because it was spoken before the job was last put aside.
    settled_s: float = 0.0
    #: Its place in the order in which jobs came to its client's part of the queue.
    place: int = 0
    #: What its client was told of the waiting time.
    estimated_wait_s: float | None = None
    attempts: int = 0
    #: How many of these ended through no fault of it: the daemon ended, or the worker died of another job.
    excused: int = 0
    #: How many of them the end of a daemon broke off.
    interrupted: int = 0
    #: It ran out of GPU memory once: it is tried once more, on a process that has had no other job.
    needs_fresh: bool = False
    #: Whether its worker works on it; until then it lies ready there, and its client takes it for waiting.
    begun: bool = False
    #: Whether it is put aside in its worker.
    suspended: bool = False
    worker: str | None = None
    #: Since when the worker works on it without a break, and the seconds of work before that.
    active_since: float | None = None
    earlier_s: float = 0.0
    #: Seconds of work at its last segment border.
    border_s: float = 0.0
    waited_s: float = 0.0
    first_audio_at: float | None = None
    chunks: int = 0
    segment: int = 0
    segments: int = 0
    audio_s: float = 0.0
    told_position: int = -1
    subscribers: list[Subscriber] = []
    ending: Ending | None = None
    ended_at: float = 0.0
    synthesis_s: float = 0.0
    code: str = ""
    message: str = ""
    text_length: int = 0

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in ("waiting", "running")

    def active_s(self, now: float) -> float:
        """For how many seconds the worker has worked on it."""
        return self.earlier_s + (now - self.active_since if self.active_since is not None else 0.0)

    def go_on(self, now: float) -> None:
        """The worker works on it from now on."""
        self.active_since = now
        self.suspended = False

    def stop(self, now: float) -> None:
        """The worker does not work on it any more, for now or for good."""
        self.earlier_s = self.active_s(now)
        self.active_since = None

    @property
    def audio_was_sent(self) -> bool:
        """Whether a client has heard a part of it, so that it can't be started again unnoticed."""
        return self.chunks > 0

    def enter(self, state: JobState) -> None:
        """Change the state. Raises IllegalTransition, and changes nothing, where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"job {self.id}: {self.state} -> {state}")
        self.state = state

    def describe(self, position: int | None, estimated_wait_s: float | None, *, with_client: bool) -> JobInfo:
        """The job as clients and operators see it."""

        def known(value: Any, when: bool) -> Any:
            return value if when else UNSET

        ended = not self.live
        return JobInfo(
            job=self.id,
            state=self.state,
            priority=self.request.priority,
            created=self.created,
            attempts=self.attempts,
            text_length=len(self.request.text) if self.live else self.text_length,
            position=UNSET if position is None else position,
            estimated_wait_s=UNSET if estimated_wait_s is None else estimated_wait_s,
            client=known(self.client.key, with_client),
            user=known(self.client.user, with_client),
            durable=known(True, self.durable),
            suspended=known(True, self.suspended and self.live),
            worker=self.worker if self.worker is not None else UNSET,
            segment=known(self.segment, self.segments > 0),
            segments=known(self.segments, self.segments > 0),
            audio_s=known(round(self.audio_s, 3), self.audio_s > 0),
            waited_s=known(round(self.waited_s, 6), self.attempts > 0),
            synthesis_s=known(round(self.synthesis_s, 6), ended and self.synthesis_s > 0),
            code=known(self.code, bool(self.code)),
            message=known(self.message, bool(self.message)),
            output=self.request.output,
            key=self.request.key,
        )


class Ended(Struct):
    """The end of a job, kept for a while for whoever asks again."""

    job: Job
    ending: Ending
    expires_at: float
    body_dropped: bool = False

    @property
    def size(self) -> int:
        """Bytes that keeping it costs, about."""
        return len(self.ending.body) if self.ending.body is not None else 0
