"""A worker dies with its daemon, however the daemon dies and whatever the worker is doing.

The daemon holds the only write end of a pipe, and each worker has the read end. The worker asks the kernel to send
SIGKILL to its process group when that pipe changes (``F_SETOWN``, ``F_SETSIG``, ``O_ASYNC``; fcntl(2)). When the daemon
ends, the pipe closes, and the kernel kills the group. This needs no thread and no interpreter lock, so it also ends a
worker that is stuck in C, and its children; guardian.py ends the children that have left the group. Nothing may ever
be written to the pipe.

``PR_SET_PDEATHSIG`` covers the time until that is set up, and is then cleared: it kills the worker alone, perhaps
before the daemon's last thread has closed the pipe, and the signal for the group would be lost with the worker. It is
bound to the *thread* that started the worker, so that must be the daemon's main thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal

_PR_SET_PDEATHSIG = 1


class DaemonGoneError(Exception):
    """The daemon ended before the worker was tied to it."""


def tie(lifeline_fd: int | None, daemon_pid: int) -> None:
    """Have the kernel kill this process, and the process group that it leads, when the daemon ends.

    ``lifeline_fd``: the read end of the daemon's pipe; None: watch the parent process only. Raises DaemonGoneError if
    the daemon has already ended.
    """
    # [engine] python may be a wrapper script, which is then the parent.
    is_parent = os.getppid() == daemon_pid
    if is_parent:
        _die_with_parent(True)
    if lifeline_fd is None:
        if os.getppid() != daemon_pid:
            raise DaemonGoneError(f"process {daemon_pid} is not the parent of this worker")
        return
    os.set_inheritable(lifeline_fd, False)
    # In a terminal's process group (a worker started by hand) the worker alone is ours to kill.
    owner = -os.getpgrp() if os.getpgrp() == os.getpid() else os.getpid()
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, owner)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    # The kernel signals later changes only; the daemon may have ended before this line.
    poll = select.poll()
    poll.register(lifeline_fd, 0)
    if poll.poll(0) or (is_parent and os.getppid() != daemon_pid):
        raise DaemonGoneError("the daemon ended while this worker was starting")
    if is_parent:
        _die_with_parent(False)


def _die_with_parent(on: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if on else 0, 0, 0, 0)
