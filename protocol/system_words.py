"""Errors of the system and ends of processes in words: never a bare number, and what to do where that is known."""

from __future__ import annotations

import errno
import os
import signal

#: What to do about errors that a person can remedy, or what they mean.
_HINTS: dict[int, str] = {
    errno.ENOSPC: "free some space ('df -h', and 'df -i' for inodes)",
    errno.EDQUOT: "raise the disk quota of this user, or free some space",
    errno.EFBIG: "it is over this user's limit on file sizes (ulimit -f, LimitFSIZE)",
    errno.EROFS: "mount it for writing; after an error a file system may have been made read-only ('dmesg')",
    errno.EIO: "the disk reports an error: see 'dmesg'",
    errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "the whole machine has no descriptor left: see 'sysctl fs.file-max'",
    errno.ENOMEM: "the machine or the container has no memory left ('free -h')",
    errno.ENOEXEC: "this is no program for this machine",
    errno.ENOLCK: "its file system has no locks, as on NFS: take a local disk",
    errno.ESTALE: "the server of this network folder has forgotten the file: mount it again, or take a local disk",
    errno.EADDRINUSE: "another program uses this address",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.ECONNREFUSED: "nothing listens there",
    errno.ENETUNREACH: "there is no route to it",
    errno.EHOSTUNREACH: "there is no route to it",
}
#: Where a process was to be started, this is what an error means that elsewhere means "try again".
_NO_PROCESS = (
    "no more processes or threads may be made: raise the limit (ulimit -u, TasksMax, the container's pids limit), or "
    "end some"
)


def error_in_words(error: BaseException, *, starting: bool = False) -> str:
    """``/var/x: No space left on device; free some space ...``: an error with its file, without its number.

    Args:
        starting: The error is one of starting a process.
    """
    if not isinstance(error, OSError) or not (error.errno or error.strerror):
        return str(error) or type(error).__name__
    words = error.strerror or os.strerror(error.errno or 0)
    hint = _NO_PROCESS if starting and error.errno == errno.EAGAIN else _HINTS.get(error.errno or 0, "")
    file = f"{_shown(error.filename)}: " if error.filename else ""
    return f"{file}{words}; {hint}" if hint else f"{file}{words}"


def _shown(file: object) -> str:
    text = os.fsdecode(file) if isinstance(file, bytes) else str(file)
    return text if text.isprintable() else repr(text)


def exit_in_words(returncode: int) -> str:
    """How a process ended: ``killed by SIGSEGV``, ``exited with status 3``. ``returncode`` is as in subprocess."""
    if returncode >= 0:
        named = _signal(returncode - 128) if returncode > 128 else ""
        return f"exited with status {returncode}" + (f" ({named} in a process that it had started)" if named else "")
    return f"killed by {_signal(-returncode) or f'signal {-returncode}'}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
