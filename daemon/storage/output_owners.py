"""Whose the files in the outputs folder are, and what they take of the disk.

They belong to the daemon's user, so a file beside the journal says which client asked for each. It has a line for each
file, the newest last: ``["uid:1000", "a.wav"]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

from ..core.inputs import OutputsMeasured
from . import free_space
from .outputs import put

#: The least that a file counts, in bytes: small ones take blocks and inodes.
_LEAST_BYTES = 16 << 10
#: The file is written anew when it has this many lines that say nothing any more.
_USELESS_LINES = 1_000


class OutputOwners:
    """Owns the file of the owners. Every method may wait for the disk; all are called from one thread."""

    def __init__(self, folder: Path, file: Path) -> None:
        """``folder`` has the outputs; the owners are noted in ``file``, which may be missing."""
        self._folder = folder
        self._file = file
        self._client_of: dict[str, str] = {}
        self._lines = 0
        self._is_read = False

    def note(self, name: str, client: str) -> None:
        """A job of this client has written the file ``name``."""
        self._read()
        self._client_of[name] = client
        self._lines += 1
        # Without a line, its file counts for no client after a restart.
        with contextlib.suppress(OSError), self._file.open("a", encoding="ascii") as file:
            file.write(_line(client, name))

    def measure(self, keep_free: int) -> OutputsMeasured:
        """What each client's files take, and the free space above ``keep_free`` bytes."""
        self._read()
        found: dict[str, int] = {}
        there: dict[str, str] = {}
        try:
            free = free_space.above(self._folder, keep_free)
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    client = self._client_of.get(entry.name)
                    if client is None:
                        continue
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            there[entry.name] = client
                            found[client] = found.get(client, 0) + max(status.st_size, _LEAST_BYTES)
        except OSError:
            return OutputsMeasured({}, None)
        self._client_of = there
        if self._lines > len(there) + _USELESS_LINES:
            self._write()
        return OutputsMeasured(found, free)

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        with contextlib.suppress(OSError), self._file.open(encoding="ascii", errors="replace") as file:
            for line in file:
                self._lines += 1
                with contextlib.suppress(ValueError, TypeError):
                    client, name = json.loads(line)
                    self._client_of[str(name)] = str(client)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            put(self._file, "".join(_line(client, name) for name, client in self._client_of.items()).encode(), 0o600)
            self._lines = len(self._client_of)


def _line(client: str, name: str) -> str:
    return json.dumps([client, name]) + "\n"
