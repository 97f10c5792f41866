"""Operations of the control socket. An operator's ``job`` and ``jobs`` are those of clients, for all jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from .requests import MAX_DEADLINE_S, GetJob, JobId, ListJobs, Ping, Request, VoiceName

LogLevel = Literal["debug", "info", "warning", "error"]

#: Each worker is a process with a model of its own. The largest machines have 16 GPUs of seven MIG instances each; more
#: than twice their number is a typing error, and would fill the machine with processes.
MAX_WORKERS = 256

#: The greatest number of a line of the log that can be asked for.
MAX_LINE = 2**63 - 1


class Status(Request, tag="status", kw_only=True):
    """The daemon in one map: state, workers, queue, counters, memory."""


class Health(Request, tag="health", kw_only=True, omit_defaults=True):
    """Whether a new job would be served; with ``deep`` every worker first speaks a word."""

    deep: bool = False
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 30.0


class Logs(Request, tag="logs", kw_only=True, omit_defaults=True):
    """The last ``limit`` recent lines of the log, or those after number ``after``, as far as they fit."""

    limit: Annotated[int, Meta(ge=0, le=500)] = 100
    after: Annotated[int, Meta(ge=0, le=MAX_LINE)] | UnsetType = UNSET
    worker: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    job: JobId | UnsetType = UNSET
    level: LogLevel = "debug"


class Workers(Request, tag="workers", kw_only=True):
    """Every worker: state, process, jobs, last exit and its cause."""


class Gpus(Request, tag="gpus", kw_only=True):
    """Every GPU and the processes that use its memory."""


class Recycle(Request, tag="recycle", kw_only=True):
    """Replace a worker's process after its job; ``worker`` is a name, or ``all``."""

    worker: Annotated[str, Meta(min_length=1, max_length=64)]


class Scale(Request, tag="scale", kw_only=True, omit_defaults=True):
    """Change the bounds of the number of workers."""

    min: Annotated[int, Meta(ge=0, le=MAX_WORKERS)] | UnsetType = UNSET
    max: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] | UnsetType = UNSET


class Quarantine(Request, tag="quarantine", kw_only=True, omit_defaults=True):
    """Jobs that are refused because workers died of them; ``clear`` permits one, or ``all``, again."""

    clear: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET


class Cancel(Request, tag="cancel", kw_only=True, omit_defaults=True):
    """Cancel any job, or all jobs of a client: one of the two. ``client``: a user, or a client as ``jobs`` shows it."""

    job: JobId | UnsetType = UNSET
    client: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET


class Queue(Request, tag="queue", kw_only=True, omit_defaults=True):
    """The waiting jobs: by class, by client, and the first ``limit`` in their order."""

    limit: Annotated[int, Meta(ge=0, le=1_000)] = 50


class GetLimits(Request, tag="limits", kw_only=True, omit_defaults=True):
    """The limits in force, and each client's use of them; ``client``: one client, even if it has never connected."""

    client: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET


class Pause(Request, tag="pause", kw_only=True):
    """Accept jobs but start none."""


class Resume(Request, tag="resume", kw_only=True):
    """Start jobs again: the end of a pause or of a drain."""


class Drain(Request, tag="drain", kw_only=True, omit_defaults=True):
    """Accept no new job and finish those accepted; answered when that is done, or after ``timeout_s``."""

    timeout_s: Annotated[float, Meta(gt=0, le=MAX_DEADLINE_S)] | UnsetType = UNSET


class Stop(Request, tag="stop", kw_only=True):
    """Drain and end the daemon; a second one ends it at once."""


class Reload(Request, tag="reload", kw_only=True):
    """Read the configuration again and apply the keys that can be changed live."""


class SetLogLevel(Request, tag="log_level", kw_only=True):
    """Log from this level on, until the next reload."""

    level: LogLevel


class VoiceAdd(Request, tag="voice_add", kw_only=True, omit_defaults=True):
    """Register a voice for all clients: the body is its recording, ``text`` the transcript."""

    name: VoiceName
    text: Annotated[str, Meta(min_length=1, max_length=1_000)]
    language: Annotated[str, Meta(max_length=32)] = ""
    description: Annotated[str, Meta(max_length=500)] = ""
    replace: bool = False


class VoiceRemove(Request, tag="voice_remove", kw_only=True, omit_defaults=True):
    """Remove a voice for all clients, or one of ``client``'s own, as ``limits`` shows it."""

    name: VoiceName
    client: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET


class Metrics(Request, tag="metrics", kw_only=True):
    """The metrics in Prometheus's text format."""


class GetConfig(Request, tag="config", kw_only=True):
    """The configuration in force."""


ControlRequest = (
    Status
    | Health
    | Logs
    | Workers
    | Gpus
    | ListJobs
    | GetJob
    | Cancel
    | Ping
    | Queue
    | GetLimits
    | Recycle
    | Scale
    | Quarantine
    | Pause
    | Resume
    | Drain
    | Stop
    | Reload
    | SetLogLevel
    | VoiceAdd
    | VoiceRemove
    | Metrics
    | GetConfig
)
