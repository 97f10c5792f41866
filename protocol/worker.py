"""The private wire between the supervisor and its worker processes.

The two always run the same version of this package, so it may change with every version. Frames are ``[header]`` or
``[header, body]`` as on the public sockets; the worker has a DEALER, the supervisor a ROUTER.

A worker says ``hello`` once with the token that it was started with, ``ready`` once when its model is loaded and warm,
and then for every ``job`` that it is given any number of ``beat``, ``progress`` and ``audio``, and exactly one
``finished`` or ``failed``. A ``cancel`` makes it end the job early, with ``failed`` and code ``cancelled``; a job that
had finished already is not mentioned again. A ``suspend`` makes it put the job aside at its next border and say
``suspended``; then it waits for another ``job`` or for ``resume``. Several jobs may be put aside at a time.
"""

from __future__ import annotations

from typing import Any, get_args

import msgpack
import msgspec
from msgspec import Struct

from .events import Voice


class Message(Struct, tag_field="type", kw_only=True):
    """What all messages have: a ``type``."""


class Memory(Struct, kw_only=True):
    """What a worker knows of its own memory, in bytes; None where its engine does not use torch."""

    rss: int
    torch_allocated: int | None = None
    torch_reserved: int | None = None


# --- from the worker


class Hello(Message, tag="hello", kw_only=True):
    """The first message. ``started`` is its start time in clock ticks since boot (/proc/PID/stat, field 22)."""

    token: str
    pid: int
    started: int
    python: str


class Ready(Message, tag="ready", kw_only=True):
    """The model is loaded and has spoken its warm-up sentence."""

    engine: str
    engine_version: str
    sample_rates: list[int]
    voices: list[Voice]
    default_voice: str
    clones_voices: bool
    slots: int
    load_s: float
    warmup_s: float
    memory: Memory


class Beat(Message, tag="beat", kw_only=True):
    """The job moves: ``done`` of about ``expected`` units (tokens, chunks); sent by the thread that works."""

    job: str
    done: int
    expected: int | None = None


class SegmentDone(Message, tag="progress", kw_only=True):
    """``segment`` of ``segments`` is spoken: a border, at which the job can be cancelled or put aside."""

    job: str
    segment: int
    segments: int
    audio_s: float


class AudioChunk(Message, tag="audio", kw_only=True):
    """A chunk of a stream; the body holds its samples in the job's format and rate, mono."""

    job: str
    seq: int


class Finished(Message, tag="finished", kw_only=True):
    """The job succeeded; the body is the file, unless it was streamed, or written to ``path`` or to ``result``."""

    job: str
    sample_rate: int
    audio_s: float
    synthesis_s: float
    first_audio_s: float
    voice: str
    sha256: str
    chunks: int
    bytes: int
    path: str | None
    result: str | None = None
    #: Why ``result`` could not be written, where it should have been.
    problem: str = ""
    memory: Memory


class Failed(Message, tag="failed", kw_only=True):
    """The job failed with a code of protocol.errors. ``fatal``: the process can't go on and ends by itself.

    ``message`` is for the client, and may quote what he sent. ``reason`` says it for the log, without a word of that.
    """

    job: str
    code: str
    message: str
    reason: str = ""
    fatal: bool = False
    memory: Memory | None = None


class Suspended(Message, tag="suspended", kw_only=True):
    """The answer to ``suspend``: the job is put aside at a border, with all that is needed to go on with it."""

    job: str
    memory: Memory | None = None


class Checked(Message, tag="checked", kw_only=True):
    """The answer to ``check``: the warm-up sentence was spoken, or why not."""

    check: str
    problem: str = ""


class Trimmed(Message, tag="trimmed", kw_only=True):
    """The answer to ``trim``."""

    memory: Memory


class Bye(Message, tag="bye", kw_only=True):
    """The worker ends, and why: the last message of a process that has the time for one."""

    reason: str


WorkerMessage = (
    Hello | Ready | Beat | SegmentDone | AudioChunk | Finished | Failed | Suspended | Checked | Trimmed | Bye
)


# --- to the worker


class Job(Message, tag="job", kw_only=True):
    """Speak. ``format`` and ``sample_rate`` (None: the engine's own) are resolved; a prompt's recording is the body.

    ``recording`` is the path of a registered voice's recording, ``prompt_text`` what is said in it or in the body.
    ``output`` is an absolute path that must not exist yet; a file there that an earlier attempt at this very job has
    left is taken for its own. ``result`` is an absolute path at which the finished file of a durable job is kept
    instead of being sent; where it can't be written, the file is sent after all.
    """

    job: str
    text: str
    voice: str | None
    format: str
    sample_rate: int | None
    stream: bool
    seed: int
    options: dict[str, Any]
    prompt_text: str | None = None
    recording: str | None = None
    output: str | None = None
    result: str | None = None


class CancelJob(Message, tag="cancel", kw_only=True):
    """End the job at the next border, or sooner where the engine can."""

    job: str


class SuspendJob(Message, tag="suspend", kw_only=True):
    """Put the job aside at its next border, and say ``suspended``; a job that ends before that just ends."""

    job: str


class ResumeJob(Message, tag="resume", kw_only=True):
    """Go on with a job that was put aside."""

    job: str


class Check(Message, tag="check", kw_only=True):
    """Speak the warm-up sentence for nobody, between two jobs, and say ``checked``."""

    check: str


class Trim(Message, tag="trim", kw_only=True):
    """Collect garbage and give cached memory back."""


class StopWorker(Message, tag="stop", kw_only=True):
    """Finish the job at hand, and end."""


SupervisorMessage = Job | CancelJob | SuspendJob | ResumeJob | Check | Trim | StopWorker

_encoder = msgspec.msgpack.Encoder()
_from_worker: dict[str, Any] = {t.__struct_config__.tag: t for t in get_args(WorkerMessage)}
_to_worker: dict[str, Any] = {t.__struct_config__.tag: t for t in get_args(SupervisorMessage)}


class WorkerProtocolError(ValueError):
    """The other side of the workers socket sent something that is not in this module."""


def encode(message: WorkerMessage | SupervisorMessage) -> bytes:
    """Encode a message as its header frame."""
    return _encoder.encode(message)


def decode_from_worker(header: bytes | memoryview) -> WorkerMessage:
    """Decode what a worker sent. Raises WorkerProtocolError for anything else: a worker's memory may be damaged."""
    return _decode(header, _from_worker)  # type: ignore[no-any-return]


def decode_to_worker(header: bytes | memoryview) -> SupervisorMessage:
    """Decode what the supervisor sent. Raises WorkerProtocolError."""
    return _decode(header, _to_worker)  # type: ignore[no-any-return]


def _decode(header: bytes | memoryview, types: dict[str, Any]) -> Any:
    try:
        value = msgpack.unpackb(header, raw=False, strict_map_key=True)
        return msgspec.convert(value, types[value["type"]])
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise WorkerProtocolError(f"not one of its messages ({type(error).__name__} {error})"[:200]) from None
