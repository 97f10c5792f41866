"""One job as it is spoken: all that is needed to stop after any piece and to go on later, as if nothing had been."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import cast

from glmtts.protocol.worker import Finished, Job, Memory

from ..engines.base import Engine, EngineError, Piece, Utterance
from . import audio
from .connection import Wire
from .progress import NotWantedError, Progress
from .sinks import FileSink, Sink, StreamSink, deliver


class JobSpeech:
    """Speaks a job piece by piece. ``begun`` is when the work on it began, by time.perf_counter.

    After an exception, and when it is closed, the engine is free of it.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        utterance: Utterance,
        wire: Wire,
        *,
        rate: int,
        progress: Progress,
        begun: float,
    ) -> None:
        self._job = job
        self._utterance = utterance
        self._rate = rate
        self._progress = progress
        self._wire = wire
        native = utterance.sample_rate
        self._sink: Sink = StreamSink(job, wire) if job.stream else FileSink(job.format, rate)
        self._resampler = audio.Resampler(native, rate) if native != rate else None
        self._pieces = cast("Generator[Piece, None, None]", engine.synthesize(utterance))
        self._samples_in = 0
        self._first_audio_s = 0.0
        #: What it had taken when it was last put aside, and when it was last gone on with.
        self._spent_s = 0.0
        self._since = begun

    def step(self) -> Piece | None:
        """Speak one more piece; None when there are no more. Raises NotWantedError, and whatever the engine raises."""
        try:
            return self._step()
        except BaseException:
            self.close()
            raise

    def put_aside(self) -> None:
        """Time passes, but not for this job."""
        self._spent_s = self._spent()

    def go_on(self) -> None:
        """Time passes for it again."""
        self._since = time.perf_counter()
        self._progress.go_on()

    def close(self) -> None:
        """Leave it as it is, for good. Raises what the engine raises."""
        self._pieces.close()

    def finish(self, memory: Callable[[], Memory]) -> tuple[Finished, bytes | None]:
        """What is said after the last piece, and the file that goes with it unless it was put elsewhere.

        Raises NotWantedError, and OutputError if the file can't be put where it was asked for.
        """
        if self._resampler:
            self._sink.add(self._resampler.finish())
        file = self._sink.finish()
        synthesis_s = self._spent()
        by_reference = self._utterance.reference is not None
        finished = Finished(
            job=self._job.job,
            sample_rate=self._rate,
            audio_s=self._sink.samples / self._rate,
            synthesis_s=synthesis_s,
            first_audio_s=self._first_audio_s or synthesis_s,
            voice=self._job.voice or ("" if by_reference else str(self._utterance.voice or "")),
            sha256=self._sink.sha256(),
            chunks=self._sink.chunks,
            bytes=self._sink.size(),
            path=self._job.output,
            memory=memory(),
        )
        return finished, None if file is None else deliver(self._job, file, finished)

    def _step(self) -> Piece | None:
        if not self._wire.wanted(self._job.job):
            raise NotWantedError
        piece = next(self._pieces, None)
        # Also after the last piece: an engine that sees the cancellation first just returns.
        if self._progress.cancelled():
            raise NotWantedError
        if piece is None:
            return None
        self._samples_in += len(piece.samples)
        _check_numbers(piece)
        self._sink.add(self._resampler.add(piece.samples) if self._resampler else piece.samples)
        self._first_audio_s = self._first_audio_s or self._spent()
        if piece.ends_segment and piece.segments > 1:
            self._progress.segment_done(piece, self._samples_in / self._utterance.sample_rate)
        return piece

    def _spent(self) -> float:
        return self._spent_s + time.perf_counter() - self._since


def _check_numbers(piece: Piece) -> None:
    # Their energy is finite if all of them are: one pass instead of two.
    if not math.isfinite(piece.samples.dot(piece.samples)):
        raise EngineError(
            "synthesis_failed", "the engine made samples that are no numbers; another seed or shorter text may help"
        )
