"""The service manager's protocols in plain Python: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).

Without a service manager, nothing is sent and no sockets are inherited. The daemon reports READY once it answers: its
sockets are open, and the journal was read. It does not wait for a worker, since a model that loads for minutes, or not
at all, is no reason to restart the daemon; STATUS has the number of ready workers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping

from ..core.api.lifecycle import Summary

#: The first inherited descriptor (sd_listen_fds(3)).
_FIRST_FD = 3
#: The least seconds between two STATUS lines.
_STATUS_S = 1.0
#: How often the watchdog is fed within its limit, so that one late turn of the loop does not end the daemon.
_FEEDS = 3
#: A start or a stop asks for this many more seconds, this often.
_EXTENSION_S, _EXTEND_S = 20.0, 5.0
_EXTENSION = f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1e6:.0f}"
#: The most datagrams that wait for a slow manager; the oldest are dropped.
_MAX_WAITING = 64


class ServiceManager:
    """Owns the socket that ``NOTIFY_SOCKET`` names, and the last status sent there. Never blocks.

    ``turn`` belongs into every turn of the loop.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        #: Why nothing could be sent last, for the log; ``""`` where it could, or where there is no service manager.
        self.problem = ""
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        if self._address and self._address[0] not in "/@":
            self.problem = f"NOTIFY_SOCKET={self._address!r} is neither a path nor an abstract socket: nothing is sent"
        elif self._address:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
            if self._address[0] == "@":  # stands for the zero byte of an abstract socket's name
                self._address = f"\0{self._address[1:]}"
        self._watchdog_s = _watchdog_s(environment)
        self._status = ""
        #: Whether the loop has turned since STATUS was sent.
        self._status_is_old = True
        self._ready = False
        self._stopping = False
        self._reloads = 0
        self._next_status = self._next_feed = self._next_extension = clock()

    @property
    def wanted(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    @property
    def watches(self) -> bool:
        """Whether it restarts a daemon that does not feed its watchdog."""
        return self.wanted and self._watchdog_s is not None

    def starting(self, what: str) -> None:
        """Report progress of the start, and ask for more time."""
        self._send(f"STATUS=Starting: {what}", _EXTENSION)

    def reloading(self) -> None:
        """Report that the configuration is being read again."""
        self._reloads += 1
        if self._ready:
            # The time lets the manager tell this reload from a later one (Type=notify-reload).
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def reloaded(self) -> None:
        """Report that the configuration was applied or refused."""
        self._reloads -= 1
        if self._ready and not self._reloads and not self._stopping:
            self._send("READY=1")

    def next_due(self) -> float | None:
        """When ``turn`` has work to do, unless something happens before."""
        if not self.wanted:
            return None
        due = [self._next_status] if self._status_is_old else []
        due += [self._next_feed] if self.watches else []
        due += [self._next_extension] if self._stopping else []
        return min(due, default=None)

    def turn(self, summary: Callable[[], Summary], stopping: bool, well: Callable[[], bool]) -> None:
        """Send the notifications that are due.

        Args:
            well: whether the daemon works; called when the watchdog is to be fed.
        """
        if not self.wanted:
            return
        self._flush()
        now = self._clock()
        if not self._ready:
            self._ready = True
            self._send_status(summary(), now, "READY=1")
        if stopping and not self._stopping:
            self._stopping = True
            self._send_status(summary(), now, "STOPPING=1", _EXTENSION)
            self._next_extension = now + _EXTEND_S
        if self._stopping and now >= self._next_extension:
            # As long as the loop turns: the daemon itself limits how long accepted jobs may take.
            self._send(_EXTENSION)
            self._next_extension = now + _EXTEND_S
        if self._watchdog_s is not None and now >= self._next_feed:
            self._next_feed = now + self._watchdog_s / _FEEDS
            if well():
                self._send("WATCHDOG=1")
        if now >= self._next_status:
            self._send_status(summary(), now)
        else:
            self._status_is_old = True

    def stood_still(self) -> None:
        """The loop runs again after a standstill, in which the watchdog was not fed."""
        if self.watches:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        """Send these assignments in one datagram."""
        if self._socket is not None:
            self._waiting.append("\n".join(lines).encode())
            self._flush()

    def _flush(self) -> None:
        while self._waiting and self._socket is not None:
            try:
                self._socket.sendto(self._waiting[0], self._address)
                self.problem = ""
            except BlockingIOError:
                return
            except OSError as error:
                # The manager is being replaced, or does not listen; the daemon works without it.
                self.problem = f"NOTIFY_SOCKET: {error.strerror}"
            self._waiting.popleft()

    def _send_status(self, summary: Summary, now: float, *lines: str) -> None:
        words = summary.in_words()
        words = words[:1].upper() + words[1:]
        if words != self._status:
            self._status = words
            lines += (f"STATUS={words}",)
        if lines:
            self._send(*lines)
        self._next_status = now + _STATUS_S
        self._status_is_old = False


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The watchdog's limit in seconds; None where this process has none."""
    with contextlib.suppress(ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return (int(environment["WATCHDOG_USEC"]) / 1e6 or None) if "WATCHDOG_USEC" in environment else None
    return None


def inherited(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The sockets that the service manager has opened for this process, by name (``FileDescriptorName``)."""
    with contextlib.suppress(ValueError):
        # A child process has the same environment, but not the pid.
        if int(environment.get("LISTEN_PID", "")) == os.getpid():
            names = environment.get("LISTEN_FDNAMES", "").split(":")
            descriptors = range(_FIRST_FD, _FIRST_FD + int(environment.get("LISTEN_FDS", "")))
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            return {names[i] if i < len(names) else "": fd for i, fd in enumerate(descriptors)}
    return {}
