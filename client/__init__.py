"""Clients of the speech daemon.

    from glmtts.client import Client
    with Client() as client:
        client.speak("今天天气不错").save("a.wav")

:class:`Client` is for most programs, :class:`AsyncClient` for asyncio, :class:`Control` and :class:`Watch` for
operators.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    BadAudio,
    BadRequest,
    Cancelled,
    ConnectionLost,
    DaemonNotRunning,
    DeadlineExceeded,
    Forbidden,
    GlmttsError,
    HandshakeFailed,
    Hung,
    JobNotFound,
    OutOfMemory,
    OutputExists,
    OutputFailed,
    ProtocolError,
    Quarantined,
    QueueFull,
    RateLimited,
    RequestFailed,
    ShuttingDown,
    SlowConsumer,
    SynthesisFailed,
    Timeout,
    TooLarge,
    Unavailable,
    UntrustedDaemon,
    VoiceNotFound,
    WorkerCrashed,
)
from .exchange import Job, JobEvent
from .pieces import FLUSH
from .speech import Chunk, Speech, SpeechOptions
from .sync import Client, Stream
from .voices import AddedVoice, VoiceSample

if TYPE_CHECKING:
    from .aio import AsyncClient, AsyncStream
    from .control import Control
    from .watch import News, Watch

__all__ = [
    "FLUSH",
    "AddedVoice", "AsyncClient", "AsyncStream", "BadAudio", "BadRequest", "Cancelled", "Chunk", "Client",
    "ConnectionLost", "Control", "DaemonNotRunning", "DeadlineExceeded", "Forbidden", "GlmttsError", "HandshakeFailed",
    "Hung", "Job", "JobEvent", "JobNotFound", "News", "OutOfMemory", "OutputExists", "OutputFailed", "ProtocolError",
    "Quarantined", "QueueFull", "RateLimited", "RequestFailed", "ShuttingDown", "SlowConsumer", "Speech",
    "SpeechOptions", "Stream", "SynthesisFailed", "Timeout", "TooLarge", "Unavailable", "UntrustedDaemon",
    "VoiceNotFound", "VoiceSample", "Watch", "WorkerCrashed",
]  # fmt: skip


_LAZY = {"AsyncClient": ".aio", "AsyncStream": ".aio", "Control": ".control", "News": ".watch", "Watch": ".watch"}


def __getattr__(name: str) -> Any:
    """Load asyncio, and other modules that most programs don't use, only when needed."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)
