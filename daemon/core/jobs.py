"""A job and its states.

::

    waiting -> running -> done
       |  ^------'  |`---> failed          (back to waiting: another attempt after its worker died)
       |            `----> cancelled
       `-> failed, cancelled
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct

from glmtts.protocol.audio_formats import AudioFormat
from glmtts.protocol.events import ClosedEvent, JobInfo
from glmtts.protocol.requests import JobState, Synthesize

from .inputs import Client, ReplyTo

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
    state: JobState = "waiting"
    attempts: int = 0
    #: It ran out of GPU memory once: it is tried once more, on a process that has had no other job.
    needs_fresh: bool = False
    #: Whether its worker works on it; until then it lies ready there, and its client takes it for waiting.
    begun: bool = False
    worker: str | None = None
    started_at: float = 0.0
    waited_s: float = 0.0
    first_audio_at: float | None = None
    chunks: int = 0
    segment: int = 0
    segments: int = 0
    audio_s: float = 0.0
    told_position: int = -1
    subscribers: list[Subscriber] = []
    ended_at: float = 0.0
    synthesis_s: float = 0.0
    code: str = ""
    message: str = ""
    text_length: int = 0

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in ("waiting", "running")

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
    """The end of a job, kept for a while for whoever asks again: its last event with ``id`` open, and its body."""

    job: Job
    event: ClosedEvent
    body: bytes | memoryview | None
    expires_at: float
    body_dropped: bool = False

    @property
    def size(self) -> int:
        """Bytes that keeping it costs, about."""
        return len(self.body) if self.body is not None else 0
