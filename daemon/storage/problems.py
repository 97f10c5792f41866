"""What can be wrong with the journal, in words for the person who is woken by it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
from pathlib import Path

#: Free bytes below which an error of the disk is taken for a full one.
_FULL_BYTES = 64 * 1024
_MEANS = "Durable jobs are refused meanwhile; other speech goes on"
_AGAIN = "It is tried again every few seconds, without a restart."


class JournalError(Exception):
    """The journal can't be used; the message is whole. ``damaged``: the files must stay as they are."""

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def shown(text: str | Path) -> str:
    """A path, or what has one in it, as text that can be sent: a name of a file may be any bytes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def told(file: Path, what: str, do: str) -> str:
    """The words for one kind of problem."""
    return shown(f"{file}: {what}. {_MEANS}. {do} {_AGAIN}")


def damaged(file: Path, what: str) -> JournalError:
    """The journal's content is not what it was; nobody but its owner may decide what becomes of it."""
    do = (
        f"The daemon leaves the files as they are. Move {file.name}, {file.name}-wal and {file.name}-shm away "
        "together: a new journal is begun at once, and results are put aside "
        f"('sqlite3 {file.name} .recover' shows what is left in the old one)."
    )
    return JournalError(told(file, f"the journal is damaged: {what}", do), damaged=True)


def is_damage(error: Exception) -> bool:
    """Whether an error says that the content is wrong, and not that it can't be reached."""
    if isinstance(error, JournalError):
        return error.damaged
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def keeps_connection(error: Exception) -> bool:
    """Whether the connection is as good as before: what is there can still be read, and later be written to."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: Exception, file: Path) -> str:
    """Whatever opening, reading or writing the journal raised, in words."""
    if isinstance(error, JournalError):
        return str(error)
    if isinstance(error, OSError):
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else file
        if place in file.parent.parents and error.errno in (errno.EACCES, errno.EPERM):
            do = "Make it and give it to the daemon's user (chown), or set another folder in [daemon] state_dir."
            return told(file, f"the daemon's user may not make its folder (nor {place})", do)
        return _of_errno(error.errno or 0, error.strerror or str(error), place)
    code = _code(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return str(damaged(file, str(error)))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        do = f"See which it is ('fuser -v {file}') and end it."
        return told(file, "another process holds a lock on the journal", do)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        default = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}.get(code, errno.EROFS)
        name = getattr(error, "sqlite_errorname", "") or str(error)
        return _of_errno(_behind(file) or default, f"{error} ({name})", file)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return told(file, f"the journal met an error that it does not know ({name}: {error})", "Please report it.")


def _code(error: Exception) -> int:
    """SQLite's primary result code; the extended ones have it in their lowest byte."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _behind(file: Path) -> int:
    """The errno behind an error of SQLite's, which keeps it to itself; 0 if nothing is seen."""
    try:
        os.close(os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        space = os.statvfs(file.parent)
    except OSError as error:
        return error.errno or 0
    if space.f_flag & os.ST_RDONLY:
        return errno.EROFS
    if space.f_bavail * space.f_frsize < _FULL_BYTES:
        return errno.ENOSPC
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                if Path(f"{file}{suffix}").stat().st_size > limit - _FULL_BYTES:
                    return errno.EFBIG
    return 0


_WORDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "Free some space there ('df -h {folder}', and 'df -i' for inodes)."),
    errno.EDQUOT: ("the disk quota of the daemon's user is used up", "Raise it, or free some space in {folder}."),
    errno.EFBIG: (
        "the limit on file sizes of the daemon's user is reached",
        "Raise it (LimitFSIZE in its unit, or prlimit(1) for the daemon that runs).",
    ),
    errno.EROFS: (
        "the journal is read-only",
        "Let the daemon's user write to the file and to {folder}, or mount the file system for writing; one that met "
        "an error may have been made read-only ('mount', 'dmesg').",
    ),
    errno.EACCES: (
        "the daemon's user may not write there",
        "Give it {folder} and the journal.* in it (chown), or set another folder in [daemon] state_dir.",
    ),
    errno.ENOENT: ("there is no such folder", "Make {folder}, or set another one in [daemon] state_dir."),
    errno.ENOTDIR: (
        "this, or what it should lie in, is not a folder",
        "Move it away, or set another [daemon] state_dir.",
    ),
    errno.EIO: ("the disk reports an error: {words}", "Look at the disk of {folder} ('dmesg', 'smartctl -a')."),
    errno.EMFILE: (
        "no descriptor is left to open the journal with",
        "Raise the daemon's limit of open files (LimitNOFILE in its unit, or prlimit(1) for the daemon that runs).",
    ),
    errno.ENFILE: ("the machine has no descriptor left to open the journal with", "See 'sysctl fs.file-max'."),
}
_WORDS[errno.EPERM] = _WORDS[errno.EACCES]
_WORDS[errno.EEXIST] = _WORDS[errno.ENOTDIR]


def _of_errno(number: int, words: str, file: Path) -> str:
    what, do = _WORDS.get(number, ("it can't be used: {words}", "Look at {folder}."))
    return told(file, what.format(folder=file.parent, words=words), do.format(folder=file.parent))
