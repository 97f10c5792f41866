"""Targets of a stream: files and standard output."""

from __future__ import annotations

import abc
import contextlib
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from glmtts.client.files import AtomicFile

from .wav import wav_header


class Sink(contextlib.AbstractContextManager["Sink"], abc.ABC):
    """Takes the samples of a stream in order. The end of its block closes what it opened, or removes it on an error."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)  # type: ignore[arg-type]

    @abc.abstractmethod
    def start(self, sample_rate: int, channels: int) -> None:
        """Begin, with the shape of the first chunk."""

    @abc.abstractmethod
    def write(self, samples: bytes) -> None:
        """Take the next samples."""

    def finish(self) -> None:
        """End, after the last samples."""


class RawSink(Sink):
    """Only the samples, to a file or to an open stream."""

    def __init__(self, target: Path | BinaryIO) -> None:
        super().__init__()
        self._target = target
        self._file: BinaryIO

    def start(self, sample_rate: int, channels: int) -> None:  # noqa: ARG002
        target = self._target
        self._file = self._stack.enter_context(AtomicFile(target)) if isinstance(target, Path) else target

    def write(self, samples: bytes) -> None:
        self._file.write(samples)
        if not isinstance(self._target, Path):
            self._file.flush()


class WavSink(RawSink):
    """A WAV file; its header gives the length as unknown where the target can't seek."""

    def __init__(self, target: Path | BinaryIO, *, is_float: bool) -> None:
        super().__init__(target)
        self._is_float = is_float
        self._shape = (0, 0)
        self._data_bytes = 0

    def start(self, sample_rate: int, channels: int) -> None:
        super().start(sample_rate, channels)
        self._shape = (sample_rate, channels)
        self._file.write(self._header(None))

    def write(self, samples: bytes) -> None:
        super().write(samples)
        self._data_bytes += len(samples)

    def finish(self) -> None:
        header = self._header(self._data_bytes)
        if not self._can_go_back(len(header) + self._data_bytes):
            return
        end = self._file.tell()
        self._file.seek(end - self._data_bytes - len(header))
        self._file.write(header)
        self._file.seek(end)

    def _can_go_back(self, distance: int) -> bool:
        """Not in a pipe or a device, and not where each write is appended (``>> file``)."""
        if not self._file.seekable() or self._file.tell() < distance:
            return False
        return not fcntl.fcntl(self._file.fileno(), fcntl.F_GETFL) & os.O_APPEND

    def _header(self, data_bytes: int | None) -> bytes:
        return wav_header(*self._shape, 4 if self._is_float else 2, data_bytes, is_float=self._is_float)
