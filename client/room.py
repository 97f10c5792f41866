"""ZeroMQ aborts its process where it gets no descriptor or no thread. A program that runs short of them must not end
because it makes a client, so this asks first."""

from __future__ import annotations

import os
import resource
import threading

from .errors import GlmttsError

#: Pipes, of two descriptors each: a connection takes about ten.
_PIPES = 6
#: ZeroMQ's own threads for each connection.
_THREADS = 2


def check_room() -> None:
    """Check that there are descriptors and threads for a connection. Raises GlmttsError."""
    opened: list[int] = []
    try:
        for _ in range(_PIPES):
            opened += os.pipe()
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise GlmttsError(
            f"No connection can be made: {error.strerror}. It takes {2 * _PIPES} descriptors, and this process may "
            f"have {limit} in all: close files that it has left open, or raise the limit (ulimit -n)."
        ) from None
    finally:
        for fd in opened:
            os.close(fd)
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(_THREADS):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        raise GlmttsError(
            f"No connection can be made: it takes {_THREADS} threads, and this process can make no more. Raise the "
            "limit of processes (ulimit -u, TasksMax=) or of memory (ulimit -v), or end some."
        ) from None
    finally:
        done.set()
        for thread in started:
            thread.join()
