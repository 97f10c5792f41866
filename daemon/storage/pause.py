"""The file in the state folder that tells the next daemon that an operator has paused the queue."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .outputs import put

_NAME = "paused"
_MOST_BYTES = 64
#: The end of the year 9999: the system's calendar knows later times no more.
_FAR = 253_402_300_800.0


class PauseFile:
    """``paused`` in the state folder: since when, in seconds since 1970. Without a pause there is no file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _NAME

    def read(self) -> float | None:
        """Since when the queue is paused; None if it is not."""
        try:
            with self.path.open("rb") as file:
                written = file.read(_MOST_BYTES)
                since = os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        # Whatever it holds, it is there: better no job than one that an operator has held back.
        with contextlib.suppress(ValueError):
            if 0 < float(written) < _FAR:
                since = float(written)
        return since

    def write(self, since: float | None) -> None:
        """Write it down, or that it is over. Raises OSError."""
        if since is None:
            self.path.unlink(missing_ok=True)
        else:
            self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            put(self.path, f"{since:.3f}\n".encode(), 0o640)
