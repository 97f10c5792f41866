"""systemd's protocols: sockets that it holds (sd_listen_fds(3)), readiness and the watchdog (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

#: How often the watchdog is fed within its limit.
_FEEDS = 3


def inherited() -> list[socket.socket]:
    """The sockets that systemd hands over; none without it."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    return [socket.socket(fileno=3 + number) for number in range(int(os.environ.get("LISTEN_FDS", "0")))]


def notify(*lines: str) -> None:
    """Send these assignments; nothing without a service manager."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # "@" stands for the zero byte of an abstract socket's name.
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as to:
        to.sendto("\n".join(lines).encode(), address)


def feed_s() -> float | None:
    """Every how many seconds the watchdog is to be fed; None where there is none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = os.environ.get("WATCHDOG_USEC", "")
    return int(limit) / 1e6 / _FEEDS if limit.isdigit() and int(limit) else None
