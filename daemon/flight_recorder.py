"""The flight recorder: memory that a worker shares with the supervisor, in which it notes what it is about to do.

Before each piece of work the worker writes the stage (``prefill``, ``decode``, ``flow``) and the jobs in it. After its
death the supervisor reads which jobs may have caused it. A note is written whole before it is made valid, so a worker
that dies at any instruction leaves the last whole one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection
from dataclasses import dataclass

#: Bytes of the memory: two places of half that size, one of which holds the valid note.
SIZE = 4_096
_PLACE = SIZE // 2


@dataclass(frozen=True, slots=True)
class Note:
    """The work that a process had begun: a stage, and the jobs in it. Both are empty before the first."""

    stage: str = ""
    jobs: tuple[str, ...] = ()


def create() -> int:
    """Memory for one process, as a descriptor that it inherits; the caller closes it. Raises OSError."""
    fd = os.memfd_create("glmtts-flight-recorder", os.MFD_CLOEXEC)
    os.truncate(fd, SIZE)
    return fd


def read(fd: int) -> Note:
    """The last note; an empty one where the memory holds no valid note."""
    try:
        data = os.pread(fd, SIZE, 0)
        if len(data) < SIZE:
            return Note()
        place = _PLACE * (data[0] & 1)
        length = int.from_bytes(data[place + 1 : place + 3], "little")
        stage, *jobs = data[place + 3 : place + 3 + length].decode().split("\0")
        return Note(stage, tuple(jobs))
    except (OSError, ValueError):
        return Note()


class Recorder:
    """Writes notes: the worker's end."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SIZE)
        self._last: tuple[str, tuple[str, ...]] = ("", ())

    def note(self, stage: str, jobs: Collection[str] = ()) -> None:
        """The process begins ``stage`` with ``jobs`` now. Costs a microsecond; the same note again costs less."""
        if (now := (stage, tuple(jobs))) == self._last:
            return
        self._last = now
        text = "\0".join((stage, *now[1])).encode(errors="replace")[: _PLACE - 3]
        free = 1 - (self._memory[0] & 1)
        start = _PLACE * free
        self._memory[start + 1 : start + 3] = len(text).to_bytes(2, "little")
        self._memory[start + 3 : start + 3 + len(text)] = text
        # The byte that makes the note valid comes last.
        self._memory[0] = free
