"""Beats, segment boundaries and cancellation of a job, cheap enough for thousands of tokens a second."""

from __future__ import annotations

import time

from glmtts.protocol.worker import Beat, SegmentDone

from ..engines.base import Piece
from .connection import SupervisorConnection

#: How often a running job reads its messages, and how often it reports progress.
_POLL_S = 0.002
_BEAT_S = 0.1


class JobCancelledError(Exception):
    """The job was cancelled, or the process received SIGTERM."""


class Heartbeat:
    """Reports a running job's progress, and learns whether the job is still wanted. Silent while it is suspended."""

    def __init__(self, job: str, connection: SupervisorConnection) -> None:
        self._job = job
        self._connection = connection
        self._polled = self._sent = time.monotonic()
        self._last: tuple[int, int | None] = (0, None)

    def beat(self, done: int, expected: int | None = None) -> None:
        """The engine has done ``done`` of about ``expected`` steps."""
        self._last = (done, expected)
        self._look()

    def cancelled(self) -> bool:
        """Whether the engine should stop."""
        self._look()
        return not self._connection.wanted(self._job)

    def segment_done(self, piece: Piece, audio_s: float) -> None:
        """Report a segment boundary, and read the messages that decide how the job continues."""
        self._connection.send(
            SegmentDone(job=self._job, segment=piece.segment + 1, segments=piece.segments, audio_s=audio_s),
            until=lambda: not self._connection.wanted(self._job),
        )
        self._connection.poll()
        self.restart()

    def restart(self) -> None:
        """Count the time to the next beat from now; for a job that is resumed."""
        self._sent = self._polled = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._polled < _POLL_S:
            return
        self._polled = now
        self._connection.poll()
        if now - self._sent >= _BEAT_S:
            self._sent = now
            done, expected = self._last
            self._connection.try_send(Beat(job=self._job, done=done, expected=expected))
