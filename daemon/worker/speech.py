"""Turns an engine's pieces into the audio of one job, and counts the figures for its end."""

from __future__ import annotations

import math
import time

from glmtts.protocol.worker import Finished, Memory, SegmentDone, SpeakJob

from ..engines.base import EngineError, Piece, Utterance
from . import audio, log
from .sinks import Chunk, FileSink, StreamSink, describe
from .speed import TimeStretcher

#: The power of -100 dB: engines say nothing with exact zeros, where they have no reading for what is written.
_SILENCE = 1e-10


class Speech:
    """Owns a job's sink and its clock, which stands still while the job is suspended.

    :meth:`encode` and :meth:`finish` may be called in another thread, one after another.
    """

    def __init__(self, job: SpeakJob, utterance: Utterance, rate: int, begun: float) -> None:
        """``rate``: of the finished audio, in Hz. ``begun``: when the work began, by time.perf_counter."""
        self._job = job
        self._utterance = utterance
        self._rate = rate
        native = utterance.sample_rate
        self._sink = StreamSink(job, rate) if job.stream else FileSink(job.format, rate)
        self._stretcher = TimeStretcher(native, job.speed) if job.speed != 1.0 else None
        self._resampler = audio.Resampler(native, rate) if native != rate else None
        #: Whether the encoding takes milliseconds. For 10 s of speech: 280 ms as MP3, 500 as Opus, 3.5 as FLAC,
        #: 40 at another speed; 1 at another rate, 0.3 as WAV or PCM.
        self.is_work = job.format in audio.LIBSNDFILE or job.speed != 1.0
        self._samples_in = 0
        self._energy = self._segment_energy = 0.0
        self._first_audio_s = 0.0
        #: Seconds of work before the last suspension, and when the job last resumed.
        self._spent_s = 0.0
        self._since = begun

    def stop_clock(self) -> None:
        """Stop the job's clock, because the job is suspended."""
        self._spent_s = self._spent()

    def start_clock(self) -> None:
        """Start the job's clock again, because the job resumes."""
        self._since = time.perf_counter()

    def check(self, piece: Piece) -> None:
        """Take the next piece into account. Raises EngineError if its samples are not numbers."""
        self._samples_in += len(piece.samples)
        # Their energy is finite only if every sample is.
        energy = float(piece.samples.dot(piece.samples))
        if not math.isfinite(energy):
            raise EngineError(
                "synthesis_failed", "the engine made samples that are not numbers; try another seed or shorter text"
            )
        self._energy += energy
        self._segment_energy += energy

    def encode(self, samples: audio.Samples) -> list[Chunk]:
        """The chunks that are ready after these samples."""
        if self._stretcher:
            samples = self._stretcher.add(samples)
        if self._resampler:
            samples = self._resampler.add(samples)
        return self._sink.add(samples)

    def heard(self) -> None:
        """The chunks of a piece were sent, or kept for the file."""
        self._first_audio_s = self._first_audio_s or self._spent()

    def boundary(self, piece: Piece, *, in_pieces: bool) -> SegmentDone | None:
        """The message for the end of a segment; None within a segment, and for a text of only one."""
        if not piece.ends_segment:
            return None
        if not self._segment_energy:
            log.say(log.WARNING, f"segment {piece.segment + 1} of {piece.segments} is silent", self._job.job)
        self._segment_energy = 0.0
        if piece.segments == 1 and not in_pieces:
            return None
        audio_s = self._samples_in / self._utterance.sample_rate / self._job.speed
        return SegmentDone(job=self._job.job, segment=piece.segment + 1, segments=piece.segments, audio_s=audio_s)

    def finish(self) -> tuple[list[Chunk], bytes | None]:
        """The last chunks, and the file if there is one. Raises EngineError for speech without a sound."""
        # Every text has a letter or a digit in it.
        if self._energy <= _SILENCE * self._samples_in:
            seconds = self._samples_in / self._utterance.sample_rate
            raise EngineError(
                "synthesis_failed",
                f"the engine made {seconds:.2f} s of silence: it has no sound for anything in this text; write it in a "
                "script that the voice reads, or choose a voice that reads this one",
            )
        chunks: list[Chunk] = []
        if self._stretcher:
            rest = self._stretcher.finish()
            chunks += self._sink.add(self._resampler.add(rest) if self._resampler else rest)
        if self._resampler:
            chunks += self._sink.add(self._resampler.finish())
        last, file = self._sink.finish()
        return chunks + last, file

    def finished(self, memory: Memory, work_s: float) -> Finished:
        """The message for the end of the job."""
        synthesis_s = self._spent()
        by_reference = self._utterance.reference is not None
        return Finished(
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
            work_s=work_s,
            memory=memory,
        )

    def _spent(self) -> float:
        return self._spent_s + time.perf_counter() - self._since


def finished_before(job: SpeakJob, file: bytes, *, rate: int, voice: str, memory: Memory) -> Finished:
    """The end of a job whose output an earlier attempt wrote before its worker died. ``rate``: of ``file``, in Hz."""
    finished = Finished(
        job=job.job,
        sample_rate=rate,
        audio_s=audio.duration_s(file, job.format, rate),
        synthesis_s=0.0,
        first_audio_s=0.0,
        voice=voice,
        sha256="",
        chunks=0,
        bytes=0,
        path=job.output,
        memory=memory,
    )
    describe(finished, file)
    return finished
