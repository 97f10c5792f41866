"""Output files that appear whole or not at all, and the WAV header of a stream whose length is known at its end."""

from __future__ import annotations

import os
import secrets
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

#: What streaming programs write as the length of a WAV that isn't finished; players read until the end of the data.
_UNKNOWN_LENGTH = 0xFFFFFFFF


class AtomicFile:
    """A file that takes its name when the block ends well; until then, and after a failure, ``path`` is as it was.

    What is no regular file (a pipe, a device such as /dev/null) is written to directly. A symbolic link is followed.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.realpath(path))
        try:
            self._direct = not stat.S_ISREG(self._path.stat().st_mode)
        except FileNotFoundError:
            self._direct = False
        self._temporary = self._path.with_name(f".glmtts-{secrets.token_hex(6)}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        try:
            self._file = self._path.open("wb") if self._direct else self._temporary.open("xb")
        except OSError as error:
            # The person named the file, not our temporary one beside it.
            error.filename = str(self._path)
            raise
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None and not self._direct:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None and not self._direct:
                self._temporary.replace(self._path)
        finally:
            self._file.close()
            if not self._direct:
                self._temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` as the whole of ``path``."""
    with AtomicFile(path) as file:
        file.write(data)


def wav_header(sample_rate: int, channels: int, sample_bytes: int, data_bytes: int | None, *, is_float: bool) -> bytes:
    """The RIFF header before ``data_bytes`` of samples, or before a stream whose length isn't known (None)."""
    kind = 3 if is_float else 1  # WAVE_FORMAT_IEEE_FLOAT, WAVE_FORMAT_PCM
    frame_bytes = channels * sample_bytes
    # A format other than PCM has the size of its extension, none, and a fact chunk with the number of frames.
    extension = struct.pack("<H", 0) if is_float else b""
    known = data_bytes is not None and data_bytes < _UNKNOWN_LENGTH - 64
    data_length = data_bytes if known and data_bytes is not None else _UNKNOWN_LENGTH
    fact = struct.pack("<4sII", b"fact", 4, min(data_length // frame_bytes, _UNKNOWN_LENGTH)) if is_float else b""
    fmt = struct.pack("<HHIIHH", kind, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, sample_bytes * 8)
    fmt += extension
    chunks = b"WAVE" + struct.pack("<4sI", b"fmt ", len(fmt)) + fmt + fact
    padded = data_length + data_length % 2 if known else 0
    riff_length = len(chunks) + 8 + padded if known else _UNKNOWN_LENGTH
    return struct.pack("<4sI", b"RIFF", riff_length) + chunks + struct.pack("<4sI", b"data", data_length)
