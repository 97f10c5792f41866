"""Adapts an Engine, which speaks one job at a time, to the contract of BatchEngine."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import cast

from glmtts.protocol.events import Voice
from glmtts.protocol.worker import WorkerProtocolError

from .base import (
    BatchEngine,
    Broken,
    Ended,
    Engine,
    Event,
    Handle,
    MemoryFigures,
    Piece,
    Reference,
    Spoken,
    Utterance,
    no_beat,
)


@dataclass(eq=False)
class _Job(Handle):
    """A job with its generator. ``before_s``: its work until the step that it is in began."""

    pieces: Generator[Piece, None, None] = field(init=False)
    before_s: float = 0.0


class OneAtATime(BatchEngine):
    """Owns the generators of an Engine, one of which is advanced; a step is the time until its next piece.

    A job is suspended where a segment ended, or for a moment in which no other is begun or resumed. In the middle of a
    step the job's beats come by the ``beat`` of its utterance, and its cancellation by ``cancelled``.
    """

    slots = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.version = engine.name, engine.version
        self.sample_rates, self.options = engine.sample_rates, engine.options
        self.clones_voices = engine.clones_voices
        self.repeats, self.experimental = engine.repeats, engine.experimental
        self._open: set[_Job] = set()
        self._job: _Job | None = None
        self._since = 0.0

    @property
    def voices(self) -> list[Voice]:
        return self._engine.voices

    def warm_up_reference(self) -> Reference | None:
        return self._engine.warm_up_reference()

    def trim(self) -> None:
        self._engine.trim()

    def memory(self) -> MemoryFigures:
        return self._engine.memory()

    def close(self) -> None:
        self._engine.close()

    def begin(self, utterance: Utterance) -> Handle:
        job = _Job(utterance)
        beat = utterance.beat

        def moved(done: int, expected: int | None = None) -> None:
            job.done, job.expected = done, expected
            job.work_s = job.before_s + time.perf_counter() - self._since
            beat(done, expected)

        utterance.beat = moved
        job.pieces = cast("Generator[Piece, None, None]", self._engine.synthesize(utterance))
        self._open.add(job)
        self._job = job
        return job

    def advance(self) -> list[Event]:
        job = self._job
        if job is None:
            return []
        self.record("speak", (job.utterance.job,))
        self._since = time.perf_counter()
        try:
            piece = next(job.pieces, None)
        except WorkerProtocolError:
            raise
        except Exception as error:
            self._leave(job)
            return [Broken(job, error)]
        finally:
            job.work_s = job.before_s = job.before_s + time.perf_counter() - self._since
        if piece is None:
            self._leave(job)
            return [Ended(job)]
        return [Spoken(job, piece)]

    def idle_s(self) -> float | None:
        return None if self._job is None else 0.0

    def suspend(self, handle: Handle) -> None:
        if self._job is handle:
            self._job = None

    def resume(self, handle: Handle) -> None:
        self._job = cast("_Job", handle)

    def cancel(self, handle: Handle) -> None:
        job = cast("_Job", handle)
        self._leave(job)
        job.pieces.close()

    @property
    def settled(self) -> bool:
        return not self._open

    def _leave(self, job: _Job) -> None:
        self._open.discard(job)
        self.suspend(job)
        # It knows the job: without it both are freed at once.
        job.utterance.beat = no_beat
