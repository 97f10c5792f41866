"""What the core asks the shell to do. Effects are done in their order."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from glmtts.protocol.control import LogLevel, VoiceAdd, VoiceRemove
from glmtts.protocol.events import ServerEvent
from glmtts.protocol.worker import SupervisorMessage

from .inputs import ReplyTo


class Send(Struct):
    """Send an event to a client."""

    to: ReplyTo
    event: ServerEvent
    body: bytes | memoryview | None = None


class Tell(Struct):
    """Send a message to a worker process."""

    spawn: int
    message: SupervisorMessage
    body: bytes | memoryview | None = None


class Spawn(Struct):
    """Start a process for the worker ``name``; it is called ``spawn`` from now on.

    ``gpu`` is a number of ``[workers] gpus``, ``device`` what CUDA_VISIBLE_DEVICES is to be set to; both None without a
    GPU. ``vram_share`` is the share of the GPU's memory that the process may use, 0..1; 0 for no limit.
    """

    spawn: int
    name: str
    gpu: int | None
    device: str | None = None
    vram_share: float = 0.0


class Signal(Struct):
    """Signal a worker process: ``term`` to it alone, ``kill`` to its whole group."""

    spawn: int
    signal: Literal["term", "kill"]


class Sample(Struct):
    """Look at GPUs and processes as soon as possible, and hand back Sampled; it comes now and then without asking."""


class Publish(Struct):
    """Tell the events socket."""

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


class ReadSettings(Struct):
    """Read the configuration again, and hand it back as SettingsRead."""

    to: ReplyTo | None = None
    id: str = ""


class StoreVoice(Struct):
    """Check and keep a voice's recording, or remove it, and hand back VoiceStored."""

    to: ReplyTo
    request: VoiceAdd | VoiceRemove
    recording: bytes | memoryview | None = None


class Exit(Struct):
    """End the daemon with this status."""

    status: int


Effect = Send | Tell | Spawn | Signal | Sample | Publish | Log | ChangeLogLevel | ReadSettings | StoreVoice | Exit
