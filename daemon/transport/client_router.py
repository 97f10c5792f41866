"""A ROUTER socket with clients on it: who they are, what they sent, and sending to them without ever waiting for one.

A client is known by what the kernel says of its connection, or by its key. The ZeroMQ identity, which a client may
choose, only routes; a connection ends when ZeroMQ says so, and what was meant for it is never sent to a later one that
calls itself the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import zmq

from glmtts.protocol import codec, events
from glmtts.protocol.errors import ErrorCode

from ..core.machine import TOO_SLOW
from .listeners import LOCAL_THREAD
from .peers import Identify, Peer
from .tcp_acks import acknowledged

#: Bodies from this size on are handed to ZeroMQ without a copy, and counted until it is done with them.
_LARGE = 64 * 1024
#: Smaller messages are counted in groups of this size: counting each would cost more than sending it.
_GROUP = 256 * 1024
#: Frames of one message that are looked at; one with more is refused for having them.
_MAX_FRAMES = 6
#: Frames of one message that are read and left in one go: a mistake has fewer, a flood may have millions.
_FRAMES_OF_A_MISTAKE = 1_000
_SKIPPED_AT_ONCE = 4_000
#: What a queued message costs beside its bytes, about.
_OVERHEAD = 300

#: A zmq_socket_monitor event: its number and a value (zmq_socket_monitor(3)). pyzmq's own parser would load asyncio,
#: and everybody who waits for a daemon to start would wait for that.
_MONITOR_FRAME = struct.Struct("=hi")
_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class InFlight(NamedTuple):
    """A body that ZeroMQ holds, with its size and that of the smaller ones before it.

    ``until``: where ZeroMQ holds a copy, how much the other host has acknowledged when it holds that no more.
    """

    tracker: zmq.MessageTracker
    size: int
    until: int


class Connection:
    """One connection of one client process. ``number`` is never used again; ``peer`` is who it is."""

    __slots__ = (
        "fd",
        "gone",
        "in_flight",
        "in_flight_bytes",
        "number",
        "outbox",
        "outbox_bytes",
        "peer",
        "routing_id",
        "uncounted",
        "unread",
    )

    def __init__(self, number: int, routing_id: bytes, fd: int, peer: Peer) -> None:
        self.number = number
        self.routing_id = routing_id
        self.fd = fd
        self.peer = peer
        self.gone = False
        #: Whether we ended it because of what it left unread.
        self.unread = False
        #: Messages that ZeroMQ did not take yet.
        self.outbox: deque[tuple[list[bytes | memoryview], int]] = deque()
        self.outbox_bytes = 0
        #: Bodies that ZeroMQ holds.
        self.in_flight: deque[InFlight] = deque()
        self.in_flight_bytes = 0
        #: Bytes that were sent since the last one in ``in_flight``.
        self.uncounted = 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the client has not taken, as far as they were counted: here and in ZeroMQ."""
        return self.outbox_bytes + self.in_flight_bytes


class Received(NamedTuple):
    """A message: from whom, the frames to mirror in the answer, and the frames after them."""

    connection: Connection
    envelope: tuple[bytes, ...]
    frames: list[bytes | memoryview]


class ClientRouter:
    """One of the requests sockets, or the control socket. Used from the loop's thread alone."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listener: int,
        endpoint: str,
        *,
        identify: Identify,
        first_number: int,
        body_bytes: int,
        send_buffer_bytes: int,
        max_connections: int,
        options: Sequence[tuple[int, int | bytes]] = (),
        encrypts: bool = False,
    ) -> None:
        """Serve the listening descriptor ``listener``, which is closed with the router. ``options``: more of ZeroMQ's.

        ``encrypts``: ZeroMQ makes a copy of each message, which it keeps until the last byte is sent, and of which it
        says nothing.

        ``max_connections`` and ``send_buffer_bytes`` are this socket's own: those on another one can't use them up.
        """
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.USE_FD, listener),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            # A frame above the limit is answered, one far above it ends the connection before it fills the memory.
            (zmq.MAXMSGSIZE, 2 * body_bytes),
            (zmq.RCVHWM, 16),
            # Enough to keep a reading client busy; what waits here and not in ZeroMQ can still be taken back.
            (zmq.SNDHWM, 64),
            # A connection that does not speak ZMTP is not kept for long: descriptors are finite.
            (zmq.HANDSHAKE_IVL, 5_000),
            # One of ZeroMQ's threads, and not any: so a connection is always known to be there before it speaks.
            (zmq.AFFINITY, LOCAL_THREAD),
            *options,
        ):
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(_MONITORED)
        self.socket.bind(endpoint)
        self._identify = identify
        self.first_number = self._next_number = first_number
        self._send_buffer_bytes = send_buffer_bytes
        #: What one client may leave unread: others are to have room beside it.
        self._share_bytes = send_buffer_bytes // 2
        self._max_connections = max_connections
        self._encrypts = encrypts
        #: What ZeroMQ holds, and the parts of it that are of connections which it has yet to end, by descriptor.
        self._held_bytes = 0
        self._leaving: dict[int, int] = {}
        self._by_routing_id: dict[bytes, Connection] = {}
        self._by_number: dict[int, Connection] = {}
        #: Descriptors of open connections, with the connection once it has spoken.
        self._open: dict[int, Connection | None] = {}
        #: Those of them that have not spoken, the oldest first.
        self._silent: dict[int, None] = {}
        #: The sum of all connections' ``unsent_bytes``, or more: what has left meanwhile is found when it matters.
        self._unsent_bytes = 0
        self._closed: list[Connection] = []
        self._waiting: dict[int, Connection] = {}
        #: Connections that were turned away because there are too many.
        self.turned_away = 0
        #: Connections that were ended in a message of thousands of frames, and whether one is being read now.
        self.floods_ended = 0
        self._in_flood = False
        #: Streams of which parts were thrown away unread: (connection, job). Somebody has to end them.
        self.overruns: deque[tuple[int, str]] = deque()
        #: Connections that were ended because they did not read what was sent to them.
        self.unread_ended = 0
        #: Connections whose other side spoke another protocol, another mechanism, or to another key.
        self.handshakes_failed = 0

    @property
    def connections(self) -> int:
        """How many are open, those included that never spoke."""
        return len(self._open)

    # --- receiving

    def receive(self, limit: int) -> Iterator[Received]:
        """Up to ``limit`` messages that are there already."""
        receive = self.socket.recv
        state: Callable[[int], Any] = self.socket.getsockopt
        if self._in_flood and not self._skip(_SKIPPED_AT_ONCE):
            return
        for _ in range(limit):
            # Asking costs a tenth of the exception that says there is none.
            if not state(zmq.EVENTS) & zmq.POLLIN:
                return
            routing_id = receive(zmq.NOBLOCK)
            frames: list[bytes | memoryview] = []
            first = frame = receive(copy=False)
            while True:
                frames.append(frame.bytes if len(frame) < _LARGE else frame.buffer)
                if not frame.more or len(frames) > _MAX_FRAMES:
                    break
                frame = receive(copy=False)
            if frame.more and not self._skip(_FRAMES_OF_A_MISTAKE):
                self._end_flood(routing_id, first)
                return
            connection = self._by_routing_id.get(routing_id)
            try:
                fd = int(first.get(zmq.SRCFD))
            except zmq.ZMQError:
                # ZMTP 1.0, or other bytes that pass for it: nobody can tell whose they are, nor answer.
                continue
            if connection is None or connection.fd != fd:
                connection = self._new(routing_id, fd, first)
            if connection is not None:
                yield _split(connection, frames)

    def _skip(self, most: int) -> bool:
        """Take in what is left of a message, and leave it; whether that was all of it."""
        receive = self.socket.recv
        for _ in range(most):
            if not receive(copy=False).more:
                self._in_flood = False
                return True
        return False

    def _end_flood(self, routing_id: bytes, frame: zmq.Frame) -> None:
        """A message of thousands of frames: it can't be left unread, but it is read in parts, and its sender goes."""
        self._in_flood = True
        self.floods_ended += 1
        with contextlib.suppress(zmq.ZMQError):
            _shut_down(int(frame.get(zmq.SRCFD)))
        self._close(self._by_routing_id.get(routing_id))

    def _new(self, routing_id: bytes, fd: int, frame: zmq.Frame) -> Connection | None:
        """A connection speaks for the first time, or for the last time: it may be closed by now.

        None for one that may not speak any more.
        """
        # What happened to this descriptor before this connection had it has to be known first.
        self.read_monitor()
        self._close(self._by_routing_id.get(routing_id))
        peer = self._identify(frame)
        if peer is None:
            if self._open.get(fd, self) is None:
                _shut_down(fd)
            return None
        connection = Connection(self._next_number, routing_id, fd, peer)
        self._next_number += 1
        if self._open.get(fd, self) is not None:
            # Closed, or closed and the descriptor taken by another: nothing can be sent to it any more.
            connection.gone = True
            self._closed.append(connection)
            return connection
        self._open[fd] = connection
        self._silent.pop(fd, None)
        self._by_routing_id[routing_id] = connection
        self._by_number[connection.number] = connection
        return connection

    def read_monitor(self) -> None:
        """Learn of connections that opened and closed."""
        while True:
            try:
                frames = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, fd = _MONITOR_FRAME.unpack(frames[0])
            if event == zmq.EVENT_ACCEPTED:
                self._open[fd] = self._silent[fd] = None
                if len(self._open) > self._max_connections:
                    self._turn_away()
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self.handshakes_failed += 1
            else:
                self._silent.pop(fd, None)
                self._close(self._open.pop(fd, None))
                self._held_bytes -= self._leaving.pop(fd, 0)

    def _turn_away(self) -> None:
        """Too many are connected: the one that has been silent for longest goes.

        A ZeroMQ client connects itself again, and does not lose what it had not said.
        """
        fd = next(iter(self._silent))
        del self._silent[fd]
        self.turned_away += 1
        _shut_down(fd)

    def _close(self, connection: Connection | None) -> None:
        if connection is None or connection.gone:
            return
        connection.gone = True
        self._unsent_bytes -= connection.unsent_bytes
        if connection.fd in self._open:
            self._leaving[connection.fd] = self._leaving.get(connection.fd, 0) + connection.in_flight_bytes
        else:
            self._held_bytes -= connection.in_flight_bytes
        connection.outbox.clear()
        connection.in_flight.clear()
        connection.outbox_bytes = connection.in_flight_bytes = 0
        self._by_number.pop(connection.number, None)
        self._waiting.pop(connection.number, None)
        if self._by_routing_id.get(connection.routing_id) is connection:
            del self._by_routing_id[connection.routing_id]
        if self._open.get(connection.fd) is connection:
            self._open[connection.fd] = None
        self._closed.append(connection)

    def review(self, again: Callable[[Peer], Peer | None]) -> list[Connection]:
        """Ask anew who everybody is, and end the connections of those who may not connect any more; returns these.

        So are those that have not spoken yet: nobody knows their keys. A ZeroMQ client connects itself again, and is
        then told.
        """
        ended = []
        for connection in list(self._by_number.values()):
            peer = again(connection.peer)
            if peer is None:
                _shut_down(connection.fd)
                self._close(connection)
                ended.append(connection)
            else:
                connection.peer = peer
        for fd in self._silent:
            _shut_down(fd)
        self._silent.clear()
        return ended

    def closed(self) -> list[Connection]:
        """Connections that have ended since the last call."""
        closed, self._closed = self._closed, []
        return closed

    # --- sending

    def send(self, number: int, envelope: tuple[bytes, ...], header: bytes, body: bytes | memoryview | None) -> bool:
        """Send, or keep until it can be sent; nothing happens for a connection that is gone.

        Returns False, and sends nothing, when the message has a body and too much that is this client's is unsent
        already: it does not read. What has no body is sent all the same, up to a second limit.
        """
        connection = self._by_number.get(number)
        if connection is None:
            return True
        if (
            body is not None
            and (
                connection.unsent_bytes + len(body) > self._share_bytes
                or self._unsent_bytes + len(body) > self._send_buffer_bytes
            )
            and not self._make_room(len(body), connection)
        ):
            return False
        frames: list[bytes | memoryview] = [*envelope, header]
        if body is not None:
            frames.append(body)
        if not connection.outbox and self._try(connection, frames):
            return True
        size = sum(map(len, frames)) + _OVERHEAD
        connection.outbox.append((frames, size))
        connection.outbox_bytes += size
        self._unsent_bytes += size
        self._waiting[number] = connection
        if self._unsent_bytes > 2 * self._send_buffer_bytes:
            self._make_room(-self._send_buffer_bytes, None)
        return True

    def _make_room(self, size: int, sender: Connection | None) -> bool:
        """Let go of the connections that hold the most, until ``size`` more bytes fit; False where ``sender`` is such
        a one, or has its share already.
        """
        for connection in self._by_number.values():
            self._settle(connection)
        if sender is not None and sender.unsent_bytes and sender.unsent_bytes + size > self._share_bytes:
            return False
        while self._unsent_bytes and self._unsent_bytes + size > self._send_buffer_bytes:
            greatest = max(self._by_number.values(), key=lambda connection: connection.unsent_bytes)
            if greatest is sender:
                return False
            if self._drop_outbox(greatest):
                continue
            self.unread_ended += 1
            greatest.unread = True
            _shut_down(greatest.fd)
            self._close(greatest)
        return True

    def _drop_outbox(self, connection: Connection) -> bool:
        """Throw away the bodies that wait for a connection; whether there were any.

        Their jobs end in ``slow_consumer`` for it: those whose end waits here too by the error that takes its place,
        the others by whoever reads ``overruns``.
        """
        kept: deque[tuple[list[bytes | memoryview], int]] = deque()
        jobs: dict[str, None] = {}
        for frames, size in connection.outbox:
            header = next(i for i, frame in enumerate(frames) if frame)
            event = codec.decode_event(frames[header])
            job = getattr(event, "job", "")
            if len(frames) == header + 1 and (job not in jobs or not event or not event.final):
                kept.append((frames, size))
                continue
            jobs[job] = None
            if isinstance(event, events.Done):
                error = events.Error.of(event.id, ErrorCode.SLOW_CONSUMER, TOO_SLOW, job=job)
                kept.append(([*frames[:header], codec.encode(error)], _OVERHEAD))
                del jobs[job]
        dropped = connection.outbox_bytes - sum(size for _, size in kept)
        connection.outbox = kept
        connection.outbox_bytes -= dropped
        self._unsent_bytes -= dropped
        self.overruns.extend((connection.number, job) for job in jobs)
        return dropped > 0

    def _settle(self, connection: Connection) -> None:
        """Forget what ZeroMQ has sent meanwhile."""
        if not connection.in_flight:
            return
        acked = acknowledged(connection.fd) if self._encrypts else 0
        while connection.in_flight and connection.in_flight[0].tracker.done and acked >= connection.in_flight[0].until:
            size = connection.in_flight.popleft().size
            connection.in_flight_bytes -= size
            self._unsent_bytes -= size
            self._held_bytes -= size

    def _hold(self, connection: Connection, tracker: zmq.MessageTracker) -> None:
        """ZeroMQ has a large body from now on, and the small ones before it."""
        size, until = connection.uncounted, 0
        if self._encrypts:
            before = connection.in_flight
            until = size + (before[-1].until if before else max(0, acknowledged(connection.fd)))
        connection.in_flight.append(InFlight(tracker, size, until))
        connection.in_flight_bytes += size
        self._unsent_bytes += size
        self._held_bytes += size
        connection.uncounted = 0

    def _may_encrypt(self, size: int) -> bool:
        """Whether there is memory for another copy; those of ended connections take theirs until ZeroMQ has ended them.

        Alone, a message of any size may go.
        """
        if self._held_bytes and self._held_bytes + size > self._send_buffer_bytes:
            self.read_monitor()
        return not self._held_bytes or self._held_bytes + size <= self._send_buffer_bytes

    def _try(self, connection: Connection, frames: list[bytes | memoryview]) -> bool:
        """Whether ZeroMQ took the message, or nobody will ever."""
        send, last = self.socket.send, frames[-1]
        if self._encrypts and len(last) >= _LARGE and not self._may_encrypt(len(last)):
            return False
        if connection.gone:
            return True
        try:
            send(connection.routing_id, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._close(connection)
            return True
        # The whole message goes to one place: once the routing id is taken, so are the rest.
        for frame in frames[:-1]:
            send(frame, zmq.SNDMORE)
        connection.uncounted += len(last)
        if connection.uncounted < _GROUP and len(last) < _LARGE:
            send(last)
        else:
            self._settle(connection)
            self._hold(connection, send(zmq.Frame(last, track=True, copy=False, copy_threshold=0), copy=False))
        return True

    @property
    def waiting(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._waiting)

    def flush(self) -> int:
        """Send what waits, as far as it can be; returns how many messages that were."""
        sent = 0
        if self._encrypts and self._waiting:
            for connection in self._by_number.values():
                self._settle(connection)
        for number, connection in list(self._waiting.items()):
            while connection.outbox and self._try(connection, connection.outbox[0][0]):
                if connection.gone:
                    break
                _, size = connection.outbox.popleft()
                connection.outbox_bytes -= size
                self._unsent_bytes -= size
                sent += 1
            if not connection.outbox:
                self._waiting.pop(number, None)
        return sent

    def close(self, linger_ms: int) -> None:
        """Close the socket, after what was sent has left or ``linger_ms`` have passed."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)


def _split(connection: Connection, frames: list[bytes | memoryview]) -> Received:
    """Tell the frames of a REQ socket's envelope from the message: an empty one, or with ZMQ_REQ_CORRELATE its number
    and an empty one. A DEALER sends none, and no header is empty or has four bytes.
    """
    if not frames[0]:
        return Received(connection, (b"",), frames[1:])
    if len(frames) > 2 and len(frames[0]) == 4 and not frames[1]:
        return Received(connection, (bytes(frames[0]), b""), frames[2:])
    return Received(connection, (), frames)


def _shut_down(fd: int) -> None:
    """End a connection under ZeroMQ, which notices and closes the descriptor: a ROUTER can't drop one peer."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
