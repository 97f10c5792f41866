"""Effects: actions that the core requests from the shell, which carries them out in order."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from glmtts.protocol import requests
from glmtts.protocol.control import LogLevel, Logs, VoiceAdd, VoiceRemove
from glmtts.protocol.events import Done, Error, ServerEvent, VoiceSampleAnswer
from glmtts.protocol.requests import ClientRequest, JobState
from glmtts.protocol.worker import SupervisorMessage

from .inputs import JournalRow, ReplyTo, UsageRow
from .metric_types import Family
from .settings import Settings


class Send(Struct):
    """Send an event to a client.

    ``id``: of the request that it answers, to be put in when it is encoded, where one event goes to several requests.
    """

    to: ReplyTo
    event: ServerEvent
    body: bytes | memoryview | None = None
    id: str = ""


class Tell(Struct):
    """Send a message to a worker process."""

    incarnation: int
    message: SupervisorMessage
    body: bytes | memoryview | None = None


class Spawn(Struct):
    """Start a process for the worker ``name``; ``incarnation`` is its number from now on.

    ``gpu`` is a number of ``[workers] gpus``, ``device`` what CUDA_VISIBLE_DEVICES is to be set to; both None without a
    GPU. ``vram_share`` is the share of the GPU's memory that the process may use, 0..1; 0 for no limit.
    """

    incarnation: int
    name: str
    gpu: int | None
    device: str | None = None
    vram_share: float = 0.0
    #: At most this many jobs at once; 0: as many as the engine takes.
    slots: int = 0


class ReadRecorder(Struct):
    """Read the flight recorder of a process that has failed, and hand back RecorderRead, unless it has just ended."""

    incarnation: int


class Signal(Struct):
    """Signal a worker process: ``term`` to it alone, ``kill`` to its whole group."""

    incarnation: int
    signal: Literal["term", "kill"]


class Sample(Struct):
    """Sample GPUs and processes as soon as possible, and hand back Sampled; it comes regularly without asking, too."""


class Publish(Struct):
    """Send an event to the events socket."""

    topic: str
    values: dict[str, Any]


class Log(Struct):
    """Write a line to the log."""

    level: LogLevel
    message: str
    fields: dict[str, Any] = {}


class ChangeLogLevel(Struct):
    """Log from this level on."""

    level: LogLevel


class UseSettings(Struct):
    """These settings hold from now on, for the processes that are started next and for what the shell does itself."""

    settings: Settings


class KeepPause(Struct):
    """Write down since when the queue is paused, in seconds since 1970, for the next daemon; None: it is not."""

    since: float | None


class ReadLog(Struct):
    """Answer with lines of the log that are kept."""

    to: ReplyTo
    request: Logs


class ReadSettings(Struct):
    """Read the configuration again, and hand it back as SettingsRead."""

    to: ReplyTo | None = None
    id: str = ""


class WriteMetrics(Struct):
    """Write metrics in Prometheus's text format, with the shell's own, and answer the operator with them."""

    to: ReplyTo
    id: str
    families: list[Family]


class StoreVoice(Struct):
    """Check and keep a voice's recording, or remove it, and hand back VoiceStored.

    ``owner``: the client whose own voice it is, one at a time; empty for a voice for all.
    """

    to: ReplyTo
    request: VoiceAdd | VoiceRemove | requests.VoiceAdd | requests.VoiceRemove
    recording: bytes | memoryview | None = None
    owner: str = ""


class JournalAdd(Struct):
    """Write a durable job down, and hand back JournalAdded when it is on disk."""

    row: JournalRow


class JournalStart(Struct):
    """Note that an attempt at a durable job begins; there is no answer."""

    job: str
    attempts: int


class JournalEnd(Struct):
    """Note how a durable job ended, and hand back JournalEnded when that is on disk.

    The row and the file ``result`` are kept for ``keep_s`` seconds; of all results together at most ``keep_bytes`` are,
    and the oldest files go first.
    """

    job: str
    state: JobState
    event: Done | Error
    result: str
    keep_s: float
    keep_bytes: int
    #: Bytes that results leave free on the disk, so that the next one finds room: as many as it brings go then.
    keep_free: int = 0


class KeepUsage(Struct):
    """Add to what clients had spoken, in the journal; rows of days before ``oldest`` go. There is no answer."""

    rows: list[UsageRow]
    oldest: int


class JournalFind(Struct):
    """Look up a job that is not in memory, and hand back JournalFound. ``client``: whose it must be; None: any."""

    to: ReplyTo
    request: ClientRequest
    client: str | None


class SendStored(Struct):
    """Read a file, and send an event with it as the body; or hand back StoredLost."""

    to: ReplyTo
    event: Done | VoiceSampleAnswer
    path: str


class SettleOutput(Struct):
    """``job`` has ended: remove the mark by which another attempt would know what it has written to ``path``.

    ``wanted``: whether it ended well; otherwise the file is removed too, if it is there and that job wrote it.
    ``client``: whose the file is.
    """

    job: str
    path: str
    wanted: bool
    client: str = ""


class MeasureOutputs(Struct):
    """Measure the outputs folder soon, and hand back OutputsMeasured; it comes regularly without asking, too."""


class InternalError(Struct):
    """Log and count an exception in the core, which is a bug. The other effects of its step are not affected."""

    error: Exception


class Exit(Struct):
    """End the daemon with this status."""

    status: int


Effect = (
    Send | Tell | Spawn | ReadRecorder | Signal | Sample | Publish | Log | ChangeLogLevel | UseSettings | KeepPause
    | ReadLog | ReadSettings | StoreVoice | WriteMetrics | JournalAdd | JournalStart | JournalEnd | JournalFind
    | KeepUsage | SendStored | SettleOutput | MeasureOutputs | InternalError | Exit
)  # fmt: skip
