"""A ROUTER socket for clients: who they are, what they send, and sends that never block.

The kernel, or the key of the handshake, says whose a connection is. The ZeroMQ identity, which a client chooses, only
routes. A connection ends when ZeroMQ reports its end; its messages are never sent to a later connection of the same
identity.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import zmq

from glmtts.protocol import codec, events
from glmtts.protocol.errors import ErrorCode

from ..core.api.client_requests import TOO_SLOW
from .client_connection import Connection, shut_down
from .listeners import LOCAL_THREAD
from .peers import Identify, Peer

#: Bodies of this size or more go to ZeroMQ without a copy, and count until ZeroMQ is done with them.
_LARGE = 64 * 1024
#: Smaller messages count in groups of this size: to count each would cost more than to send it.
_GROUP = 256 * 1024
#: A message of more frames is refused.
_MAX_FRAMES = 6
#: Further frames of such a message are read and dropped: all of a mistake's at once, a flood's in parts.
_FRAMES_OF_A_MISTAKE = 1_000
_SKIPPED_AT_ONCE = 4_000
#: Memory that a queued message takes beside its bytes, roughly.
_OVERHEAD = 300

#: A zmq_socket_monitor event: its number and a value (zmq_socket_monitor(3)). pyzmq's own parser loads asyncio, which
#: would delay the start.
_MONITOR_FRAME = struct.Struct("=hi")
_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Received(NamedTuple):
    """A message: its connection, the envelope to mirror in the answer, and the frames after it."""

    connection: Connection
    envelope: tuple[bytes, ...]
    frames: list[bytes | memoryview]


class ClientRouter:
    """One socket for clients or operators, and the connections on it. Used in the loop's thread alone.

    Invariant: what clients leave unread takes at most ``send_buffer_bytes``, for bodies, and twice that in all.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listener: int,
        endpoint: str,
        *,
        identify: Identify,
        numbers: Iterator[int],
        overruns: deque[tuple[int, str]],
        body_bytes: int,
        send_buffer_bytes: int,
        max_connections: int,
        options: Sequence[tuple[int, int | bytes]] = (),
        encrypts: bool = False,
    ) -> None:
        """Serve the listening descriptor ``listener``, and close it with the router.

        Args:
            identify: Tells whose connection a frame comes from.
            numbers: The number of each new connection.
            overruns: Receives (connection, job) for each stream of which a part was dropped unread.
            body_bytes: The largest accepted body.
            send_buffer_bytes: Budget for bodies that clients leave unread, of this socket alone.
            max_connections: Connections that may be open at a time, of this socket alone.
            options: Further socket options for ZeroMQ.
            encrypts: ZeroMQ copies each message, and keeps the copy until the last byte is sent without reporting it.
        """
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.USE_FD, listener),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            # A frame over the limit is answered; one far over it ends the connection before it fills the memory.
            (zmq.MAXMSGSIZE, 2 * body_bytes),
            (zmq.RCVHWM, 16),
            # Enough to keep a reading client busy. What waits in the outbox instead can still be dropped.
            (zmq.SNDHWM, 64),
            # Descriptors are finite: a connection that does not speak ZMTP ends soon.
            (zmq.HANDSHAKE_IVL, 5_000),
            # One fixed thread of ZeroMQ: so the monitor reports a connection before its first message arrives.
            (zmq.AFFINITY, LOCAL_THREAD),
            *options,
        ):
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(_MONITORED)
        self.socket.bind(endpoint)
        self._identify = identify
        self._numbers = numbers
        self._overruns = overruns
        self._send_buffer_bytes = send_buffer_bytes
        #: The share of one connection, so that others have room beside it.
        self._share_bytes = send_buffer_bytes // 2
        self._max_connections = max_connections
        self._encrypts = encrypts
        #: Bytes that ZeroMQ holds, and those of them for connections that it has yet to end, by descriptor.
        self._held_bytes = 0
        self._leaving: dict[int, int] = {}
        self._by_routing_id: dict[bytes, Connection] = {}
        self._by_number: dict[int, Connection] = {}
        #: Open connections by descriptor; None before the first message.
        self._open: dict[int, Connection | None] = {}
        #: Descriptors of connections without a message so far, the oldest first.
        self._silent: dict[int, None] = {}
        #: An upper bound of the sum of all ``unsent_bytes``: what has left meanwhile is subtracted when it matters.
        self._unsent_bytes = 0
        self._closed: list[Connection] = []
        self._waiting: dict[int, Connection] = {}
        #: Connections that were turned away because too many were open.
        self.turned_away = 0
        #: Connections that were ended for a message of thousands of frames, and whether one is being read now.
        self.floods_ended = 0
        self._in_flood = False
        #: Connections that were ended because they did not read.
        self.unread_ended = 0
        #: Connections that failed the handshake: another protocol, another mechanism, another key.
        self.handshakes_failed = 0

    @property
    def connections(self) -> int:
        """Open connections, including those without a message so far."""
        return len(self._open)

    # --- receiving

    def receive(self, limit: int) -> Iterator[Received]:
        """Yield up to ``limit`` messages that have arrived."""
        receive = self.socket.recv
        state: Callable[[int], Any] = self.socket.getsockopt
        if self._in_flood and not self._skip(_SKIPPED_AT_ONCE):
            return
        for _ in range(limit):
            # To ask costs a tenth of the exception for an empty socket.
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
                # ZMTP 1.0, or bytes that pass for it: the sender is unknown and can't be answered.
                continue
            if connection is None or connection.fd != fd:
                connection = self._new(routing_id, fd, first)
            if connection is not None:
                yield _split(connection, frames)

    def _skip(self, most: int) -> bool:
        """Drop up to ``most`` further frames of a message; returns whether that was the rest of it."""
        receive = self.socket.recv
        for _ in range(most):
            if not receive(copy=False).more:
                self._in_flood = False
                return True
        return False

    def _end_flood(self, routing_id: bytes, frame: zmq.Frame) -> None:
        """End the sender of a message of thousands of frames. The message itself is read and dropped in parts."""
        self._in_flood = True
        self.floods_ended += 1
        with contextlib.suppress(zmq.ZMQError):
            shut_down(int(frame.get(zmq.SRCFD)))
        self._close(self._by_routing_id.get(routing_id))

    def _new(self, routing_id: bytes, fd: int, frame: zmq.Frame) -> Connection | None:
        """Register the sender of a first message, which may be closed already; None if it may not connect any more."""
        # The descriptor may have belonged to an earlier connection: its end comes first.
        self.read_monitor()
        self._close(self._by_routing_id.get(routing_id))
        peer = self._identify(frame)
        if peer is None:
            if self._open.get(fd, self) is None:
                shut_down(fd)
            return None
        connection = Connection(next(self._numbers), routing_id, fd, peer)
        if self._open.get(fd, self) is not None:
            # Closed, and perhaps its descriptor reused: nothing can be sent to it.
            connection.gone = True
            self._closed.append(connection)
            return connection
        self._open[fd] = connection
        self._silent.pop(fd, None)
        self._by_routing_id[routing_id] = connection
        self._by_number[connection.number] = connection
        return connection

    def read_monitor(self) -> None:
        """Take in which connections have opened and closed."""
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
        """Over the limit: end the connection that has been open for longest without a message.

        A ZeroMQ client reconnects by itself, and loses no request.
        """
        fd = next(iter(self._silent))
        del self._silent[fd]
        self.turned_away += 1
        shut_down(fd)

    def _close(self, connection: Connection | None) -> None:
        if connection is None or connection.gone:
            return
        connection.gone = True
        self._unsent_bytes -= connection.unsent_bytes
        if connection.fd in self._open:
            self._leaving[connection.fd] = self._leaving.get(connection.fd, 0) + connection.in_flight_bytes
        else:
            self._held_bytes -= connection.in_flight_bytes
        connection.clear()
        self._by_number.pop(connection.number, None)
        self._waiting.pop(connection.number, None)
        if self._by_routing_id.get(connection.routing_id) is connection:
            del self._by_routing_id[connection.routing_id]
        if self._open.get(connection.fd) is connection:
            self._open[connection.fd] = None
        self._closed.append(connection)

    def review(self, again: Callable[[Peer], Peer | None]) -> list[Connection]:
        """Identify all peers again, and end the connections that are not allowed any more; returns these.

        Connections without a message so far end too, since their keys are unknown. A ZeroMQ client reconnects by
        itself, and the handshake judges it again.
        """
        ended = []
        for connection in list(self._by_number.values()):
            peer = again(connection.peer)
            if peer is None:
                shut_down(connection.fd)
                self._close(connection)
                ended.append(connection)
            else:
                connection.peer = peer
        for fd in self._silent:
            shut_down(fd)
        self._silent.clear()
        return ended

    def closed(self) -> list[Connection]:
        """Connections that have ended since the last call."""
        closed, self._closed = self._closed, []
        return closed

    # --- sending

    def send(self, number: int, envelope: tuple[bytes, ...], header: bytes, body: bytes | memoryview | None) -> bool:
        """Send a message, or queue it until ZeroMQ takes it. Does nothing for a connection that is gone.

        Returns:
            False, with nothing sent, if the message has a body and the client leaves too much unread. A message without
            a body is sent all the same, up to a second limit.
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
        """Drop what the greatest holders leave unread until ``size`` more bytes fit.

        Returns False if ``sender`` is the greatest holder, or holds its share already.
        """
        for connection in self._by_number.values():
            self._release_sent(connection)
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
            shut_down(greatest.fd)
            self._close(greatest)
        return True

    def _drop_outbox(self, connection: Connection) -> bool:
        """Drop the bodies that wait for a connection; returns whether there were any.

        Their jobs end in ``slow_consumer`` for it. Where the job's ``done`` waits here too, the error takes its place;
        the other jobs go to ``overruns``.
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
        self._overruns.extend((connection.number, job) for job in jobs)
        return dropped > 0

    def _release_sent(self, connection: Connection) -> None:
        size = connection.release_sent(encrypted=self._encrypts)
        self._unsent_bytes -= size
        self._held_bytes -= size

    def _may_encrypt(self, size: int) -> bool:
        """Whether there is memory for another copy in ZeroMQ. If ZeroMQ holds nothing, a message of any size may go.

        Copies for an ended connection count until ZeroMQ has ended it too.
        """
        if self._held_bytes and self._held_bytes + size > self._send_buffer_bytes:
            self.read_monitor()
        return not self._held_bytes or self._held_bytes + size <= self._send_buffer_bytes

    def _try(self, connection: Connection, frames: list[bytes | memoryview]) -> bool:
        """Returns False if ZeroMQ does not take the message now; True if it did, or the connection is gone."""
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
        # ZeroMQ takes a message as a whole: after the routing id it takes the rest.
        for frame in frames[:-1]:
            send(frame, zmq.SNDMORE)
        connection.uncounted += len(last)
        if connection.uncounted < _GROUP and len(last) < _LARGE:
            send(last)
        else:
            self._release_sent(connection)
            tracker = send(zmq.Frame(last, track=True, copy=False, copy_threshold=0), copy=False)
            size = connection.hold(tracker, encrypted=self._encrypts)
            self._unsent_bytes += size
            self._held_bytes += size
        return True

    @property
    def waiting(self) -> bool:
        """Whether a message waits to be sent."""
        return bool(self._waiting)

    def flush(self) -> int:
        """Send what ZeroMQ takes now; returns the number of messages."""
        sent = 0
        if self._encrypts and self._waiting:
            for connection in self._by_number.values():
                self._release_sent(connection)
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
        """Close the socket once everything has left, or after ``linger_ms``."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)


def _split(connection: Connection, frames: list[bytes | memoryview]) -> Received:
    """Split a REQ socket's envelope from the message.

    The envelope is an empty frame, or with ZMQ_REQ_CORRELATE a number of four bytes and an empty frame. A DEALER sends
    none. No header is empty or has four bytes.
    """
    if not frames[0]:
        return Received(connection, (b"",), frames[1:])
    if len(frames) > 2 and len(frames[0]) == 4 and not frames[1]:
        return Received(connection, (bytes(frames[0]), b""), frames[2:])
    return Received(connection, (), frames)
