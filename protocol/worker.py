"""The private wire between the supervisor and its worker processes.

The two always run the same version of this package, so it may change with every version. Frames are ``[header]`` or
``[header, body]`` as on the public sockets; the worker has a DEALER, the supervisor a ROUTER.

A worker sends ``hello`` once, with the token that it was started with, and ``ready`` once, when its model is loaded and
warm. For every ``job`` it sends any number of ``beats``, ``progress`` and ``audio``, and exactly one ``finished`` or
``failed``. A ``cancel`` ends the job early, with ``failed`` and code ``cancelled``; for a job that has already ended it
has no answer. A ``suspend`` stops the job at its next segment boundary, or with several slots before its next step. It
is answered by ``suspended``, and the slot is then free for another ``job``, or for a ``resume``. Several jobs may be
suspended at a time. A job with ``more`` gets the rest of its text by ``text``; when all that came is
spoken and the last has not come, the worker suspends it unasked.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from .events import Voice

T = TypeVar("T")

#: The most suspended jobs of one worker, without those that wait for text: each holds memory, and the one that was
#: suspended first resumes last.
MAX_SUSPENDED = 3


class Message(Struct, tag_field="type", kw_only=True):
    """Base of all messages; ``type`` names which one it is."""


class Memory(Struct, kw_only=True):
    """A worker's memory in bytes: resident, and torch's figures (None for an engine without torch)."""

    rss: int
    torch_allocated: int | None = None
    torch_reserved: int | None = None
    #: Whether the figures include no working memory of jobs, so that they count as those of an idle process.
    settled: bool = False


# --- from the worker


class Hello(Message, tag="hello", kw_only=True):
    """The first message. ``started``: the process's start in clock ticks since boot (/proc/PID/stat, field 22)."""

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
    #: ``yes`` for an engine in C that was confined; ``not`` and the reason; empty for others.
    confined: str = ""
    #: Whether it can change the speed of speech.
    speeds: bool = False
    #: Whether the same text, voice, options and seed give the same bytes again, in another process too.
    repeats: bool = False
    #: The experimental part of its configuration, in words; empty for none.
    experimental: str = ""


class JobProgress(Struct, array_like=True):
    """``done`` of about ``expected`` units of a job; ``work_s``: the seconds of engine time that it took so far."""

    job: str
    done: int
    expected: int | None = None
    work_s: float = 0.0


class Beats(Message, tag="beats", kw_only=True):
    """The progress of all jobs that the worker works on, in one message. Sent by the thread that works."""

    jobs: list[JobProgress]


class SegmentDone(Message, tag="progress", kw_only=True):
    """``segment`` of ``segments`` is spoken, ``audio_s`` seconds in all. The job can be suspended at this boundary."""

    job: str
    segment: int
    segments: int
    audio_s: float


class AudioChunk(Message, tag="audio", kw_only=True):
    """A chunk of a stream, numbered from 0; the body has its samples in the job's format and rate, mono.

    ``audio_s``: seconds of speech so far. ``digest``: the SHA-256 of all bytes of the stream up to this chunk's end.
    """

    job: str
    seq: int
    audio_s: float = 0.0
    digest: bytes = b""


class Finished(Message, tag="finished", kw_only=True):
    """The job succeeded; the body is the file, unless it was streamed or written to ``path`` or ``result``.

    ``problem``: why ``result`` could not be written although the job asked for it. ``work_s``: the seconds of engine
    time that the job took: its own stages, and its part of each step that it shared with other jobs.
    """

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
    problem: str = ""
    work_s: float = 0.0
    memory: Memory


class Failed(Message, tag="failed", kw_only=True):
    """The job failed with a code of protocol.errors or of exit_codes.py. ``fatal``: the process ends by itself.

    ``message`` is for the client and may quote the request. ``reason`` is for the log and never does. ``suspects``, of
    a fatal failure in a step that several jobs shared: the jobs in that step, one of which may have caused it; ``job``
    is empty then. ``work_s``: as in Finished.
    """

    job: str
    code: str
    message: str
    reason: str = ""
    fatal: bool = False
    suspects: list[str] = []
    work_s: float = 0.0
    memory: Memory | None = None


class Suspended(Message, tag="suspended", kw_only=True):
    """The answer to ``suspend``: the job stopped and can be resumed.

    ``waits``: it has spoken all of its text, of which more may come; ``texts``: the number of ``text`` messages read.
    """

    job: str
    memory: Memory | None = None
    waits: bool = False
    texts: int = 0
    work_s: float = 0.0


class Checked(Message, tag="checked", kw_only=True):
    """The answer to ``check``; ``problem``: why the warm-up sentence could not be spoken."""

    check: str
    problem: str = ""


class Trimmed(Message, tag="trimmed", kw_only=True):
    """The answer to ``trim``."""

    memory: Memory


class Bye(Message, tag="bye", kw_only=True):
    """The worker ends, and why. The last message, except of a process that crashes."""

    reason: str


WorkerMessage = (
    Hello | Ready | Beats | SegmentDone | AudioChunk | Finished | Failed | Suspended | Checked | Trimmed | Bye
)


# --- to the worker


class Replay(Struct, array_like=True):
    """The part of a stream that an earlier attempt sent: its length in bytes, its SHA-256, and its number of chunks."""

    size: int
    digest: bytes
    chunks: int


class SpeakJob(Message, tag="job", kw_only=True):
    """Speak a text. The body is the recording of a prompt.

    ``sample_rate``: in Hz; None: the engine's own.
    ``recording``: the path of a registered voice's recording; ``prompt_text``: its transcript, or that of the body.
    ``output``: the absolute path of a file to create. One that an earlier attempt at this job left there counts.
    ``output_room``: bytes that the output may take; None: any number. ``keep_free``: bytes that it leaves on the disk.
    ``result``: the absolute path for the finished file of a durable job; if it can't be written, the file is sent.
    ``whole``: the result of a stream is the file as it is without a stream, with its length in its header.
    ``more``: the rest of the text comes in AddText messages, the last of which says so.
    ``replay``: a part of the stream that is made again and not sent again. If it is not the same, the job fails with
    ``worker_crashed``, and nothing is sent.
    ``batch``: its class is ``batch``; an engine for several jobs may serve others before it.
    """

    job: str
    text: str
    voice: str | None
    format: str
    sample_rate: int | None
    stream: bool
    seed: int
    options: dict[str, Any]
    speed: float = 1.0
    prompt_text: str | None = None
    recording: str | None = None
    output: str | None = None
    output_room: int | None = None
    keep_free: int = 0
    result: str | None = None
    whole: bool = False
    more: bool = False
    replay: Replay | None = None
    batch: bool = False


class AddText(Message, tag="text", kw_only=True):
    """More of the text of a job, whole sentences; ``last``: nothing comes after it."""

    job: str
    text: str
    last: bool = False


class CancelJob(Message, tag="cancel", kw_only=True):
    """End the job before the engine's next step, or in the middle of one if the engine can."""

    job: str


class SuspendJob(Message, tag="suspend", kw_only=True):
    """Suspend the job at its next segment boundary, or with several slots before its next step.

    A job that ends before that is not suspended.
    """

    job: str


class ResumeJob(Message, tag="resume", kw_only=True):
    """Resume a suspended job."""

    job: str


class Check(Message, tag="check", kw_only=True):
    """Speak the warm-up sentence while no job runs, discard the audio, and answer with ``checked``."""

    check: str


class Trim(Message, tag="trim", kw_only=True):
    """Collect garbage and release cached memory, between two steps; answered with ``trimmed``."""


class StopWorker(Message, tag="stop", kw_only=True):
    """Finish the current jobs, then end."""


SupervisorMessage = SpeakJob | AddText | CancelJob | SuspendJob | ResumeJob | Check | Trim | StopWorker

_encoder = msgspec.msgpack.Encoder()
# A length in a header reserves no memory: msgspec reads what is there, and an unknown key's value is skipped.
_from_worker: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)
_to_worker: msgspec.msgpack.Decoder[SupervisorMessage] = msgspec.msgpack.Decoder(SupervisorMessage)


class WorkerProtocolError(ValueError):
    """The other side of the workers' socket sent bytes that are no message of this module."""


def encode(message: WorkerMessage | SupervisorMessage) -> bytes:
    """Encode a message as its header frame."""
    return _encoder.encode(message)


def decode_from_worker(header: bytes | memoryview) -> WorkerMessage:
    """Decode a worker's message. Raises WorkerProtocolError for any other bytes: a worker's memory may be corrupt."""
    return _decode(_from_worker, header)


def decode_to_worker(header: bytes | memoryview) -> SupervisorMessage:
    """Decode a message of the supervisor. Raises WorkerProtocolError."""
    return _decode(_to_worker, header)


def _decode(decoder: msgspec.msgpack.Decoder[T], header: bytes | memoryview) -> T:
    try:
        return decoder.decode(header)
    except (ValueError, RecursionError, MemoryError) as error:
        raise WorkerProtocolError(f"not one of its messages ({type(error).__name__} {error})"[:200]) from None
