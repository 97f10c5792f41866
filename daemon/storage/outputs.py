"""Finished files appear in one step, complete, under a name that did not exist; nothing half-written ever stays.

A worker or the daemon may die between the file and the news of it. So that another attempt at the same job knows the
file for its own, a second name stays beside it, the mark, until the daemon knows how the job ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

#: Begins the names of files that are being written, followed by the writer's pid and start time.
TEMPORARY_PREFIX = ".glmtts-tmp-"
#: Begins the names of marks, followed by the job's id.
MARK_PREFIX = ".glmtts-job-"
_JOB_ID = re.compile(r"[0-9a-f]{1,64}-[0-9]{1,20}")


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


def delivered(path: Path, job: str) -> bytes | None:
    """The content of ``path``, now surely on disk, if an earlier attempt at ``job`` has put it there; else None.

    Raises OutputFailedError if it can't be read.
    """
    if not _is_same_file(path, _mark(path.parent, job)):
        return None
    try:
        # That attempt may have died before it did this; the content was on disk before it had a name.
        sync_folder(path.parent)
        return path.read_bytes()
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error


def write_new(path: Path, data: bytes, job: str) -> bytes:
    """Write ``data`` to ``path``, which must not exist, and have it on disk when this returns.

    What an earlier attempt at ``job`` has put there stays. Returns what is there. ``settle`` removes the mark.
    Raises OutputExistsError or OutputFailedError; either way nothing of it is left in the folder.
    """
    # Late, because the codec is a tenth of the time in which a worker without outputs starts.
    from glmtts.protocol.codec import bad_file_name

    if problem := bad_file_name(path.name):
        raise OutputFailedError(f"output: {path.name!r} is no name for a file: {problem}")
    mark = _mark(path.parent, job)
    if (earlier := delivered(path, job)) is not None:
        return earlier
    try:
        # Of an attempt that got no further: it may be what has filled the disk.
        mark.unlink(missing_ok=True)
        _put(mark, data)
        _link(mark, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error
    return data


def replace(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whatever is there, and have it on disk when this returns.

    Raises OSError; then nothing of it is left in the folder.
    """
    _put(path, data)
    try:
        # Only now a loss of power can't bring the name back to what it was, or to nothing.
        sync_folder(path.parent)
    except OSError:
        path.unlink()
        raise


def settle(path: Path, job: str) -> None:
    """Remove the mark beside ``path``, if it is there: it is known for good how ``job`` ended. Raises OSError.

    It is not synced: a mark that a loss of power brings back is swept.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _mark(path.parent, job).unlink()


def discard(path: Path, job: str) -> None:
    """Remove what ``job`` has put at ``path``, if it has, and its mark: the job ended badly. Raises OSError."""
    _unlink_if_same(path, _mark(path.parent, job))
    settle(path, job)


def sweep(folder: Path, keep: set[str]) -> int:
    """Remove what dead writers have left in ``folder``: half-written files, and the marks of all jobs but ``keep``.

    Returns how many files that were. Raises OSError.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if _is_left_over(entry.name, keep):
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


def _mark(folder: Path, job: str) -> Path:
    """Raises ValueError for what is no id of a job, and so might lead out of the folder."""
    if not _JOB_ID.fullmatch(job):
        raise ValueError(f"{job!r} is no id of a job")
    return folder / f"{MARK_PREFIX}{job}"


def _put(path: Path, data: bytes) -> None:
    """Give ``path`` this content in one step. Raises OSError; then it is as it was."""
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{started(os.getpid())}-{os.urandom(6).hex()}"
    with _removed_afterwards(temporary):
        _write_synced(temporary, data)
        temporary.rename(path)


def _link(mark: Path, path: Path) -> None:
    """Give the marked file its name for good. Raises OSError; then neither name is left."""
    with contextlib.ExitStack() as undo:
        undo.callback(mark.unlink)
        # Unlike a rename, a link never replaces a file that somebody else has just put there.
        os.link(mark, path)
        # Before the mark, which says whose it is.
        undo.callback(path.unlink)
        # One for both names. File systems with a journal keep the order of what was done in a folder: after a loss of
        # power there may be both, or neither, or the mark alone, from which nothing follows. And what may vanish again
        # is not to be heard of: where it can't be synced, it goes.
        sync_folder(path.parent)
        undo.pop_all()


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
        # Before it gets a name that stays: else a loss of power could leave the name with half of it, or with nothing.
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), other.lstat())
    except OSError:
        return False


def _unlink_if_same(path: Path, other: Path) -> None:
    if _is_same_file(path, other):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """A link or a rename is on disk when its folder is (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_left_over(name: str, keep: set[str]) -> bool:
    if name.startswith(MARK_PREFIX):
        return name.removeprefix(MARK_PREFIX) not in keep
    return name.startswith(TEMPORARY_PREFIX) and not _is_being_written(name)


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
