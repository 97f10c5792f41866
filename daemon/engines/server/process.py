"""The server as a child of the worker: its port, its output in the daemon's log, its end.

It stays in the worker's session and process group, so it ends with the worker, however that ends (worker/lifeline.py,
processes/guardian.py).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from glmtts.protocol.system_words import error_in_words, exit_in_words

from .rules import PORT, port_of

#: How long the server may take to end after SIGTERM. The daemon kills both after workers.stop_timeout_s.
_END_S = 4.0
#: Most bytes of a line of its output, and most lines that an error quotes.
_LINE, _LAST_LINES = 2_000, 3
_READ = 64 << 10
#: Priorities of worker/log.py. Once it gets texts of clients, its output may quote them.
_INFO, _DEBUG = "<6>", "<7>"


class ServerError(RuntimeError):
    """The server can't be started, has ended, or serves no request any more."""

    #: For the log, which gets the messages of such errors alone.
    quotes_nothing = True


class PortTakenError(ServerError):
    """Another program has the server's port."""


def free_port() -> int:
    """A port of loopback that no other program has now. The server's own program may still come too late for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim(port: int) -> socket.socket:
    """Claim a port among the workers of this machine, until the socket is closed. Raises PortTakenError.

    Two that start at once would otherwise find the same one free, and one would speak through the other's server.
    """
    claimed = socket.socket(socket.AF_UNIX)
    try:
        # An abstract name: it is as far-reaching as a port, and ends with the process.
        claimed.bind(f"\0glmtts-server-{port}")
    except OSError as error:
        claimed.close()
        raise PortTakenError(f"another worker's server has port {port}") from error
    return claimed


def is_taken(port: int) -> bool:
    """Whether a server could not listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def with_port(words: str, port: int) -> str:
    """``words`` with the port in its place."""
    return words.replace(PORT, str(port))


class ServerProcess:
    """Owns the child. ``ended`` is set once it is gone; ``on_end`` is then called, from another thread."""

    def __init__(self, command: list[str], url: str, on_end: Callable[[], None]) -> None:
        """Start it. Raises ServerError if it can't be started, PortTakenError if another program listens there."""
        refuse_stranger(url)
        self._port = port_of(url)
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd="/",
            )
        except (OSError, ValueError) as error:
            words = error_in_words(error, starting=True) if isinstance(error, OSError) else str(error)
            raise ServerError(f"engine.server.command: {command[0]} can't be started: {words}") from None
        self.ended = threading.Event()
        self._on_end = on_end
        self._level = _INFO
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name="server-end", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def hush(self) -> None:
        """From now on it gets texts of clients: log its output at debug level, and quote it no more."""
        self._level = _DEBUG
        self._last.clear()

    def how_it_ended(self) -> ServerError:
        """The error for its end, with its last lines from before the first text."""
        words = f"the server ended: {exit_in_words(self._popen.wait())}"
        # The lines may still be in the pipe. A process that it left behind can hold the pipe open.
        self._reader.join(0.5)
        if self._level == _INFO and self._last:
            words += f"; it printed last: {' | '.join(self._last)}"
        if self._level == _INFO and is_taken(self._port):
            return PortTakenError(
                f"{words}; port {self._port} is taken, by another program or by a process that it left"
            )
        return ServerError(words)

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL after some seconds."""
        self._popen.terminate()
        if not self.ended.wait(_END_S):
            self._popen.kill()
        self._reader.join(0.5)

    def _wait(self) -> None:
        self._popen.wait()
        self.ended.set()
        self._on_end()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            rest = b""
            while chunk := os.read(output.fileno(), _READ):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LINE:
                    # A line without an end.
                    lines, rest = [*lines, rest], b""
                self._say(lines)
            self._say([rest])

    def _say(self, lines: list[bytes]) -> None:
        """Print lines with a priority of ours, because the daemon believes a priority that a worker prints."""
        # Of a progress bar that redraws itself with carriage returns, the last drawing is the line.
        words = [line.rstrip(b"\r").rpartition(b"\r")[2][:_LINE].decode(errors="replace").rstrip() for line in lines]
        words = [one for one in words if one]
        if self._level == _INFO:
            self._last.extend(" ".join(one.split())[:300] for one in words[-_LAST_LINES:])
        with contextlib.suppress(OSError, ValueError):
            # Not stderr, where the worker's own lines go: the daemon limits the rate of each.
            sys.stdout.write("".join(f"{self._level}server: {one}\n" for one in words))
            sys.stdout.flush()


def refuse_stranger(url: str) -> None:
    """Raise PortTakenError if a program listens at ``url`` already: jobs would be spoken by it, not by the child."""
    where = urlsplit(url)
    with contextlib.suppress(OSError), socket.create_connection((where.hostname or "", port_of(url)), 1.0):
        raise PortTakenError(
            f"engine.server.url: another program listens at port {port_of(url)} already; end it, or write {PORT} for "
            "the port in url and command, which then stands for a free one"
        )


def _environment() -> dict[str, str]:
    # gpu_worker.py sets it for itself, and a server may compute with that library.
    return {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
