"""Checks of what the kernel does for this process. Each call is made: a container may forbid what a version has."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from glmtts.protocol.endpoints import runtime_dir

from ..core.settings import Settings
from ..processes.descendants import adopt
from .check import Check, State, ok, warning, wrong


class _Call(NamedTuple):
    """A call that the daemon makes, and what its lack means; ``ok``: nothing is lost."""

    name: str
    call: Callable[[], None]
    lack: State
    means: str


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _memfd() -> None:
    os.close(os.memfd_create("doctor", os.MFD_CLOEXEC))


def _subreaper() -> None:
    adopt()


def _signal_of_pipe() -> None:
    read_end, write_end = os.pipe()
    try:
        fcntl.fcntl(read_end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(read_end, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(read_end, fcntl.F_SETFL, fcntl.fcntl(read_end, fcntl.F_GETFL) | os.O_ASYNC)
    finally:
        os.close(read_end)
        os.close(write_end)


_CALLS = (
    _Call("pidfd_open", _pidfd, "ok", "left-over processes are ended by their numbers instead"),
    _Call("memfd_create", _memfd, "warning", "a suspended job of eSpeak NG delays the job that it makes room for"),
    _Call("PR_SET_CHILD_SUBREAPER", _subreaper, "warning", "what a worker leaves behind lives until the daemon ends"),
    _Call("F_SETSIG", _signal_of_pipe, "wrong", "no worker starts, because it could not be tied to the daemon's life"),
)


def system_calls(settings: Settings) -> list[Check]:
    """Whether the kernel, and the container's seccomp profile, allow the calls that not every one allows."""
    found: list[Check] = []
    allowed: list[str] = []
    for one in _CALLS:
        if one.call is _memfd and settings.engine.name != "espeak":
            continue
        try:
            one.call()
        except (AttributeError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else "this Python does not have it"
            seen = f"{one.name}: {why}"
            if one.lack == "ok":
                allowed.append(f"{seen} ({one.means})")
                continue
            remedy = "allow it in the container's seccomp profile, or run a newer kernel"
            found.append((wrong if one.lack == "wrong" else warning)("system call", seen, one.means, remedy))
        else:
            allowed.append(one.name)
    return [ok("system calls", ", ".join(allowed)), *found]


def runtime_files(settings: Settings) -> list[Check]:
    """Whether sockets and locks can be made in the runtime folder: some network and shared folders have neither."""
    folder = runtime_dir(settings.daemon.runtime_dir)
    there = folder if folder.exists() else folder.parent
    try:
        with (
            # Short names: the path of a socket is limited.
            tempfile.TemporaryDirectory(prefix="d", dir=there) as made,
            (Path(made) / "l").open("wb") as lock,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            listener.bind(f"{made}/s")
    except PermissionError as error:
        if error.errno == errno.EACCES:
            return []  # another check names the folder's owner
        problem = error.strerror
    except OSError as error:
        problem = error.strerror or str(error)
    else:
        return [ok("runtime folder's files", f"{there}: sockets and locks work")]
    means = "the daemon does not start: it can't make its lock or its sockets there"
    remedy = "set a folder on a local disk in [daemon] runtime_dir or GLMTTS_RUNTIME_DIR"
    return [wrong("runtime folder's files", f"{there}: {problem}", means, remedy)]
