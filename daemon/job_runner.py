"""Speak one job: from the supervisor's Job to the bytes of its audio, and exactly one Finished or Failed."""

from __future__ import annotations

import hashlib
import math
import os
import resource
import time
import traceback
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from glmtts.protocol.audio_formats import FORMATS, STREAM_FORMATS
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import AudioChunk, Beat, Failed, Finished, Job, Memory, SegmentDone, WorkerProtocolError

from . import audio, exit_codes, outputs, recordings
from .engines import cuda_errors
from .engines import options as engine_options
from .engines.base import Engine, EngineError, Piece, Reference, Utterance
from .worker_wire import Wire

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_BYTES = 64 * 1024
#: How often the wire is looked at during a job, and how often a job that moves says so.
_POLL_S = 0.002
_BEAT_S = 0.1
_PAGE_BYTES = resource.getpagesize()


class _NotWantedError(Exception):
    """The job was cancelled, or the process told to end."""


class JobRunner:
    """Runs jobs on an engine, one after the other."""

    def __init__(
        self,
        engine: Engine,
        wire: Wire,
        *,
        default_sample_rate: int = 24_000,
        recording_min_s: float = 1.0,
        recording_max_s: float = 30.0,
    ) -> None:
        self._engine = engine
        self._wire = wire
        self._default_rate = default_sample_rate
        self._recording_s = (recording_min_s, recording_max_s)
        self._voices = [voice.name for voice in engine.voices]
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def warm_up(self, text: str) -> None:
        """Speak ``text`` for nobody, in the rate that jobs have, so that the first job finds everything loaded."""
        if not text:
            return
        native = audio.native_rate(self._default_rate, self._engine.sample_rates)
        resampler = None if native == self._default_rate else audio.Resampler(native, self._default_rate)
        utterance = Utterance(text, self._voice(None), None, native, 0, self._engine.options())
        for piece in self._engine.synthesize(utterance):
            if resampler:
                resampler.add(piece.samples)

    def memory(self) -> Memory:
        """What the process and its engine hold now."""
        figures = self._engine.memory()
        return Memory(
            rss=int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES,
            torch_allocated=figures.torch_allocated,
            torch_reserved=figures.torch_reserved,
        )

    def run(self, job: Job, body: bytes | None) -> int:
        """Speak ``job`` and send its end. Returns an exit code when the process can't go on, else 0."""
        fatal = 0
        try:
            finished, file = self._speak(job, body)
            self._wire.send(finished, file)
            return 0
        except _NotWantedError:
            if self._wire.terminated:
                failed = Failed(
                    job=job.job, code="cancelled", message="the worker was told to end (SIGTERM)", fatal=True
                )
            else:
                failed = Failed(job=job.job, code="cancelled", message="cancelled")
        except EngineError as error:
            failed = Failed(job=job.job, code=error.code, message=error.message, fatal=error.fatal)
        except outputs.OutputExistsError as error:
            failed = Failed(job=job.job, code="output_exists", message=str(error))
        except outputs.OutputError as error:
            failed = Failed(job=job.job, code="output_failed", message=str(error))
        except WorkerProtocolError:
            raise
        except Exception as error:
            traceback.print_exc()
            words = f"{type(error).__name__}: {error}"[:500]
            failed = Failed(job=job.job, code=cuda_errors.judge(error) or "synthesis_failed", message=words)
        if failed.code in exit_codes.OF_FATAL_ERROR:
            # Whoever raised it: going on without the memory, or with a broken context, fails the next jobs too.
            failed.fatal = True
        if failed.fatal and failed.code != ErrorCode.CANCELLED:
            fatal = exit_codes.OF_FATAL_ERROR.get(failed.code, exit_codes.ENGINE_BROKEN)
        failed.memory = self.memory()
        self._wire.send(failed)
        return fatal

    def _speak(self, job: Job, body: bytes | None) -> tuple[Finished, bytes | None]:
        begun = time.perf_counter()
        progress = _Progress(job.job, self._wire)
        if not self._wire.wanted():
            raise _NotWantedError
        rate = self._check(job)
        reference = self._reference(job, body)
        native = audio.native_rate(rate, self._engine.sample_rates)
        utterance = Utterance(
            text=job.text,
            voice=None if reference else self._voice(job.voice),
            reference=reference,
            sample_rate=native,
            seed=job.seed,
            options=self._options(job.options),
            beat=progress.beat,
            cancelled=progress.cancelled,
        )
        sink = _Stream(job, self._wire) if job.stream else _File(job, rate)
        resampler = audio.Resampler(native, rate) if native != rate else None
        first_audio_s = 0.0
        samples_in = 0
        with closing(cast("Generator[Piece, None, None]", self._engine.synthesize(utterance))) as pieces:
            for piece in pieces:
                if progress.cancelled():
                    raise _NotWantedError
                samples_in += len(piece.samples)
                _check_numbers(piece)
                sink.add(resampler.add(piece.samples) if resampler else piece.samples)
                first_audio_s = first_audio_s or time.perf_counter() - begun
                if piece.ends_segment and piece.segments > 1:
                    progress.segment_done(piece, samples_in / native)
        # An engine that sees the cancellation first just returns.
        if progress.cancelled():
            raise _NotWantedError
        if resampler:
            sink.add(resampler.finish())
        file = sink.finish()
        synthesis_s = time.perf_counter() - begun
        finished = Finished(
            job=job.job,
            sample_rate=rate,
            audio_s=sink.samples / rate,
            synthesis_s=synthesis_s,
            first_audio_s=first_audio_s or synthesis_s,
            voice=job.voice or ("" if reference else str(utterance.voice or "")),
            sha256=sink.sha256(),
            chunks=sink.chunks,
            bytes=sink.bytes,
            path=job.output,
            memory=self.memory(),
        )
        if job.output is not None:
            outputs.write_new(Path(job.output), file or b"")
            file = None
        return finished, file

    def _check(self, job: Job) -> int:
        """Refuse what can't end well before any work is done; returns the rate of the finished audio."""
        if job.format not in (STREAM_FORMATS if job.stream else FORMATS):
            raise EngineError("bad_request", f"format: {job.format} can't be {'streamed' if job.stream else 'made'}")
        if job.output is not None:
            outputs.check_absent(Path(job.output))
        try:
            return audio.output_rate(job.sample_rate, self._default_rate, job.format)
        except ValueError as error:
            raise EngineError("bad_request", f"sample_rate: {error}") from None

    def _options(self, options: dict[str, Any]) -> Any:
        if problem := engine_options.check(self._engine.name, options):
            raise EngineError("bad_request", problem)
        return msgspec.convert(options, self._engine.options)

    def _voice(self, name: str | None) -> str | None:
        if name is not None and name not in self._voices:
            known = ", ".join(self._voices[:8])
            raise EngineError(
                "voice_not_found", f"voice: the engine {self._engine.name} has no {name!r}; it has {known}"
            )
        return name or (self._voices[0] if self._voices else None)

    def _reference(self, job: Job, body: bytes | None) -> Reference | None:
        """The recording to speak with: the prompt's in the body, or a registered voice's in a file."""
        data = body
        if job.recording is not None:
            try:
                data = Path(job.recording).read_bytes()
            except OSError as error:
                raise EngineError(
                    "voice_not_found", f"voice: the recording of {job.voice!r} can't be read: {error.strerror}"
                ) from None
        if data is None:
            return None
        min_s, max_s = self._recording_s
        try:
            recording = recordings.decode(data, min_s=min_s, max_s=max_s)
        except recordings.BadRecordingError as error:
            raise EngineError("bad_audio", f"{'prompt' if job.recording is None else 'voice'}: {error}") from None
        if not self._engine.clones_voices:
            key = "prompt" if job.recording is None else "voice"
            raise EngineError(
                "bad_request",
                f"{key}: the engine {self._engine.name} does not clone voices; name one of its own voices instead",
            )
        digest = hashlib.sha256(data).hexdigest()
        return Reference(recording.samples, recording.sample_rate, job.prompt_text or "", digest)


class _Progress:
    """Beats and cancellation of one job, at a price that a loop of thousands of tokens a second does not notice."""

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
        return not self._wire.wanted()

    def segment_done(self, piece: Piece, audio_s: float) -> None:
        segment = piece.segment + 1
        self._wire.send(
            SegmentDone(job=self._job, segment=segment, segments=piece.segments, audio_s=audio_s),
            until=lambda: not self._wire.wanted(),
        )
        self._said = time.monotonic()

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


class _File:
    """Collects the samples of a job whose audio is sent, or written, when it is complete."""

    chunks = 0

    def __init__(self, job: Job, rate: int) -> None:
        self._encoder = audio.encoder(job.format, rate)
        self._digest = ""
        self.samples = 0
        self.bytes = 0

    def add(self, samples: NDArray[np.float32]) -> None:
        self.samples += len(samples)
        self._encoder.add(samples)

    def finish(self) -> bytes | None:
        data = self._encoder.finish()
        self.bytes = len(data)
        self._digest = hashlib.sha256(data).hexdigest()
        return data

    def sha256(self) -> str:
        return self._digest


class _Stream:
    """Sends the samples of a job as they come."""

    def __init__(self, job: Job, wire: Wire) -> None:
        self._job = job.job
        self._wire = wire
        self._convert = audio.pcm_f32le if job.format == "pcm_f32le" else audio.pcm_s16le
        self._hash = hashlib.sha256()
        self.chunks = 0
        self.samples = 0
        self.bytes = 0

    def add(self, samples: NDArray[np.float32]) -> None:
        self.samples += len(samples)
        data = self._convert(samples)
        self._hash.update(data)
        self.bytes += len(data)
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data if len(data) <= _CHUNK_BYTES else data[start : start + _CHUNK_BYTES]
            if not self._wire.send(AudioChunk(job=self._job, seq=self.chunks), chunk, until=self._not_wanted):
                raise _NotWantedError
            self.chunks += 1

    def finish(self) -> bytes | None:
        return None

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _not_wanted(self) -> bool:
        return not self._wire.wanted()


def _check_numbers(piece: Piece) -> None:
    # Their energy is finite if all of them are: one pass instead of two.
    if not math.isfinite(np.dot(piece.samples, piece.samples)):
        raise EngineError(
            "synthesis_failed", "the engine made samples that are no numbers; another seed or shorter text may help"
        )
