"""Events that the daemon sends to clients, one type each.

A key that is ``UNSET`` is not sent. Clients ignore unknown keys and events, because version 1 may add both.
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import UNSET, Struct, UnsetType

from .errors import ErrorCode
from .requests import VERSION


class Event(Struct, tag_field="event", kw_only=True):
    """The keys of every event; ``id`` is that of the request that it answers."""

    #: Whether nothing follows for this request.
    final: ClassVar[bool] = True

    id: str
    v: int = VERSION


class JobEvent(Event, kw_only=True):
    """An event of a job that has not ended."""

    final: ClassVar[bool] = False

    job: str


class Accepted(JobEvent, tag="accepted", kw_only=True):
    """The job is in the queue; ``position`` 0 starts next."""

    position: int
    queue_size: int
    estimated_wait_s: float | UnsetType = UNSET
    warning: str | UnsetType = UNSET


class Queued(JobEvent, tag="queued", kw_only=True):
    """The job's position has changed."""

    position: int
    queue_size: int
    estimated_wait_s: float | UnsetType = UNSET
    warning: str | UnsetType = UNSET


class Started(JobEvent, tag="started", kw_only=True):
    """A worker has the job; ``attempt`` counts from 1, ``gpu`` is null for a worker without one."""

    worker: str
    gpu: int | None
    attempt: int
    waited_s: float


class Progress(JobEvent, tag="progress", kw_only=True):
    """``segment`` of ``segments`` is spoken, ``audio_s`` seconds of audio in all."""

    segment: int
    segments: int
    audio_s: float


class Audio(JobEvent, tag="audio", kw_only=True):
    """A chunk of a stream; the body has its samples, interleaved."""

    seq: int
    format: str
    sample_rate: int
    channels: int


class Done(Event, tag="done", kw_only=True):
    """The job succeeded; the body is the whole file unless it was streamed or written to ``path``."""

    job: str
    format: str
    sample_rate: int
    audio_s: float
    waited_s: float
    synthesis_s: float
    first_audio_s: float
    rtf: float
    attempts: int
    engine: str
    voice: str
    sha256: str
    path: str | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    chunks: int | UnsetType = UNSET


class Error(Event, tag="error", kw_only=True):
    """The request or the job failed. Version 1 may add codes, so a client must accept unknown ones."""

    code: str
    message: str
    retryable: bool
    job: str | UnsetType = UNSET
    retry_after_s: float | UnsetType = UNSET

    @classmethod
    def of(
        cls,
        id: str,
        code: ErrorCode,
        message: str,
        *,
        job: str | UnsetType = UNSET,
        retry_after_s: float | None = None,
    ) -> Error:
        """An error with a code of this version, and its ``retryable``."""
        after = UNSET if retry_after_s is None else round(retry_after_s, 3)
        return cls(id=id, code=code.value, message=message, retryable=code.retryable, job=job, retry_after_s=after)


class Pong(Event, tag="pong", kw_only=True):
    """The daemon is running."""

    version: str
    protocol: int
    uptime_s: float


class Voice(Struct, kw_only=True):
    """A voice as ``voices`` and ``info`` list it; ``owner`` is ``shared`` or ``own``.

    ``sample``: whether its recording can be heard, by ``voice_sample``.
    """

    name: str
    language: str = ""
    description: str = ""
    owner: str = "shared"
    sample: bool = False


class InfoAnswer(Event, tag="info", kw_only=True):
    """The daemon's capabilities. ``options`` is the JSON Schema of the engine's options.

    ``features`` names the additions within the protocol's version that it has.
    """

    version: str
    protocol: int
    engine: str
    sample_rate: int
    sample_rates: list[int]
    formats: list[str]
    voices: list[Voice]
    default_voice: str
    clones_voices: bool
    limits: dict[str, Any]
    options: dict[str, Any]
    ready: bool
    features: list[str] = []


class VoicesAnswer(Event, tag="voices", kw_only=True):
    """The voices for the key ``voice``."""

    voices: list[Voice]


class VoiceSampleAnswer(Event, tag="voice_sample", kw_only=True):
    """A voice's recording, which is the body; ``format`` is ``wav``, ``flac``, ``ogg`` or ``mp3``."""

    name: str
    owner: str
    format: str
    text: str
    seconds: float


class JobInfo(Struct, kw_only=True):
    """A job as ``job`` and ``jobs`` show it. ``created`` is seconds since 1970, UTC.

    ``client``, ``user`` and ``alone`` are sent to operators only. ``alone``: it gets a worker to itself, because one
    died of it, or may have, beside other jobs. ``suspended``: it began, and now waits for a more urgent job.
    ``waits_for_text``: it can't go on before more of its text comes.
    ``note``: why the result of an ended job is not there any more.
    """

    job: str
    state: str
    priority: str
    created: float
    attempts: int
    text_length: int
    position: int | UnsetType = UNSET
    estimated_wait_s: float | UnsetType = UNSET
    client: str | UnsetType = UNSET
    user: str | UnsetType = UNSET
    alone: bool | UnsetType = UNSET
    durable: bool | UnsetType = UNSET
    suspended: bool | UnsetType = UNSET
    waits_for_text: bool | UnsetType = UNSET
    worker: str | UnsetType = UNSET
    segment: int | UnsetType = UNSET
    segments: int | UnsetType = UNSET
    audio_s: float | UnsetType = UNSET
    waited_s: float | UnsetType = UNSET
    synthesis_s: float | UnsetType = UNSET
    code: str | UnsetType = UNSET
    message: str | UnsetType = UNSET
    output: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    note: str | UnsetType = UNSET


class JobAnswer(JobInfo, tag_field="event", tag="job", kw_only=True):
    """The state of one job: the keys of :class:`JobInfo`, flat in the event."""

    final: ClassVar[bool] = True

    id: str
    v: int = VERSION


class JobsAnswer(Event, tag="jobs", kw_only=True):
    """The newest jobs first."""

    jobs: list[JobInfo]


class UsageDay(Struct, kw_only=True):
    """What one client had spoken on one day (UTC).

    ``on_behalf_of``: to a gateway, which of its customers; ``""``: those together that have no row of their own.
    ``client`` is sent to operators only.
    """

    day: str
    jobs: int
    characters: int
    audio_s: float
    on_behalf_of: str | UnsetType = UNSET
    client: str | UnsetType = UNSET


class UsageAnswer(Event, tag="usage", kw_only=True):
    """The newest day first; ``more``: there are more than were asked for."""

    days: list[UsageDay]
    more: bool | UnsetType = UNSET


class Result(Struct, kw_only=True):
    """The answer to ``cancel``, ``voice_add``, ``voice_remove`` and every operation of the control socket.

    The event has the keys of ``values`` beside ``v``, ``id`` and ``event``; these three must not be among them.
    """

    final: ClassVar[bool] = True

    id: str
    values: dict[str, Any]
    v: int = VERSION


#: Events with a fixed set of keys; the codec encodes :class:`Result`, which has any.
ClosedEvent = (
    Accepted
    | Queued
    | Started
    | Progress
    | Audio
    | Done
    | Error
    | Pong
    | InfoAnswer
    | VoicesAnswer
    | VoiceSampleAnswer
    | JobAnswer
    | JobsAnswer
    | UsageAnswer
)

ServerEvent = ClosedEvent | Result
