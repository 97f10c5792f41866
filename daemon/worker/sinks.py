"""Sinks for a job's samples, an encoder of a file or of a stream, and the way of a finished file."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from glmtts.protocol.worker import AudioChunk, Finished, SpeakJob

from ..engines.base import EngineError
from ..storage import free_space, outputs
from . import audio, log
from .stream_encoders import stream_encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

#: A part of a stream, as it is sent.
Chunk = tuple[AudioChunk, memoryview]

_CHUNK_BYTES = 64 * 1024


class FileSink:
    """Encodes a file that is delivered whole. ``size`` (bytes) and ``sha256`` (hex) are set by :meth:`finish`."""

    chunks = 0

    def __init__(self, audio_format: str, rate: int) -> None:
        self._encoder = audio.encoder(audio_format, rate)
        self.samples = self.size = 0
        self.sha256 = ""

    def add(self, samples: Samples) -> list[Chunk]:
        """Take the next samples, of shape (n,). Nothing is sent of them."""
        self.samples += len(samples)
        self._encoder.add(samples)
        return []

    def finish(self) -> tuple[list[Chunk], bytes]:
        """The whole file, and no chunks."""
        data = self._encoder.finish()
        self.size, self.sha256 = len(data), hashlib.sha256(data).hexdigest()
        return [], data


class StreamSink:
    """Makes the file in pieces, ``chunks`` messages so far; keeps it too if the job has a ``result``.

    Of a stream that an earlier attempt began, the part that was sent is left out, if it is the same again.
    """

    def __init__(self, job: SpeakJob, rate: int) -> None:
        self._job = job.job
        self._rate = rate
        self._whole = job.whole
        self._encoder = stream_encoder(job.format, rate, keep=job.whole)
        self._hash = hashlib.sha256()
        self._kept = bytearray() if job.result is not None else None
        self._replay = job.replay
        self.samples = self.chunks = self.size = 0
        self.sha256 = ""

    def add(self, samples: Samples) -> list[Chunk]:
        """Encode the next samples, of shape (n,). Raises EngineError if a replayed part is not the same."""
        self.samples += len(samples)
        return self._cut(self._encoder.add(samples))

    def _cut(self, data: bytes) -> list[Chunk]:
        if self._kept is not None:
            self._kept += data
        view = self._behind_replayed(memoryview(data))
        chunks: list[Chunk] = []
        for start in range(0, len(view), _CHUNK_BYTES):
            chunk = view[start : start + _CHUNK_BYTES]
            self._count(chunk)
            message = AudioChunk(
                job=self._job, seq=self.chunks, audio_s=self.samples / self._rate, digest=self._hash.digest()
            )
            chunks.append((message, chunk))
            self.chunks += 1
        return chunks

    def _behind_replayed(self, data: memoryview) -> memoryview:
        """The part of ``data`` that no earlier attempt has sent."""
        replay = self._replay
        if replay is None:
            return data
        left = replay.size - self.size
        self._count(data[:left])
        if self.size == replay.size:
            if self._hash.digest() != replay.digest:
                raise _not_the_same()
            self._replay, self.chunks = None, replay.chunks
        return data[left:]

    def _count(self, data: memoryview) -> None:
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> tuple[list[Chunk], bytes | None]:
        """The last chunks, and the file if the job has a ``result``. Raises EngineError as :meth:`add` does."""
        chunks = self._cut(self._encoder.finish())
        if self._replay is not None:
            raise _not_the_same()
        self.sha256 = self._hash.hexdigest()
        if self._kept is None:
            return chunks, None
        file = bytes(self._kept)
        if self._whole:
            file = self._encoder.whole(file)
            self.size, self.sha256 = len(file), hashlib.sha256(file).hexdigest()
        return chunks, file


def _not_the_same() -> EngineError:
    return EngineError(
        "worker_crashed",
        "the worker died in the middle of the stream, and a new one made other audio for its beginning, so the stream "
        "can't go on; send the job again",
    )


def deliver(job: SpeakJob, file: bytes, finished: Finished) -> bytes | None:
    """Write the finished file to the job's output or result, and note that in ``finished``.

    Returns the file if it is to be sent instead: if the job has neither, or its result can't be written. Raises
    OutputError for an output that can't be written.
    """
    if job.output is not None:
        _check_room(job, len(file))
        written = outputs.write_new(Path(job.output), file, job.job)
        if written is not file:
            describe(finished, written)
        return None
    if job.result is not None:
        try:
            # The folder may have been removed.
            Path(job.result).parent.mkdir(mode=0o700, exist_ok=True)
            if free_space.above(Path(job.result).parent, job.keep_free, for_results=True) < len(file):
                raise OSError(errno.ENOSPC, "the free space is kept for the journal ([limits] disk_reserve_mib)")
            outputs.replace(Path(job.result), file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            finished.problem = f"{reason} ({Path(job.result).parent})"
            log.say(log.WARNING, f"the result can't be written to {job.result} and is sent instead: {reason}", job.job)
        else:
            finished.result = job.result
            return None
    # A stream has been sent already.
    return None if job.stream else file


def _check_room(job: SpeakJob, size: int) -> None:
    """Raise OutputError for an output that would take more than its client's share, or than the disk has to spare."""
    folder = Path(job.output or "").parent
    name, mib = Path(job.output or "").name, size / (1 << 20)
    if job.output_room is not None and size > job.output_room:
        raise outputs.OutputFailedError(
            f"output: {name} was not written: it has {mib:.1f} MiB, and your files in {folder} may take "
            f"{max(0, job.output_room) / (1 << 20):.1f} MiB more ([limits] outputs_mib, and your share of the disk). "
            "Move files away, or send the job without output"
        )
    try:
        room = free_space.above(folder, job.keep_free)
    except OSError:
        return  # the attempt to write says why
    if size > room:
        raise outputs.OutputFailedError(
            f"output: {name} was not written: it has {mib:.1f} MiB, and in {folder} {max(0, room) / (1 << 20):.1f} MiB "
            "are free beside what is kept for the journal ([limits] disk_reserve_mib). Remove files there, or send the "
            "job without output"
        )


def describe(finished: Finished, file: bytes) -> None:
    """Set the size and the checksum in ``finished`` to those of ``file``."""
    finished.bytes = len(file)
    finished.sha256 = hashlib.sha256(file).hexdigest()
