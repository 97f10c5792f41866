"""One running job: everything that is needed to stop after any piece of audio, and to continue later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import cast

from glmtts.protocol.worker import Finished, Memory, SpeakJob

from ..engines.base import Engine, EngineError, Piece, Utterance
from . import audio, log
from .connection import SupervisorConnection
from .progress import Heartbeat, JobCancelledError
from .sinks import FileSink, StreamSink, deliver
from .text_feed import TextFeed

#: The power of -100 dB: engines say nothing with exact zeros, where they have no reading for what is written.
_SILENCE = 1e-10


class RunningJob:
    """Owns a job's generator in the engine, its sink and its clock, which stands still while the job is suspended.

    After an exception, and after :meth:`close`, the engine holds nothing of the job.
    """

    def __init__(
        self,
        job: SpeakJob,
        engine: Engine,
        utterance: Utterance,
        connection: SupervisorConnection,
        *,
        rate: int,
        heartbeat: Heartbeat,
        begun: float,
        feed: TextFeed | None = None,
    ) -> None:
        """``rate``: of the finished audio, in Hz. ``begun``: when the work began, by time.perf_counter. ``feed``: of a
        job whose text comes in pieces.
        """
        self._job = job
        self.feed = feed
        self._utterance = utterance
        self._rate = rate
        self._heartbeat = heartbeat
        self._connection = connection
        native = utterance.sample_rate
        self._sink = StreamSink(job, connection, rate) if job.stream else FileSink(job.format, rate)
        self._resampler = audio.Resampler(native, rate) if native != rate else None
        self._pieces = cast("Generator[Piece, None, None]", engine.synthesize(utterance))
        self._samples_in = 0
        self._energy = self._segment_energy = 0.0
        self._first_audio_s = 0.0
        #: Seconds of work before the last suspension, and when the job last resumed.
        self._spent_s = 0.0
        self._since = begun

    def step(self) -> Piece | None:
        """Speak one more piece; None after the last. Raises JobCancelledError, and any error of the engine."""
        try:
            return self._step()
        except BaseException:
            self.close()
            raise

    def suspend(self) -> None:
        """Stop the job's clock."""
        self._spent_s = self._spent()

    def resume(self) -> None:
        """Start the job's clock again."""
        self._since = time.perf_counter()
        self._heartbeat.restart()

    def close(self) -> None:
        """End the job where it is. Raises any error of the engine."""
        self._pieces.close()

    def finish(self, memory: Callable[[], Memory]) -> tuple[Finished, bytes | None]:
        """The message for the end of the job, and the file to send with it, if any.

        Raises JobCancelledError, EngineError for speech without a sound, and OutputError for an output that can't be
        written.
        """
        # Every text has a letter or a digit in it.
        if self._energy <= _SILENCE * self._samples_in:
            seconds = self._samples_in / self._utterance.sample_rate
            raise EngineError(
                "synthesis_failed",
                f"the engine made {seconds:.2f} s of silence: it has no sound for anything in this text; write it in a "
                "script that the voice reads, or choose a voice that reads this one",
            )
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
            sha256=self._sink.sha256,
            chunks=self._sink.chunks,
            bytes=self._sink.size,
            path=self._job.output,
            memory=memory(),
        )
        return finished, None if file is None else deliver(self._job, file, finished)

    def _step(self) -> Piece | None:
        if not self._connection.wanted(self._job.job):
            raise JobCancelledError
        piece = next(self._pieces, None)
        if piece is not None and piece.waits:
            return piece
        # Also after the last piece: an engine that notices the cancellation first simply returns.
        if self._heartbeat.cancelled():
            raise JobCancelledError
        if piece is None:
            return None
        self._samples_in += len(piece.samples)
        # Their energy is finite only if every sample is.
        energy = float(piece.samples.dot(piece.samples))
        if not math.isfinite(energy):
            raise EngineError(
                "synthesis_failed", "the engine made samples that are not numbers; try another seed or shorter text"
            )
        self._sink.add(self._resampler.add(piece.samples) if self._resampler else piece.samples)
        self._first_audio_s = self._first_audio_s or self._spent()
        self._energy += energy
        self._segment_energy += energy
        if piece.ends_segment:
            if not self._segment_energy:
                log.say(log.WARNING, f"segment {piece.segment + 1} of {piece.segments} is silent", self._job.job)
            self._segment_energy = 0.0
        if piece.ends_segment and (piece.segments > 1 or self.feed is not None):
            self._heartbeat.segment_done(piece, self._samples_in / self._utterance.sample_rate)
        return piece

    def _spent(self) -> float:
        return self._spent_s + time.perf_counter() - self._since
