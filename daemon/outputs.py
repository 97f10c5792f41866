"""Finished files appear in one step, complete, under a name that did not exist; nothing half-written ever stays."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

#: Begins the names of files that are being written, followed by the writer's pid and start time.
TEMPORARY_PREFIX = ".glmtts-tmp-"


class OutputError(Exception):
    """The file was not written; the message is for the person who asked for it."""


class OutputExistsError(OutputError):
    """There is a file of that name; it was left as it is."""


class OutputFailedError(OutputError):
    """The file can't be written there."""


def check_absent(path: Path) -> None:
    """Raise OutputExistsError if ``path`` is taken: worth knowing before the work is done. ``write_new`` decides."""
    if path.exists() or path.is_symlink():
        raise _exists(path)


def write_new(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, which must not exist, and have it on disk when this returns.

    Raises OutputExistsError or OutputFailedError; either way nothing of it is left in the folder.
    """
    # Late, because the codec is a tenth of the time in which a worker without outputs starts.
    from glmtts.protocol.codec import bad_file_name

    if problem := bad_file_name(path.name):
        raise OutputFailedError(f"output: {path.name!r} is no name for a file: {problem}")
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{started(os.getpid())}-{os.urandom(6).hex()}"
    try:
        with _removed_afterwards(temporary):
            _write_synced(temporary, data)
            # Unlike a rename, a link never replaces a file that somebody else has just put there.
            os.link(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error


def sweep_temporaries(folder: Path) -> int:
    """Remove what writers that are dead have left in ``folder``; returns how many files that were."""
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(TEMPORARY_PREFIX) and not _is_being_written(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot (/proc/PID/stat, field 22); 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The command's name may itself hold blanks and brackets: count from behind it.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


@contextlib.contextmanager
def _removed_afterwards(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """A link or a rename is on disk when its folder is (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_being_written(name: str) -> bool:
    parts = name.removeprefix(TEMPORARY_PREFIX).split("-")
    if len(parts) != 3 or not parts[0].isascii() or not parts[0].isdigit():
        return False
    start = started(int(parts[0]))
    return start != 0 and str(start) == parts[1]


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"output: {path.name} exists already and is left as it is; choose another name")


_REASONS: dict[int, str] = {
    errno.ENOSPC: "the disk is full; free some space in {folder}, or send the job without output",
    errno.EDQUOT: "the disk quota of the daemon's user is used up in {folder}",
    errno.EFBIG: "the file would be larger than the limit on file sizes of the daemon's user",
    errno.EROFS: "{folder} is on a read-only file system",
    errno.EACCES: "the daemon's user may not write in {folder}; see [audio] outputs",
    errno.EPERM: "the file system of {folder} does not permit it (hard links are needed); see [audio] outputs",
    errno.EOPNOTSUPP: "the file system of {folder} has no hard links, which are needed; see [audio] outputs",
    errno.ENOENT: "the folder {folder} does not exist; see [audio] outputs",
    errno.ENOTDIR: "{folder} is not a folder; see [audio] outputs",
    errno.ENAMETOOLONG: "the name is too long for the file system of {folder}",
    errno.EIO: "the disk of {folder} reports an error",
}


def _explain(path: Path, error: OSError) -> str:
    reason = _REASONS.get(error.errno or 0, "{words} in {folder}")
    return f"output: {path.name} was not written: " + reason.format(folder=path.parent, words=error.strerror)
