"""Values of the client's API: the options of a job, its finished speech, and the chunks of a stream."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from msgspec import UNSET, Struct

from glmtts.protocol.audio_formats import format_of_name, misnamed

from .errors import GlmttsError
from .files import write_whole

if TYPE_CHECKING:
    from glmtts.protocol.events import Done

_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}


class SpeechOptions(TypedDict, total=False):
    """The options of ``speak``, ``stream`` and ``submit``; None is the daemon's default.

    Attributes:
        voice: a registered voice.
        prompt: a recording to clone instead: a path, or the bytes of a WAV, FLAC, OGG or MP3 file, 1 to 30 s.
        prompt_text: what is said in the recording.
        format: ``wav``, ``flac``, ``ogg``, ``mp3``, ``pcm_s16le``, ``pcm_f32le``, or for telephony ``ulaw``, ``alaw``,
            ``wav_ulaw`` or ``wav_alaw``; by default what the ending of ``output`` says.
        sample_rate: in Hz.
        output: the name of a file in the daemon's output folder, written instead of sending the audio.
        priority: ``vip``, ``interactive`` or ``batch``.
        deadline_s: the daemon gives up this many seconds after the acceptance.
        durable: whether the job survives a crash of the daemon.
        key: the same key is the same job within 24 h, never a second synthesis.
        seed: the same seed gives the same audio.
        speed: 0.5 to 2; 2 is twice as fast, at the same pitch. ``info`` says whether the daemon has the feature.
        follow: of a durable job: its audio is made as a stream, which ``Client.follow`` hears from its beginning.
        label: a caption for people, of up to 200 characters: the daemon's lists of jobs show it.
        options: the engine's own, as ``Client.info`` lists them.
        on_behalf_of: for gateways: the user whose job it is.
    """

    voice: str | None
    prompt: str | os.PathLike[str] | bytes | None
    prompt_text: str | None
    format: str | None
    sample_rate: int | None
    output: str | None
    priority: str | None
    deadline_s: float | None
    durable: bool | None
    key: str | None
    seed: int | None
    speed: float | None
    follow: bool | None
    label: str | None
    options: dict[str, Any] | None
    on_behalf_of: str | None


class Speech(Struct, frozen=True, kw_only=True):
    """A finished job.

    Attributes:
        job: the job's id.
        audio: the whole file in ``format``; empty for a stream, and when the daemon wrote it to ``path``.
        sample_rate: in Hz.
        audio_s: seconds of speech.
        waited_s: seconds in the queue.
        synthesis_s: seconds of work.
        first_audio_s: seconds from the start of the work to the first audio.
        rtf: ``synthesis_s / audio_s``; under 1 is faster than real time.
        attempts: 1 unless a worker died during the job.
        sha256: the digest of the file in hexadecimal.
        bytes: the size of the file.
        path: the file on the daemon's machine, None if there is none.
    """

    job: str
    audio: builtins.bytes
    format: str
    sample_rate: int
    audio_s: float
    waited_s: float
    synthesis_s: float
    first_audio_s: float
    rtf: float
    attempts: int
    engine: str
    voice: str
    sha256: str
    bytes: int
    path: str | None = None

    @property
    def duration_s(self) -> float:
        """Seconds of speech, as ``audio_s``."""
        return self.audio_s

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the audio to ``path``, whole or not at all, over an existing file.

        Returns:
            The path.

        Raises:
            OSError: the file can't be written.
            GlmttsError: there is no audio here, because it was streamed or written by the daemon; or the ending of
                ``path`` says another format than the audio has (nothing here can convert it).
        """
        if not self.audio:
            where = f"the daemon wrote it to {self.path}" if self.path else "it was sent as a stream"
            raise GlmttsError(f"There is no audio to save in {os.fspath(path)!r}: {where}.")
        if problem := misnamed(Path(path).name, self.format):
            meant = format_of_name(Path(path).name)
            speak = f'; speak(text, format="{meant}") makes such a file' if meant else ""
            raise GlmttsError(f"The speech is not saved as {os.fspath(path)!r}: {problem}{speak}.")
        write_whole(Path(path), self.audio)
        return Path(path)

    def __repr__(self) -> str:
        return (
            f"Speech(job={self.job!r}, {self.bytes} bytes of {self.format}, {self.sample_rate} Hz, "
            f"{self.audio_s:.2f} s, voice={self.voice!r}, engine={self.engine!r}, path={self.path!r})"
        )

    @classmethod
    def of(cls, done: Done, audio: builtins.bytes) -> Speech:
        """The speech of a ``done`` event and its body."""
        return cls(
            job=done.job,
            audio=audio,
            format=done.format,
            sample_rate=done.sample_rate,
            audio_s=done.audio_s,
            waited_s=done.waited_s,
            synthesis_s=done.synthesis_s,
            first_audio_s=done.first_audio_s,
            rtf=done.rtf,
            attempts=done.attempts,
            engine=done.engine,
            voice=done.voice,
            sha256=done.sha256,
            bytes=len(audio) if done.bytes is UNSET else done.bytes,
            path=None if done.path is UNSET else done.path,
        )


class Chunk(Struct, frozen=True, kw_only=True):
    """A piece of a stream in ``format``, ``sample_rate`` in Hz. ``seq`` counts 0, 1, 2, ... without a gap.

    ``samples`` are samples for ``pcm_s16le`` and ``pcm_f32le``. For any other format they are the next bytes of the
    file.
    """

    seq: int
    samples: bytes
    format: str
    sample_rate: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Seconds of speech in this chunk. Raises GlmttsError for a format other than PCM."""
        if self.format not in _SAMPLE_BYTES:
            raise GlmttsError(f"A piece of {self.format} has no duration of its own; the done event has audio_s.")
        return len(self.samples) / _SAMPLE_BYTES[self.format] / self.channels / self.sample_rate

    def __repr__(self) -> str:
        return f"Chunk({self.seq}, {len(self.samples)} bytes of {self.format}, {self.sample_rate} Hz)"
