"""The audio of durable jobs: the folder ``results`` beside the journal, with a file for each job.

A file is named by its job's id alone, or by the id and an ending behind a dot.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from glmtts.protocol.files import read_file
from glmtts.protocol.system_words import error_in_words

from .outputs import MAX_FILE_BYTES
from .problems import printable


class ResultLostError(Exception):
    """A result can't be read; the message is for the client that waits for it."""


def read_result(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The whole file of a result. Raises ResultLostError. May wait for the disk, so it is not for the loop."""
    name = printable(Path(path).name)
    try:
        return read_file(path, max_bytes)
    except FileNotFoundError:
        raise ResultLostError(
            f"the result {name} is gone: it was kept for [queue] keep_durable_s, was removed early when your results "
            "took the most of keep_durable_mib, or was removed by hand; send the job again"
        ) from None
    except OSError as error:
        raise ResultLostError(
            f"the result {name} can't be read: {error.strerror}; see {printable(Path(path).parent)}"
        ) from None
    except MemoryError:
        raise ResultLostError(f"the result {name} does not fit into the daemon's memory now; ask again later") from None


def size_of(path: str | Path) -> int:
    """The size of a result's file in bytes; 0 if it can't be seen."""
    try:
        return os.stat(path, follow_symlinks=False).st_size  # noqa: PTH116 - a str is as good
    except OSError:
        return 0


class Results:
    """The folder of the results. The journal notes a file in it by its name, so that the folder can be moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder, for the daemon's user alone. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        if self.folder.stat().st_mode & 0o077:
            self.folder.chmod(0o700)

    def measured(self, path: str) -> tuple[str, int]:
        """The journal's note of the file ``path``, and its size in bytes.

        A file outside the folder is noted by its path and counts 0 bytes: it is an output, and not ours to remove.
        """
        if not path:
            return "", 0
        file = Path(path)
        if file.parent != self.folder:
            return path, 0
        try:
            return file.name, file.stat(follow_symlinks=False).st_size
        except OSError:
            return file.name, 0

    def path(self, noted: str) -> str:
        """The path of a file by its note."""
        return str(self.folder / noted) if noted else ""

    def remove(self, noted: Iterable[str]) -> list[str]:
        """Remove files by their notes; returns a message for each that could not be removed."""
        problems = []
        for name in noted:
            if "/" in name:
                continue
            try:
                (self.folder / name).unlink(missing_ok=True)
            except (OSError, ValueError) as error:
                problems.append(
                    printable(f"the result {self.folder / name} could not be removed: {error_in_words(error)}")
                )
        return problems

    def rename_old(self) -> Path | None:
        """Rename the folder, unless it is empty, because its files belong to another journal. Raises OSError."""
        if not any(self.folder.iterdir()):
            return None
        old = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        self.folder.rename(old)
        self.make()
        return old

    def sweep(self, noted: Collection[str], unfinished: Collection[str]) -> int:
        """Remove the files of no job, once, before a worker writes there; returns how many there were.

        Args:
            noted: the names in the journal.
            unfinished: the ids of living jobs, whose files the next attempt judges.
        """
        removed = 0
        with os.scandir(self.folder) as entries:
            strays = [
                entry.path
                for entry in entries
                if entry.name not in noted
                and entry.name.partition(".")[0] not in unfinished
                and not entry.is_dir(follow_symlinks=False)
            ]
        for path in strays:
            with contextlib.suppress(OSError):
                Path(path).unlink()
                removed += 1
        return removed
