"""Output files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class AtomicFile:
    """A file that gets its name at the end of the block; until then, and after an error, ``path`` is as it was.

    A pipe or a device such as /dev/null is written to directly. A symbolic link is followed.
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
            # The caller has named this file, not the temporary one beside it.
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


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, in place of what is there. Raises OSError."""
    with AtomicFile(path) as file:
        file.write(data)
