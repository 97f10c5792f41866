"""A worker dies with its daemon, however the daemon dies and whatever the worker is doing.

The daemon holds the only write end of a pipe and gives each worker the read end. The worker asks the kernel to send
SIGKILL to its process group when that pipe changes (``F_SETOWN``, ``F_SETSIG``, ``O_ASYNC``; fcntl(2)): when the last
write end closes, because the daemon ended in any way, the kernel itself does the killing. No thread is needed, nor the
interpreter lock, so it also ends a worker that is stuck in C, and the children that the worker has started. Those that
have left its group are the guardian's (guardian.py).

``PR_SET_PDEATHSIG`` bridges the time until that is arranged, and no longer: it kills the worker alone, and can do so
before the daemon's last thread has closed the pipe. With the worker goes the only one that listens to the pipe, and its
children would live on. It is bound to the *thread* that started the worker, which therefore must live as long as the
daemon (its main thread). Nothing may ever be written to the pipe.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal

_PR_SET_PDEATHSIG = 1


class DaemonGoneError(Exception):
    """The daemon ended before the worker's life was tied to it."""


def tie(lifeline_fd: int | None, daemon_pid: int) -> None:
    """Tie this process, and its process group if it leads one, to the life of the daemon.

    ``lifeline_fd`` is the read end of the daemon's pipe. Without one only the parent's death is watched. Raises
    DaemonGoneError when there is no daemon any more.
    """
    # An interpreter that is a wrapper script stands between the two; then its end is none of our business.
    is_parent = os.getppid() == daemon_pid
    if is_parent:
        _die_with_parent(True)
    if lifeline_fd is None:
        if os.getppid() != daemon_pid:
            raise DaemonGoneError(f"process {daemon_pid}, which is to be the parent of this worker, is not")
        return
    os.set_inheritable(lifeline_fd, False)
    # In a terminal's process group (a worker started by hand) the worker alone is ours to kill.
    owner = -os.getpgrp() if os.getpgrp() == os.getpid() else os.getpid()
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, owner)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    # The kernel tells of changes alone: what has happened before this line has to be looked for.
    poll = select.poll()
    poll.register(lifeline_fd, 0)
    if poll.poll(0) or (is_parent and os.getppid() != daemon_pid):
        raise DaemonGoneError("the daemon ended while this worker was starting")
    if is_parent:
        _die_with_parent(False)


def _die_with_parent(on: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if on else 0, 0, 0, 0)
