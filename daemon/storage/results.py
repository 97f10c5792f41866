"""The files with the audio of durable jobs: ``results`` beside the journal, one file a job.

A file is called by its job's id alone, or by that and an ending behind a dot.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from .problems import shown

#: Larger than an hour of the largest format; what is larger is no result of ours.
MAX_RESULT_BYTES = 1 << 30


class ResultLostError(Exception):
    """A result can't be read; the message is for the person who waits for it."""


def read_result(path: str | Path, max_bytes: int = MAX_RESULT_BYTES) -> bytes:
    """The file of a SendStored, whole. Raises ResultLostError. It may wait for the disk: not for the loop."""
    name = shown(Path(path).name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ResultLostError(
                    f"the result {name} is not a file any more: somebody has put something else there"
                )
            if status.st_size > max_bytes:
                raise ResultLostError(f"the result {name} has {status.st_size} bytes; at most {max_bytes} are sent")
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise ResultLostError(
            f"the result {name} is gone: it made room for newer ones ([queue] keep_durable_mib), or was removed by "
            "hand; send the job again"
        ) from None
    except OSError as error:
        raise ResultLostError(
            f"the result {name} can't be read: {error.strerror}; see {shown(Path(path).parent)}"
        ) from None
    except MemoryError:
        raise ResultLostError(f"the result {name} does not fit into the daemon's memory now; ask again later") from None
    if len(data) != status.st_size:
        raise ResultLostError(f"the result {name} was cut while it was read; send the job again")
    return data


class Results:
    """The folder of the results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder; nobody else may look into it. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        if self.folder.stat().st_mode & 0o077:
            self.folder.chmod(0o700)

    def measured(self, path: str) -> tuple[str, int]:
        """How the journal notes the file ``path`` (a name if it lies in the folder, which can be moved), and its bytes.

        What lies elsewhere is noted as it is: it is not ours to remove, and does not count.
        """
        if not path:
            return "", 0
        if Path(path).parent != self.folder:
            return path, 0
        try:
            return Path(path).name, Path(path).stat(follow_symlinks=False).st_size
        except OSError:
            return Path(path).name, 0

    def path(self, noted: str) -> str:
        """The path of a file that was noted so."""
        return str(self.folder / noted) if noted else ""

    def remove(self, noted: Iterable[str]) -> list[str]:
        """Remove files; returns what is in the way, in words."""
        problems = []
        for name in noted:
            if "/" in name:
                continue
            try:
                (self.folder / name).unlink(missing_ok=True)
            except (OSError, ValueError) as error:
                problems.append(shown(f"the result {self.folder / name} could not be removed: {error}"))
        return problems

    def put_aside(self) -> Path | None:
        """Give what is there another folder, if there is anything: it belongs to another journal. Raises OSError."""
        if not any(self.folder.iterdir()):
            return None
        aside = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
        self.folder.rename(aside)
        self.make()
        return aside

    def sweep(self, noted: Collection[str], unfinished: Collection[str]) -> int:
        """Remove what belongs to no job, once and before a worker writes there; returns how many files that were.

        ``noted`` are the names in the journal, ``unfinished`` the ids of jobs that live: what an attempt at one has
        written is its next attempt's to judge.
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
