"""One client connection: its identity, the messages that wait for it, and the bytes that it has not taken yet."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from typing import NamedTuple

import zmq

from .peers import Peer

#: ``tcpi_bytes_acked`` of struct tcp_info (linux/tcp.h, since Linux 4.2).
_ACKED_OFFSET = 120
_TCP_INFO_BYTES = _ACKED_OFFSET + 8


class InFlight(NamedTuple):
    """A body that ZeroMQ holds. ``size`` includes the smaller messages sent before it; 0: they don't count.

    ``until``: for an encrypted connection, the count of acknowledged bytes from which ZeroMQ's copy is gone.
    """

    tracker: zmq.MessageTracker
    size: int
    until: int


class Waiting(NamedTuple):
    """A message in an outbox. ``parked``: a large result that waits until there is room for it in ZeroMQ."""

    frames: list[bytes | memoryview]
    size: int
    parked: bool = False


class Connection:
    """A connection of one client process. ``number`` is never used again; ``peer`` says whose it is."""

    __slots__ = (
        "fd",
        "gone",
        "in_flight",
        "in_flight_bytes",
        "looked_at",
        "moved_at",
        "number",
        "outbox",
        "outbox_bytes",
        "parked_bytes",
        "peer",
        "routing_id",
        "sample",
        "unanswered",
        "uncounted",
        "unread",
        "used",
    )

    def __init__(self, number: int, routing_id: bytes, fd: int, peer: Peer) -> None:
        self.number = number
        self.routing_id = routing_id
        self.fd = fd
        self.peer = peer
        self.gone = False
        #: Whether the daemon ended it because of what it left unread.
        self.unread = False
        #: Whether a further message has come since its use was last looked at.
        self.used = False
        #: Requests whose last event was not sent yet.
        self.unanswered = 0
        #: Messages that ZeroMQ did not take yet. Those that wait for their turn count apart.
        self.outbox: deque[Waiting] = deque()
        self.outbox_bytes = self.parked_bytes = 0
        #: Bodies that ZeroMQ holds.
        self.in_flight: deque[InFlight] = deque()
        self.in_flight_bytes = 0
        #: The last look at whether the client reads: the figure, its time, and when the figure last changed.
        self.sample = -1
        self.looked_at = self.moved_at = 0.0
        #: Bytes sent since the last entry of ``in_flight``.
        self.uncounted = 0

    @property
    def unsent_bytes(self) -> int:
        """Counted bytes that the client has not taken: in the outbox and in ZeroMQ."""
        return self.outbox_bytes + self.in_flight_bytes

    @property
    def idle(self) -> bool:
        """Whether no request is under way, and all answers have been taken."""
        return self.unanswered <= 0 and not self.outbox and all(body.tracker.done for body in self.in_flight)

    def hold(self, tracker: zmq.MessageTracker, *, encrypted: bool, apart: bool = False) -> InFlight:
        """Keep a large body that ZeroMQ has taken, and count it and the small messages before it unless ``apart``."""
        size, until = self.uncounted, 0
        if encrypted:
            until = size + (self.in_flight[-1].until if self.in_flight else max(0, acknowledged_bytes(self.fd)))
        entry = InFlight(tracker, 0 if apart else size, until)
        self.in_flight.append(entry)
        self.in_flight_bytes += entry.size
        self.uncounted = 0
        return entry

    def release_sent(self, *, encrypted: bool) -> int:
        """Drop the bodies that ZeroMQ is done with; returns their bytes."""
        if not self.in_flight:
            return 0
        acked = acknowledged_bytes(self.fd) if encrypted else 0
        released = 0
        while self.in_flight and self.in_flight[0].tracker.done and acked >= self.in_flight[0].until:
            released += self.in_flight.popleft().size
        self.in_flight_bytes -= released
        return released

    def clear(self) -> None:
        """Drop everything that waits for the connection."""
        self.outbox.clear()
        self.in_flight.clear()
        self.outbox_bytes = self.parked_bytes = self.in_flight_bytes = 0


def acknowledged_bytes(fd: int) -> int:
    """Bytes of a TCP connection's whole life that the other host has acknowledged; -1 where ``fd`` is none."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return -1
    return int(struct.unpack_from("=Q", info, _ACKED_OFFSET)[0]) if len(info) >= _TCP_INFO_BYTES else -1


def progress(fd: int, *, encrypted: bool) -> int:
    """A figure that changes while the peer reads: bytes acknowledged by TCP, or bytes that it has yet to read."""
    if (acked := acknowledged_bytes(fd)) >= 0 or encrypted:
        return acked
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except OSError:
        return -1


def shut_down(fd: int) -> None:
    """End a connection below ZeroMQ, which notices and closes the descriptor. A ROUTER can't drop a single peer."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
