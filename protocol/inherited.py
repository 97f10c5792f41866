"""A process inherits streams and signals from the one that starts it. Programs of this package begin by putting right
those that they can't work with, whatever started them: cron, ssh, an init script, a Java program."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
from typing import TextIO


def put_right() -> None:
    """Open /dev/null as each standard stream that is closed, and deliver all signals. Call it first in ``main``."""
    _open_standard_streams()
    # A parent that blocks SIGTERM in the thread that starts this process makes it deaf to every stop.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # The kernel would reap the children, and their exit statuses would be lost.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as possible, for a program with many connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_standard_streams() -> None:
    # Otherwise the next file that is opened gets the number, a lock or a database, and what is printed goes there.
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    # Python has None for a stream that was closed at its start, and some libraries can't work with that.
    sys.stdin = sys.stdin or _stream(0)
    sys.stdout = sys.stdout or _stream(1)
    sys.stderr = sys.stderr or _stream(2)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale of another language


def _stream(fd: int) -> TextIO:
    return open(fd, "r" if fd == 0 else "w", encoding="utf-8", errors="backslashreplace", closefd=False)
