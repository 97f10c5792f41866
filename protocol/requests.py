"""Requests of the requests socket: one type for each ``op``, with the limits of every daemon."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from .audio_formats import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, AudioFormat, format_of_name

#: The version of the protocol that this package speaks.
VERSION = 1

#: The longest deadline, in seconds: 30 days.
MAX_DEADLINE_S = 30 * 86_400.0

Id = Annotated[str, Meta(min_length=1, max_length=64)]
JobId = Annotated[str, Meta(min_length=1, max_length=64)]
Priority = Literal["vip", "interactive", "batch"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]

PRIORITIES: tuple[Priority, ...] = ("vip", "interactive", "batch")

MAX_SEED = 2**32 - 1

#: How fast is spoken, at the same pitch: 2.0 is twice as fast.
MIN_SPEED, MAX_SPEED = 0.5, 2.0
Speed = Annotated[float, Meta(ge=MIN_SPEED, le=MAX_SPEED)]

#: Characters of a gateway's name for a customer.
MAX_ON_BEHALF_OF = 128

#: Whose job or request it is, as a gateway names its customers.
OnBehalfOf = Annotated[str, Meta(min_length=1, max_length=MAX_ON_BEHALF_OF)]

#: Characters of a ``key``.
MAX_KEY = 128

#: A caption of a job, for people; the codec refuses control characters in it.
MAX_LABEL = 200
Label = Annotated[str, Meta(max_length=MAX_LABEL)]
#: The name of a registered voice.
VoiceName = Annotated[str, Meta(pattern=r"\A[\w-]{1,64}\Z")]

#: How long a ``key`` stands for the same job.
KEY_HOLDS_S = 24 * 3600.0


class Request(Struct, tag_field="op", forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The keys of every request."""

    id: Id
    v: int


class Prompt(Struct, forbid_unknown_fields=True):
    """Zero-shot cloning: ``text`` is the transcript of the recording in the body."""

    text: Annotated[str, Meta(min_length=1, max_length=1_000)]


class Synthesize(Request, tag="synthesize", kw_only=True, omit_defaults=True):
    """Speak ``text``; docs/protocol.md describes each key."""

    text: str
    voice: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    prompt: Prompt | UnsetType = UNSET
    format: AudioFormat | UnsetType = UNSET
    sample_rate: Annotated[int, Meta(ge=MIN_SAMPLE_RATE, le=MAX_SAMPLE_RATE)] | UnsetType = UNSET
    stream: bool = False
    events: Literal["all", "final"] = "all"
    output: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    priority: Priority = "interactive"
    deadline_s: Annotated[float, Meta(gt=0, le=MAX_DEADLINE_S)] | UnsetType = UNSET
    durable: bool | UnsetType = UNSET
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)] | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] = 0
    speed: Speed = 1.0
    options: dict[str, Any] = {}
    label: Label | UnsetType = UNSET
    on_behalf_of: OnBehalfOf | UnsetType = UNSET
    more: bool = False
    #: Made as a stream, which ``wait`` with ``follow`` gets from its beginning; the request itself gets it whole.
    follow: bool = False

    @property
    def named_format(self) -> AudioFormat | None:
        """The format asked for: by ``format``, else by the ending of ``output``."""
        if self.format is not UNSET:
            return self.format
        return None if self.output is UNSET else format_of_name(self.output)

    @property
    def resolved_format(self) -> AudioFormat:
        """The format asked for, or the protocol's default: WAV, and 16-bit PCM for a stream."""
        return self.named_format or ("pcm_s16le" if self.stream else "wav")


class Text(Request, tag="text", kw_only=True, omit_defaults=True):
    """One more piece of the text of a job that was opened with ``more``."""

    job: JobId
    text: str = ""
    flush: bool = False
    last: bool = False
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class Ping(Request, tag="ping", kw_only=True):
    """Is the daemon there?"""


class Info(Request, tag="info", kw_only=True):
    """What this daemon can do."""


class Voices(Request, tag="voices", kw_only=True, omit_defaults=True):
    """The voices that can be named in ``voice``: those for all, and the client's own."""

    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class VoiceAdd(Request, tag="voice_add", kw_only=True, omit_defaults=True):
    """Keep a voice for this client alone: the body is its recording, ``text`` the transcript.

    ``consent``: the person who is heard agrees, without which no voice is kept.
    """

    name: VoiceName
    text: Annotated[str, Meta(min_length=1, max_length=1_000)]
    language: Annotated[str, Meta(max_length=32)] = ""
    description: Annotated[str, Meta(max_length=500)] = ""
    consent: bool = False
    replace: bool = False
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class VoiceRemove(Request, tag="voice_remove", kw_only=True, omit_defaults=True):
    """Remove one of the client's own voices."""

    name: VoiceName
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class VoiceSample(Request, tag="voice_sample", kw_only=True, omit_defaults=True):
    """The recording of a voice: of the client's own, or of one for all."""

    name: VoiceName
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class Cancel(Request, tag="cancel", kw_only=True, omit_defaults=True):
    """Cancel one of the client's own jobs; on the control socket any job."""

    job: JobId
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class GetJob(Request, tag="job", kw_only=True, omit_defaults=True):
    """The state of one job."""

    job: JobId
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class Wait(Request, tag="wait", kw_only=True, omit_defaults=True):
    """The remaining events of a job, its last one included."""

    job: JobId
    events: Literal["all", "final"] = "all"
    follow: bool = False
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class Leave(Request, tag="leave", kw_only=True):
    """Send no more of a job's events to one request of this connection, which gets no last event either."""

    job: JobId
    #: The ``id`` of that request.
    request: Id


class ListJobs(Request, tag="jobs", kw_only=True, omit_defaults=True):
    """The client's own jobs; on the control socket all jobs."""

    state: JobState | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


class Usage(Request, tag="usage", kw_only=True, omit_defaults=True):
    """What the client had spoken, by day; ``since`` is a date such as 2026-11-30, or seconds since 1970."""

    since: str | Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 1_000
    on_behalf_of: OnBehalfOf | UnsetType = UNSET


ClientRequest = (
    Synthesize
    | Text
    | Ping
    | Info
    | Voices
    | VoiceAdd
    | VoiceRemove
    | VoiceSample
    | Cancel
    | GetJob
    | Wait
    | Leave
    | ListJobs
    | Usage
)
