"""What a client hands to its caller: finished speech, the chunks of a stream, and the handle of a job."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET, Struct

from .errors import GlmttsError

if TYPE_CHECKING:
    from glmtts.protocol.events import Done

    from .exchange import JobExchange

_SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4}


class Speech(Struct, frozen=True, kw_only=True):
    """A finished job.

    ``audio`` is the whole file in ``format``; it is empty when the daemon wrote it to ``path`` (a path of its own
    machine) and when the job was streamed. ``bytes`` is the file's size and ``sha256`` its digest in hexadecimal.

    Times are in seconds: ``audio_s`` of speech, ``waited_s`` in the queue, ``synthesis_s`` of work, ``first_audio_s``
    from the start of the work to the first audio. ``rtf`` is ``synthesis_s / audio_s``: under 1 is faster than it
    plays. ``sample_rate`` is in Hz; ``attempts`` is 1 unless a worker died over the job.
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
        """Write the audio to ``path``, whole or not at all, in place of what is there. Returns the path.

        Raises OSError when it can't be written, GlmttsError when there is no audio here to write.
        """
        if not self.audio:
            where = f"the daemon wrote it to {self.path}" if self.path else "it was sent as a stream"
            raise GlmttsError(f"There is no audio to save in {os.fspath(path)!r}: {where}.")
        write_whole(Path(path), self.audio)
        return Path(path)

    def __repr__(self) -> str:
        return (
            f"Speech(job={self.job!r}, {self.bytes} bytes of {self.format}, {self.sample_rate} Hz, "
            f"{self.audio_s:.2f} s, voice={self.voice!r}, engine={self.engine!r}, path={self.path!r})"
        )

    @classmethod
    def of(cls, done: Done, audio: builtins.bytes) -> Speech:
        """The speech that a ``done`` event and its body tell of."""
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
    """A piece of a stream: ``samples`` in ``format`` (``pcm_s16le`` or ``pcm_f32le``), ``sample_rate`` in Hz.

    ``seq`` counts 0, 1, 2, ... without a gap.
    """

    seq: int
    samples: bytes
    format: str
    sample_rate: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Seconds of speech in this chunk."""
        frame = _SAMPLE_BYTES.get(self.format, 2) * self.channels
        return len(self.samples) / frame / self.sample_rate

    def __repr__(self) -> str:
        return f"Chunk({self.seq}, {len(self.samples)} bytes of {self.format}, {self.sample_rate} Hz)"


class Job:
    """A job that the daemon has accepted. ``Client.wait`` takes it, or its ``id``, which can be stored.

    ``position`` in the queue (0 is the next) of ``queue_size`` waiting, ``estimated_wait_s`` in seconds or None, and
    ``warning`` (None, or words about a long queue) are of the moment when it was accepted.
    """

    def __init__(self, exchange: JobExchange) -> None:
        accepted = exchange.accepted
        self._exchange = exchange
        self.id: str = exchange.job or ""
        self.position: int = accepted.position if accepted else 0
        self.queue_size: int = accepted.queue_size if accepted else 0
        self.estimated_wait_s: float | None = None
        self.warning: str | None = None
        if accepted:
            self.estimated_wait_s = None if accepted.estimated_wait_s is UNSET else accepted.estimated_wait_s
            self.warning = None if accepted.warning is UNSET else accepted.warning

    def __repr__(self) -> str:
        return f"Job({self.id!r}, position={self.position})"


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of a new file beside it, so that nobody sees half of it. Raises OSError."""
    path = path.resolve()  # through a link to what it names: the link itself stays
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe: never to be replaced by a file
        return
    draft = path.with_name(f".glmtts-{os.urandom(8).hex()}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
