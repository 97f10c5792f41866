"""What every part of the core has at hand during a step: the time, the settings, the timers, and a list for effects."""

from __future__ import annotations

import random
from typing import Any

from glmtts.protocol.control import LogLevel
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.events import ClosedEvent, Error, Result

from .counters import Counters
from .effects import Effect, Log, Publish, Send
from .inputs import ReplyTo
from .settings import Settings
from .timers import Timers

#: The timer of the next judgement by the rules of alerts (alert_watch.py), and how often there is one at most.
JUDGE = ("judge", "")
_JUDGE_S = 5.0
_LEVELS: dict[LogLevel, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Context:
    """The clock stands still within a step: ``now`` is the argument of the step."""

    def __init__(self, settings: Settings, now: float, wall: float, seed: int) -> None:
        self.settings = settings
        self.now = now
        self.started_at = now
        self._wall_offset = wall - now
        self.timers = Timers()
        self.counters = Counters()
        self.random = random.Random(seed)
        self.effects: list[Effect] = []
        #: Whether the step has changed what jobs may do, and what workers may: it then ends with a reconcile of these.
        self.jobs_dirty = False
        self.workers_dirty = False
        #: Whether anybody listens on the events socket: what nobody hears is not said.
        self.watched = False
        self.level: int = _LEVELS[settings.daemon.log_level]

    @property
    def wall(self) -> float:
        """Seconds since 1970, UTC."""
        return self.now + self._wall_offset

    def stir(self) -> None:
        """Something goes on: have it judged whether anybody should know of it."""
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
        """Tell whoever watches."""
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
