"""Shared by all parts of the core during one step: the time, the settings, the timers, the effects."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from glmtts.protocol.control import LogLevel
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.events import ClosedEvent, Error, Result

from .counters import Counters
from .effects import (
    Effect,
    InternalError,
    JournalFind,
    Log,
    Publish,
    ReadLog,
    ReadSettings,
    Send,
    SendStored,
    StoreVoice,
    WriteMetrics,
)
from .inputs import ReplyTo
from .settings import Settings
from .timers import Timers

#: The timer of the next judgement by the rules of alerts (alert_evaluator.py), and how often there is one at most.
JUDGE = ("judge", "")
_JUDGE_S = 5.0
#: The message to a client whose request or job met an internal error.
INTERNAL_ERROR = "an internal error of the daemon, which is in its log; the request was not carried out"
_LEVELS: dict[LogLevel, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Context:
    """The clocks stand still within a step: ``now`` and ``wall`` are arguments of the step.

    ``now`` counts the seconds in which the daemon was running. Every time in the core is of this clock, and times leave
    the core as spans. ``wall`` is the date, in seconds since 1970: anyone may set it, so it is shown and never
    reckoned with.
    """

    def __init__(self, settings: Settings, now: float, wall: float, seed: int) -> None:
        self.settings = settings
        self.now = now
        self.wall = wall
        self.started_at = now
        self.timers = Timers()
        self.counters = Counters()
        self.random = random.Random(seed)
        self.effects: list[Effect] = []
        #: Whether the step has changed what jobs may do, and what workers may: it then ends with a reconcile of these.
        self.jobs_dirty = False
        self.workers_dirty = False
        #: Whether a part of a step has raised an exception, from which no step has recovered yet.
        self.failed = False
        #: Whether the events socket has a subscriber; without one nothing is published.
        self.watched = False
        self.level: int = _LEVELS[settings.daemon.log_level]

    def guarded(self, act: Callable[..., object], *arguments: Any) -> bool:
        """Call a part of a step; returns False if it raised an exception, which is reported as an internal error.

        Effects that were decided before the exception stay, and the rest of the step goes on.
        """
        try:
            act(*arguments)
        except Exception as error:
            self.failed = True
            self.effects.append(InternalError(error))
            return False
        return True

    def answer(self, to: ReplyTo, id: str, act: Callable[..., object], *arguments: Any) -> None:
        """Call a part of a step that answers a request; if it raises before the answer, an error is the answer."""
        if not self.guarded(act, *arguments) and not self.answers(to, id):
            self.refuse(to, id, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def answers(self, to: ReplyTo, id: str) -> bool:
        """Whether this step has sent the last event of a request, or an effect that leads to it."""
        return any(request_of(effect) == (to, id) for effect in self.effects)

    def stir(self) -> None:
        """Have the rules of alerts judged soon: something has changed that they look at."""
        if JUDGE not in self.timers:
            self.timers.set(JUDGE, self.now + min(_JUDGE_S, self.settings.alerts.for_s / 4))

    def set_log_level(self, level: LogLevel) -> None:
        """Drop the lines below this level here, where they are cheapest to drop."""
        self.level = _LEVELS[level]

    def log(self, level: LogLevel, message: str, **fields: Any) -> None:
        """One fact, one line."""
        if _LEVELS[level] >= self.level:
            self.effects.append(Log(level, message, fields))

    def publish(self, topic: str, **values: Any) -> None:
        """Send an event to the subscribers of the events socket."""
        if self.watched:
            self.effects.append(Publish(topic, values))

    def send(
        self, to: ReplyTo, event: ClosedEvent | Result, body: bytes | memoryview | None = None, *, id: str = ""
    ) -> None:
        """Send an event to a client; ``id`` as in :class:`Send`."""
        self.effects.append(Send(to, event, body, id))

    def refuse(
        self, to: ReplyTo, id: str, code: ErrorCode, message: str, *, retry_after_s: float | None = None
    ) -> None:
        """Answer a request that makes no job, or none any more, with an error."""
        self.send(to, Error.of(id, code, message, retry_after_s=retry_after_s))


def request_of(effect: object) -> tuple[ReplyTo, str] | None:
    """The request whose last event this effect sends, or leads to; None if it does neither."""
    match effect:
        case Send(to=to, event=event) if event.final:
            return to, effect.id or event.id
        case SendStored(to=to, event=done):
            return to, done.id
        case JournalFind(to=to, request=request) | ReadLog(to=to, request=request) | StoreVoice(to=to, request=request):
            return to, request.id
        case ReadSettings(to=ReplyTo() as to, id=id) | WriteMetrics(to=to, id=id):
            return to, id
    return None
