"""Files appear in one step, complete, under a name that did not exist; no partial file is left.

A worker or the daemon may die after the file was written and before that is known. A second name, the mark, stays
beside the file until the daemon knows how the job ended: it shows the next attempt at the job that the file is its own.

Other users, and other daemons, may write in the same folder. So a mark counts only on a regular file of this user that
has no third name, and a daemon sweeps its own files alone: the ids of its jobs begin with its instance.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from glmtts.protocol.files import UnusableFileError, read_file
from glmtts.protocol.system_words import error_in_words

#: Begins the names of files that are being written, followed by the job's id.
TEMPORARY_PREFIX = ".glmtts-tmp-"
#: Begins the names of marks, followed by the job's id.
MARK_PREFIX = ".glmtts-job-"
_JOB_ID = re.compile(r"[0-9a-f]{1,64}-[0-9]{1,20}")
#: Larger than an hour of the largest format: a larger file is no output and no result.
MAX_FILE_BYTES = 1 << 30
_INSTANCE = re.compile(r"[0-9a-f]{6}")
_MAX_INSTANCE_BYTES = 64


class OutputError(Exception):
    """The file was not written; the message is for the client."""


class OutputExistsError(OutputError):
    """There is a file of that name, which was left as it is."""


class OutputFailedError(OutputError):
    """The file can't be written there."""


def check_absent(path: Path) -> None:
    """Raise OutputExistsError if ``path`` exists, to save the synthesis; ``write_new`` decides in the end.

    Raises OutputFailedError if that can't be seen: the folder is another user's, or no folder.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error
    raise _exists(path)


def delivered(path: Path, job: str) -> bytes | None:
    """The content of ``path``, synced, if an earlier attempt at ``job`` wrote it; else None.

    Raises OutputFailedError if it can't be read.
    """
    mark = _mark(path.parent, job)
    if not _is_same_file(path, mark):
        return None
    try:
        # That attempt may have died before this sync; the content was synced before it had a name.
        sync_folder(path.parent)
        return read_file(path, MAX_FILE_BYTES, own=True, like=mark)
    except UnusableFileError:
        return None  # forged
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error


def write_new(path: Path, data: bytes, job: str) -> bytes:
    """Write ``data`` to ``path``, which must not exist, and sync it; ``settle`` removes the mark.

    Returns the content of the file: that of an earlier attempt at ``job`` is kept. Raises OutputExistsError or
    OutputFailedError, and leaves nothing in the folder then.
    """
    # Late, because the codec is a tenth of the time in which a worker without outputs starts.
    from glmtts.protocol.codec import bad_file_name

    if problem := bad_file_name(path.name):
        raise OutputFailedError(f"output: {path.name!r} is no name for a file: {problem}")
    mark = _mark(path.parent, job)
    if (earlier := delivered(path, job)) is not None:
        return earlier
    try:
        # Left by an attempt that got no further, and perhaps what fills the disk.
        mark.unlink(missing_ok=True)
    except OSError as error:
        raise OutputFailedError(
            f"output: {path.name} was not written: {mark} is in the way and can't be removed ({error.strerror})"
        ) from error
    try:
        put(mark, data, job=job)
        _link(mark, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise OutputFailedError(_explain(path, error)) from error
    return data


def replace(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whether it exists or not, and sync it. Raises OSError, and leaves no file then."""
    put(path, data)
    try:
        # Without it, a loss of power may undo the rename.
        sync_folder(path.parent)
    except OSError:
        path.unlink()
        raise


def settle(path: Path, job: str) -> None:
    """Remove the mark beside ``path``, if there is one, because ``job`` has ended. Raises OSError.

    Not synced: a mark that comes back after a loss of power is swept.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        _mark(path.parent, job).unlink()


def discard(path: Path, job: str) -> None:
    """Remove the file that ``job`` wrote at ``path``, if it did, and the mark: the job ended badly. Raises OSError."""
    if _is_same_file(path, _mark(path.parent, job)):
        path.unlink()
    settle(path, job)


def sweep(folder: Path, keep: set[str], instance: str) -> int:
    """Remove from ``folder`` this instance's partial files, and its marks of all jobs but ``keep``.

    Called once, when no worker of this instance lives yet. Returns the number of files removed. Raises OSError.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if _is_left_over(entry.name, keep, instance):
                with contextlib.suppress(OSError):  # perhaps another user's
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot (/proc/PID/stat, field 22); 0 if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The command's name may contain blanks and brackets, so the fields are counted from behind it.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def _mark(folder: Path, job: str) -> Path:
    """The path of a job's mark. Raises ValueError for a text that is no job's id: it might lead out of the folder."""
    if not _JOB_ID.fullmatch(job):
        raise ValueError(f"{job!r} is not a job's id")
    return folder / f"{MARK_PREFIX}{job}"


def put(path: Path, data: bytes, mode: int = 0o666, *, job: str = "") -> None:
    """Give ``path`` this synced content in one step. Raises OSError, and changes nothing then.

    ``job``: whose file it is, for :func:`sweep`.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{job}-{os.urandom(6).hex()}"
    try:
        _write_synced(temporary, data, mode)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _link(mark: Path, path: Path) -> None:
    """Give the marked file its final name. Raises OSError, and leaves neither name then."""
    with contextlib.ExitStack() as undo:
        undo.callback(mark.unlink)
        # Unlike a rename, a link never replaces a file.
        os.link(mark, path)
        # Undone before the mark, which shows that the file is this job's.
        undo.callback(path.unlink)
        # One sync for both names. File systems with a journal keep the order of changes in a folder: after a loss of
        # power there are both names, or neither, or the mark alone, which is harmless. A file that can't be synced is
        # removed, since it may vanish after it was reported.
        sync_folder(path.parent)
        undo.pop_all()


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        # Before the rename: otherwise a loss of power could leave the name with partial content.
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), other.lstat())
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder: a link or a rename is on disk when its folder is (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_left_over(name: str, keep: set[str], instance: str) -> bool:
    if name.startswith(MARK_PREFIX):
        job = name.removeprefix(MARK_PREFIX)
        return job.startswith(instance) and job not in keep
    job, _, _ = name.removeprefix(TEMPORARY_PREFIX).rpartition("-")
    return name.startswith(TEMPORARY_PREFIX) and _JOB_ID.fullmatch(job) is not None and job.startswith(instance)


def instance_of(folder: Path) -> str:
    """Six hexadecimal digits that name the daemon with this state folder; made by its first start, and kept there.

    Where they can't be kept they are others each time, and files of an earlier start are left where they are.
    """
    kept = folder / "instance"
    try:
        known = read_file(kept, _MAX_INSTANCE_BYTES, own=True).decode("ascii").strip()
        if _INSTANCE.fullmatch(known):
            return known
    except (OSError, UnicodeDecodeError):
        pass
    new = secrets.token_hex(3)
    with contextlib.suppress(OSError):
        put(kept, f"{new}\n".encode(), 0o600)
    return new


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
    return f"output: {path.name} was not written: " + reason.format(folder=path.parent, words=error_in_words(error))
