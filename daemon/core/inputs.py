"""What can happen to the daemon: the events that the shell hands to the core."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from glmtts.protocol.control import ControlRequest
from glmtts.protocol.requests import ClientRequest
from glmtts.protocol.worker import WorkerMessage

from .settings import Settings


class Client(Struct, frozen=True):
    """Who sent a request, as the kernel says. ``key`` is what limits and ownership go by.

    ``operator``: root, or the user that the daemon runs as.
    """

    key: str
    user: str
    operator: bool = False


class ReplyTo(Struct, frozen=True):
    """Where answers go: a connection, and the frames that a REQ socket wants mirrored (empty for a DEALER)."""

    connection: int
    envelope: tuple[bytes, ...] = ()


class Requested(Struct):
    """A valid request came on the requests socket."""

    client: Client
    to: ReplyTo
    request: ClientRequest
    body: bytes | memoryview | None = None


class Controlled(Struct):
    """A valid operation came on the control socket. ``facts`` is what the shell adds to ``status``."""

    to: ReplyTo
    request: ControlRequest
    body: bytes | memoryview | None = None
    facts: dict[str, Any] = {}


class ConnectionClosed(Struct):
    """A client's connection has ended."""

    connection: int


class ConnectionOverrun(Struct):
    """The audio of ``job`` can't be sent: its client does not read, and the buffer for it is full."""

    connection: int
    job: str


class Spawned(Struct):
    """The process that a Spawn asked for runs."""

    spawn: int
    pid: int


class SpawnFailed(Struct):
    """The process that a Spawn asked for could not be started."""

    spawn: int
    reason: str


class WorkerSaid(Struct):
    """A worker process sent a message."""

    spawn: int
    message: WorkerMessage
    body: bytes | memoryview | None = None


class WorkerGarbled(Struct):
    """A worker process sent something that is no message."""

    spawn: int
    what: str


class ProcessEnded(Struct):
    """A worker process is gone and reaped; ``returncode`` as in subprocess: negative for a signal.

    ``last_words`` is the last line that it wrote to its stderr, the best hint at why it could not start.
    """

    spawn: int
    returncode: int
    last_words: str = ""


class StopAsked(Struct):
    """SIGTERM or SIGINT came."""

    signal: str


class SettingsRead(Struct):
    """The configuration was read again: ``settings``, or None and what is wrong. ``to`` waits for the answer."""

    settings: Settings | None
    problems: list[str]
    to: ReplyTo | None = None
    id: str = ""


class VoiceStored(Struct):
    """A voice was added, removed, or could not be: ``error`` is (code, message). ``to`` waits for the answer."""

    to: ReplyTo
    id: str
    name: str
    voice: StoredVoice | None = None
    error: tuple[str, str] | None = None


class StoredVoice(Struct, frozen=True):
    """A registered voice: its recording lies at ``path``, ``text`` is what is said in it."""

    name: str
    path: str
    text: str
    language: str = ""
    description: str = ""
    seconds: float = 0.0


class TimePassed(Struct):
    """A timer may be due."""


Input = (
    Requested
    | Controlled
    | ConnectionClosed
    | ConnectionOverrun
    | Spawned
    | SpawnFailed
    | WorkerSaid
    | WorkerGarbled
    | ProcessEnded
    | StopAsked
    | SettingsRead
    | VoiceStored
    | TimePassed
)
