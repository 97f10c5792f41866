"""Settings of the daemon's own process, made before it starts others, and the limits below which it does not start."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading

from . import guardian

#: Descriptors of the daemon itself: its sockets and files, four for each of 16 workers, those of one that is being
#: started, of voices and results that are being stored, and operators' connections.
_OWN = 192

#: Descriptors that stay free for each requests socket at the least. ZeroMQ accepts in a thread of its own, faster than
#: the loop can turn a burst away, and aborts the process when it has no descriptor for the next connection.
_BURST = 256

#: Connections that may wait to be accepted where descriptors are plenty.
_BACKLOG = 4_096

#: The threads of a daemon: ZeroMQ's, the log, the journal, the sampler, metrics, background work; and one to spare.
_THREADS = 12

_MANY = 1 << 20


class UnfitError(Exception):
    """The daemon can't run under the limits of this process; the message says which, and what to do."""


def signals_to_hear() -> tuple[signal.Signals, ...]:
    """The signals that mean something to the daemon; the terminal that it may write its log to can't stop it."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    heard = (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    # A shell script that starts the daemon in the background (&) has it ignore Ctrl-C.
    return heard if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else (*heard, signal.SIGINT)


def keep_files_private() -> None:
    """Let no other user write the daemon's files, and let itself read them, whatever umask it was started with."""
    os.umask((os.umask(0o022) | 0o002) & ~0o700)


def possible_connections(sockets: int) -> int:
    """The connections that each requests socket can have: half of the descriptors stay free for bursts."""
    return (_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - _OWN) // (2 * sockets)


def backlog() -> int:
    """Connections that may wait to be accepted: after a pause of the process, ZeroMQ accepts them all at once."""
    return min(_BACKLOG, possible_connections(2))


def descriptors_needed(sockets: int) -> int:
    """The limit of open files below which the daemon does not start, with ``sockets`` requests sockets."""
    return len(os.listdir("/proc/self/fd")) - 1 + _OWN + _BURST * sockets  # noqa: PTH208


def check_limits(sockets: int) -> None:
    """Check that the daemon can work, and that no client can end it. Raises UnfitError."""
    if guardian.stat(os.getpid()) is None:
        raise UnfitError("/proc is not mounted, or hides this process: the daemon finds its processes there. Mount it.")
    hard, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[1], descriptors_needed(sockets)
    if _limit(hard) < needed:
        raise UnfitError(
            f"this process may open {hard} files at most, and the daemon needs {needed}: with fewer, a burst of "
            "connections ends it. Raise the limit: LimitNOFILE= in the unit, --ulimit nofile= of a container, or "
            "ulimit -Hn."
        )
    _check_threads()


def _limit(value: int) -> int:
    return _MANY if value == resource.RLIM_INFINITY else value


def _check_threads() -> None:
    """ZeroMQ aborts the process when it can't make a thread, so Python tries first."""
    done = threading.Event()
    tried: list[threading.Thread] = []
    try:
        for _ in range(_THREADS):
            tried.append(threading.Thread(target=done.wait, daemon=True))
            tried[-1].start()
    except (RuntimeError, MemoryError):
        tried.pop()
        raise UnfitError(
            f"only {len(tried)} threads could be made, and the daemon needs {_THREADS}, and then processes for its "
            "workers. Raise the limit of processes of this user (ulimit -u, LimitNPROC=), of the control group "
            "(TasksMax=, --pids-limit), or of address space (ulimit -v), or end other processes."
        ) from None
    finally:
        done.set()
        for thread in tried:
            thread.join()


def be_first_process() -> None:
    """Set up what an init process would: this is the first process of a container."""
    # The kernel drops signals without a handler here, and the daemon would start in spite of a stop.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # A session of its own tells the daemon's descendants from other orphans.
    with contextlib.suppress(PermissionError):
        os.setsid()
