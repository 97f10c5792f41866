"""What a service manager is told, and what it hands over: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3) in
plain Python. Where no service manager asks for it, nothing is said and nothing is handed over.

The daemon is ready when it answers: its sockets are open, and what an earlier daemon left has been taken up. It does
not wait for a worker: jobs are accepted and wait from that moment on, what depends on the service can start, and a
model that takes minutes, or that can't be loaded at all, is nothing that a service manager could mend by starting this
process again; the core has its own patience with workers. STATUS says how many of them are ready.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping

from ..core.api.lifecycle import Summary

#: The first descriptor that is handed over (sd_listen_fds(3)).
_FIRST_FD = 3
#: STATUS is told as often as that at most, in seconds.
_STATUS_S = 1.0
#: The watchdog is fed that many times in its time: one late turn of the loop is no reason to end the daemon.
_FEEDS = 3
#: A start or an end may take so many seconds longer from each time that it is asked for, and is asked for so often.
_EXTENSION_S, _EXTEND_S = 20.0, 5.0


class Notifications:
    """Datagrams to the socket that ``NOTIFY_SOCKET`` names. Never waits: what the manager can't take now is kept."""

    #: What is kept at most; the oldest goes first.
    _MAX_KEPT = 64

    def __init__(self, address: str) -> None:
        self._kept: deque[bytes] = deque(maxlen=self._MAX_KEPT)
        self._socket: socket.socket | None = None
        #: Why nothing can be told, for the log.
        self.problem = ""
        if not address:
            return
        if address[0] not in "/@":
            self.problem = f"NOTIFY_SOCKET={address!r} is neither a path nor an abstract socket: nothing is told"
            return
        # A leading @ stands for the zero byte of an abstract socket's name.
        self._address = f"\0{address[1:]}" if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @property
    def wanted(self) -> bool:
        """Whether there is somebody to tell."""
        return self._socket is not None

    def tell(self, *lines: str) -> None:
        """Send these assignments together."""
        if self._socket is not None:
            self._kept.append("\n".join(lines).encode())
            self.flush()

    def flush(self) -> None:
        """Send what was kept."""
        while self._kept and self._socket is not None:
            try:
                self._socket.sendto(self._kept[0], self._address)
            except BlockingIOError:
                return
            except OSError as error:
                # The manager is being replaced, or is none: it tells nobody anything, and the daemon goes on.
                self.problem = f"NOTIFY_SOCKET: {error.strerror}"
            self._kept.popleft()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class ServiceManager:
    """The daemon's side of the talk with its service manager; ``turn`` belongs into every turn of the loop."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._notifications = Notifications(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment)
        self._status = ""
        #: Whether something has happened since STATUS was told.
        self._status_is_old = True
        self._ready = False
        self._stopping = False
        self._reloads = 0
        self._next_status = self._next_feed = self._next_extension = clock()

    @property
    def wanted(self) -> bool:
        """Whether there is a service manager that wants to hear of the daemon."""
        return self._notifications.wanted

    @property
    def watches(self) -> bool:
        """Whether it ends a daemon that it does not hear of in time."""
        return self.wanted and self._watchdog_s is not None

    @property
    def problem(self) -> str:
        """Why it can't be told anything, for the log; empty where it can, or where there is none."""
        return self._notifications.problem

    def starting(self, what: str) -> None:
        """The start is at ``what``, and goes on: it is not to be taken for hung."""
        self._notifications.tell(f"STATUS=Starting: {what}", _extension())

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._reloads += 1
        if self._ready:
            # The time lets the manager tell this reload from one that it asked for later (Type=notify-reload).
            self._notifications.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def reloaded(self) -> None:
        """It has been read, and was applied or refused."""
        self._reloads -= 1
        if self._ready and not self._reloads and not self._stopping:
            self._notifications.tell("READY=1")

    def next_due(self) -> float | None:
        """When ``turn`` has something to do, if nothing else happens before."""
        if not self.wanted:
            return None
        due = [self._next_status] if self._status_is_old else []
        due += [self._next_feed] if self.watches else []
        due += [self._next_extension] if self._stopping else []
        return min(due, default=None)

    def turn(self, summary: Callable[[], Summary], stopping: bool, well: Callable[[], bool]) -> None:
        """The loop has turned. ``well``: whether the rest of the daemon works, asked when the watchdog is due."""
        if not self.wanted:
            return
        self._notifications.flush()
        now = self._clock()
        if not self._ready:
            self._ready = True
            self._tell_status(summary(), now, "READY=1")
        if stopping and not self._stopping:
            self._stopping = True
            self._tell_status(summary(), now, "STOPPING=1", _extension())
            self._next_extension = now + _EXTEND_S
        if self._stopping and now >= self._next_extension:
            # For as long as the loop turns: how long accepted jobs may take, the daemon's own limit says.
            self._notifications.tell(_extension())
            self._next_extension = now + _EXTEND_S
        if self._watchdog_s is not None and now >= self._next_feed:
            self._next_feed = now + self._watchdog_s / _FEEDS
            if well():
                self._notifications.tell("WATCHDOG=1")
        if now >= self._next_status:
            self._tell_status(summary(), now)
        else:
            self._status_is_old = True

    def _tell_status(self, summary: Summary, now: float, *lines: str) -> None:
        words = summary.in_words()
        words = words[:1].upper() + words[1:]
        if words != self._status:
            self._status = words
            lines += (f"STATUS={words}",)
        if lines:
            self._notifications.tell(*lines)
        self._next_status = now + _STATUS_S
        self._status_is_old = False

    def close(self) -> None:
        """The daemon ends."""
        self._notifications.close()


def _extension() -> str:
    return f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1e6:.0f}"


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """How long the service manager waits for a sign of life; None where it does not."""
    with contextlib.suppress(ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return (int(environment["WATCHDOG_USEC"]) / 1e6 or None) if "WATCHDOG_USEC" in environment else None
    return None


def inherited(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The sockets that were handed to this process, by name (``FileDescriptorName``)."""
    with contextlib.suppress(ValueError):
        # A child of the one that they are meant for has the same environment.
        if int(environment.get("LISTEN_PID", "")) == os.getpid():
            names = environment.get("LISTEN_FDNAMES", "").split(":")
            count = int(environment.get("LISTEN_FDS", ""))
            descriptors = range(_FIRST_FD, _FIRST_FD + count)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            return {names[i] if i < len(names) else "": fd for i, fd in enumerate(descriptors)}
    return {}
