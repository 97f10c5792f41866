"""Where the samples of a job go while it is spoken: into the encoder of a file, or out on the wire."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glmtts.protocol.worker import AudioChunk, Finished, Job

from ..storage import outputs
from . import audio, log
from .connection import Wire
from .progress import NotWantedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

_CHUNK_BYTES = 64 * 1024


class Sink(Protocol):
    """Takes a job's samples at the rate of its audio; ``chunks`` is how many messages it has sent."""

    samples: int
    chunks: int

    def add(self, samples: Samples) -> None:
        """Take the next samples. Raises NotWantedError."""

    def finish(self) -> bytes | None:
        """The whole file, or None if all was sent."""

    def size(self) -> int:
        """How many bytes it is, once it is finished."""

    def sha256(self) -> str:
        """Of its bytes, in hex, once it is finished."""


class FileSink:
    """Collects the samples of a job whose audio is sent, or written, when it is complete."""

    chunks = 0

    def __init__(self, audio_format: str, rate: int) -> None:
        self._encoder = audio.encoder(audio_format, rate)
        self._digest = ""
        self.samples = 0
        self._bytes = 0

    def add(self, samples: Samples) -> None:
        self.samples += len(samples)
        self._encoder.add(samples)

    def finish(self) -> bytes | None:
        data = self._encoder.finish()
        self._bytes = len(data)
        self._digest = hashlib.sha256(data).hexdigest()
        return data

    def size(self) -> int:
        return self._bytes

    def sha256(self) -> str:
        return self._digest


class StreamSink:
    """Sends the samples of a job as they come; and has them all in the end, where they are to be kept."""

    def __init__(self, job: Job, wire: Wire) -> None:
        self._job = job.job
        self._wire = wire
        self._convert = audio.pcm_f32le if job.format == "pcm_f32le" else audio.pcm_s16le
        self._hash = hashlib.sha256()
        self._kept = bytearray() if job.result is not None else None
        self.chunks = 0
        self.samples = 0
        self._bytes = 0

    def add(self, samples: Samples) -> None:
        self.samples += len(samples)
        data = self._convert(samples)
        self._hash.update(data)
        self._bytes += len(data)
        if self._kept is not None:
            self._kept += data
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data if len(data) <= _CHUNK_BYTES else data[start : start + _CHUNK_BYTES]
            if not self._wire.send(AudioChunk(job=self._job, seq=self.chunks), chunk, until=self._not_wanted):
                raise NotWantedError
            self.chunks += 1

    def finish(self) -> bytes | None:
        return None if self._kept is None else bytes(self._kept)

    def size(self) -> int:
        return self._bytes

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def _not_wanted(self) -> bool:
        return not self._wire.wanted(self._job)


def deliver(job: Job, file: bytes, finished: Finished) -> bytes | None:
    """Put ``file`` where ``job`` wants it, and say in ``finished`` what is there; returns it if it is to be sent.

    Raises OutputError for an output that can't be written; a result that can't be is sent instead.
    """
    if job.output is not None:
        there = outputs.write_new(Path(job.output), file, job.job)
        if there is not file:
            describe(finished, there)
        return None
    if job.result is not None:
        try:
            # Somebody may have tidied up.
            Path(job.result).parent.mkdir(mode=0o700, exist_ok=True)
            outputs.replace(Path(job.result), file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            finished.problem = f"{reason} ({Path(job.result).parent})"
            words = f"its result is sent, because it can't be kept in {job.result}: {reason}"
            log.say(log.WARNING, words, job.job)
        else:
            finished.result = job.result
            return None
    # What was streamed has been sent.
    return None if job.stream else file


def describe(finished: Finished, file: bytes) -> None:
    """Say of the file that is there what it is."""
    finished.bytes = len(file)
    finished.sha256 = hashlib.sha256(file).hexdigest()
