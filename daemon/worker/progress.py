"""Beats, borders and cancellation of a job, at a price that a loop of thousands of tokens a second does not notice."""

from __future__ import annotations

import time
from typing import cast

from glmtts.protocol.worker import Beat, SegmentDone

from ..engines.base import Piece
from .connection import Wire

#: How often the wire is looked at during a job, and how often a job that moves says so.
_POLL_S = 0.002
_BEAT_S = 0.1


class NotWantedError(Exception):
    """The job was cancelled, or the process told to end."""


class Progress:
    """Says how far a job is, and hears whether it is still wanted. It is silent while the job is put aside."""

    def __init__(self, job: str, wire: Wire) -> None:
        self._job = job
        self._wire = wire
        self._polled = self._said = time.monotonic()
        self._last = (0, cast("int | None", None))

    def beat(self, done: int, expected: int | None = None) -> None:
        """Called by the engine."""
        self._last = (done, expected)
        self._look()

    def cancelled(self) -> bool:
        self._look()
        return not self._wire.wanted(self._job)

    def segment_done(self, piece: Piece, audio_s: float) -> None:
        """Say that a segment is spoken, and read what has come in: at a border it is decided how the job goes on."""
        self._wire.send(
            SegmentDone(job=self._job, segment=piece.segment + 1, segments=piece.segments, audio_s=audio_s),
            until=lambda: not self._wire.wanted(self._job),
        )
        self._wire.poll()
        self._said = self._polled = time.monotonic()

    def go_on(self) -> None:
        """The job goes on after it was put aside: beats count from now."""
        self._said = self._polled = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._polled < _POLL_S:
            return
        self._polled = now
        self._wire.poll()
        if now - self._said >= _BEAT_S:
            self._said = now
            done, expected = self._last
            self._wire.try_send(Beat(job=self._job, done=done, expected=expected))
