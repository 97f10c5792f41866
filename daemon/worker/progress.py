"""Reads messages and reports the jobs' progress, also in the middle of an engine's step."""

from __future__ import annotations

import time
from collections.abc import Callable

from glmtts.protocol.worker import Beats, JobProgress, SupervisorMessage

from .connection import SupervisorConnection

#: How often a step reads the messages, and how often the jobs' progress is reported.
_LOOK_S = 0.002
_BEAT_S = 0.1


class JobCancelledError(Exception):
    """The job was cancelled, or the process received SIGTERM."""


class Pulse:
    """Reads messages and sends beats; cheap enough for thousands of calls a second.

    Messages are only noted, as the engine may be in the middle of a step.
    """

    def __init__(
        self,
        connection: SupervisorConnection,
        take: Callable[[SupervisorMessage, bytes | None], None],
        progress: Callable[[], list[JobProgress]],
    ) -> None:
        """``take``: notes a message. ``progress``: returns that of the jobs that the engine works on."""
        self._connection = connection
        self._take = take
        self._progress = progress
        self._looked = 0.0
        self._beat_at = 0.0

    def read(self) -> None:
        """Send what waits for room, and take the messages that have arrived. Raises WorkerProtocolError."""
        self._connection.flush()
        for message, body in self._connection.receive():
            self._take(message, body)

    def look(self, _done: int = 0, _expected: int | None = None) -> None:
        """Read messages and report progress, at most every 2 ms; for an engine in the middle of a step."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self.read()
            self.beat()

    def beat(self) -> None:
        """Report the jobs' progress, if it is time."""
        if time.monotonic() < self._beat_at:
            return
        self.restart()
        if jobs := self._progress():
            self._connection.try_send(Beats(jobs=jobs))

    def restart(self) -> None:
        """Count the time to the next beat from now; when a job begins in an idle worker."""
        self._beat_at = time.monotonic() + _BEAT_S

    def due_s(self) -> float:
        """Seconds until the next beat."""
        return max(0.0, self._beat_at - time.monotonic())
