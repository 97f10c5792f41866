"""Problems of the journal, in words for the operator whom they wake."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
from pathlib import Path

from .filesystems import network_filesystem

#: Free bytes below which an error of the disk is taken for a full one.
_FULL_BYTES = 64 * 1024
_MEANS = "Durable jobs are refused meanwhile; other requests are served"
_AGAIN = "The daemon tries again every few seconds, without a restart."
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
#: Errors of locks and of memory that SQLite shares between processes: local disks have both.
_NO_LOCKS = frozenset(
    {sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_UNLOCK}
    | {sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK, sqlite3.SQLITE_IOERR_SHMLOCK}
    | {sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE}
)
_NO_LOCK_NUMBERS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESTALE, errno.EREMOTEIO})
_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EROFS,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


class JournalError(Exception):
    """The journal can't be used; the message is complete. ``damaged``: the files must stay as they are."""

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


def printable(text: str | Path) -> str:
    """A path, or a message with one, as text that can be sent: a file's name may be any bytes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def message(file: Path, what: str, remedy: str) -> str:
    """What is wrong with ``file``, what that means, and what to do."""
    return printable(f"{file}: {what}. {_MEANS}. {remedy} {_AGAIN}")


def damaged(file: Path, what: str) -> JournalError:
    """The error for a journal with wrong content: only its owner may decide about the files."""
    remedy = (
        f"The daemon leaves the files as they are. Move {file.name}, {file.name}-wal and {file.name}-shm away "
        "together: a new journal is begun at once, and the folder of results is renamed "
        f"('sqlite3 {file.name} .recover' shows what is left in the old one)."
    )
    return JournalError(message(file, f"the journal is damaged: {what}", remedy), damaged=True)


def is_damage(error: Exception) -> bool:
    """Whether an error means that the content is wrong, and not that it can't be reached."""
    return error.damaged if isinstance(error, JournalError) else _code(error) in _DAMAGE


def keeps_connection(error: Exception) -> bool:
    """Whether the connection is still good: the file can be read, and later be written to."""
    return _code(error) in (sqlite3.SQLITE_FULL, *_LOCKED)


def explain(error: Exception, file: Path) -> str:
    """The message for an error of opening, reading or writing the journal."""
    if isinstance(error, JournalError):
        return str(error)
    if isinstance(error, OSError):
        place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else file
        if place in file.parent.parents and error.errno in (errno.EACCES, errno.EPERM):
            remedy = "Make it and give it to the daemon's user (chown), or set another folder in [daemon] state_dir."
            return message(file, f"the daemon's user may not make its folder (nor {place})", remedy)
        if error.errno in _NO_LOCK_NUMBERS:
            return _no_locks(file, error.strerror or "")
        return _of_errno(error.errno or 0, error.strerror or str(error), place)
    code = _code(error)
    if code in _DAMAGE:
        return str(damaged(file, str(error)))
    if code in _LOCKED and network_filesystem(file.parent):
        return _no_locks(file, f"{error}; perhaps a lock is left of a machine that died")
    if code in _LOCKED:
        remedy = f"Find it with 'fuser -v {file}' and end it."
        return message(file, "another process holds a lock on the journal", remedy)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    found = _behind(file)
    if not found and (int(getattr(error, "sqlite_errorcode", 0)) in _NO_LOCKS or code == sqlite3.SQLITE_PROTOCOL):
        return _no_locks(file, f"{error}, {name}")
    if code == sqlite3.SQLITE_NOMEM:
        return message(file, "the machine has no memory left to open or read the journal", "Free some ('free -h').")
    if code == sqlite3.SQLITE_PERM:
        found = errno.EACCES
    if code in _DISK or found:
        return _of_errno(found or _DISK[code], f"{error} ({name})", file)
    return message(file, f"the journal met an unknown error ({name}: {error})", "Please report it.")


def _code(error: Exception) -> int:
    """SQLite's primary result code: the lowest byte of the extended one."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _behind(file: Path) -> int:
    """The errno behind an error of SQLite's, which does not report it; 0 if none is found."""
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
        "Raise it (LimitFSIZE in its unit, or prlimit(1) for the running daemon).",
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
        "this, or a part of its path, is not a folder",
        "Move it away, or set another [daemon] state_dir.",
    ),
    errno.EIO: ("the disk reports an error: {words}", "Check the disk of {folder} ('dmesg', 'smartctl -a')."),
    errno.EMFILE: (
        "no descriptor is left to open the journal with",
        "Raise the daemon's limit of open files (LimitNOFILE in its unit, or prlimit(1) for the running daemon).",
    ),
    errno.ENFILE: ("the machine has no descriptor left to open the journal with", "See 'sysctl fs.file-max'."),
}
_WORDS[errno.EPERM] = _WORDS[errno.EACCES]
_WORDS[errno.EEXIST] = _WORDS[errno.ENOTDIR]


def _no_locks(file: Path, words: str) -> str:
    """The message for a folder on the network, or another one without locks."""
    kind = network_filesystem(file.parent)
    where = f"its folder is on the network ({kind})" if kind else "its file system has no locks or shared memory"
    remedy = (
        "A folder on the network (NFS, SMB) often has neither: take one on a local disk for the daemon's state "
        "([daemon] state_dir), and restart it."
    )
    return message(file, f"the journal can't be locked: {where} ({words})", remedy)


def _of_errno(number: int, words: str, file: Path) -> str:
    if number in (errno.EIO, errno.EROFS) and (kind := network_filesystem(file.parent)):
        words = f"the file system on the network ({kind}) reports an error: {words}"
        return message(file, words, f"Check the server of {file.parent}, or take a local disk: [daemon] state_dir.")
    what, remedy = _WORDS.get(number, ("it can't be used: {words}", "Check {folder}."))
    return message(file, what.format(folder=file.parent, words=words), remedy.format(folder=file.parent))
