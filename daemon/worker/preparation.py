"""From the supervisor's SpeakJob to the engine's Utterance: refuses a bad job before any work is done."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from glmtts.protocol.audio_formats import FORMATS, MAX_RECORDING_MIB
from glmtts.protocol.files import read_file
from glmtts.protocol.worker import SpeakJob

from ..engines import options as engine_options
from ..engines.base import BatchEngine, EngineError, Reference, Utterance
from ..storage import recordings
from . import audio


class Preparation:
    """Checks jobs against an engine. Every method raises EngineError for a job that can't succeed."""

    def __init__(
        self, engine: BatchEngine, *, default_rate: int, recording_min_s: float, recording_max_s: float
    ) -> None:
        self._engine = engine
        self._default_rate = default_rate
        self._recording_s = (recording_min_s, recording_max_s)
        self._voices = [voice.name for voice in engine.voices]

    def warm_up(self, text: str) -> Utterance:
        """The warm-up ``text``, with all defaults."""
        native = audio.native_rate(self._default_rate, self._engine.sample_rates)
        reference = self._engine.warm_up_reference()
        return Utterance(text, self.voice(None), reference, native, 0, self._engine.options())

    def rate(self, job: SpeakJob) -> int:
        """The rate in Hz of the finished audio, which the format must be able to hold."""
        if job.format not in FORMATS:
            raise EngineError("bad_request", f"format: {job.format} can't be made")
        try:
            return audio.output_rate(job.sample_rate, self._default_rate, job.format)
        except ValueError as error:
            raise EngineError("bad_request", f"sample_rate: {error}") from None

    def utterance(self, job: SpeakJob, body: bytes | None, rate: int) -> Utterance:
        """The job for the engine, at the best native rate for ``rate``. ``body``: the recording of its prompt."""
        reference = self._reference(job, body)
        return Utterance(
            text=job.text,
            voice=None if reference else self.voice(job.voice),
            reference=reference,
            sample_rate=audio.native_rate(rate, self._engine.sample_rates),
            seed=job.seed,
            options=self._options(job.options),
            job=job.job,
            batch=job.batch,
        )

    def voice(self, name: str | None) -> str | None:
        """The name of one of the engine's own voices; for None its default, or None if it has no voices."""
        if name is not None and name not in self._voices:
            known = ", ".join(self._voices[:8])
            raise EngineError(
                "voice_not_found", f"voice: the engine {self._engine.name} has no {name!r}; it has {known}"
            )
        return name or (self._voices[0] if self._voices else None)

    def _options(self, options: dict[str, Any]) -> Any:
        if problem := engine_options.check(self._engine.name, options):
            raise EngineError("bad_request", problem)
        return msgspec.convert(options, self._engine.options)

    def _reference(self, job: SpeakJob, body: bytes | None) -> Reference | None:
        """The recording of the prompt (``body``) or of the registered voice; None for a voice of the engine."""
        data = body
        if job.recording is not None:
            # A worker that does not clone voices may not even read them.
            self._check_cloning("voice")
            try:
                data = read_file(job.recording, MAX_RECORDING_MIB << 20)
            except FileNotFoundError:
                raise EngineError("voice_not_found", f"voice: {job.voice!r} was removed before the job began") from None
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
        self._check_cloning("prompt")
        digest = hashlib.sha256(data).hexdigest()
        return Reference(recording.samples, recording.sample_rate, job.prompt_text or "", digest)

    def _check_cloning(self, key: str) -> None:
        if not self._engine.clones_voices:
            raise EngineError(
                "bad_request",
                f"{key}: the engine {self._engine.name} does not clone voices; name one of its own voices instead",
            )
