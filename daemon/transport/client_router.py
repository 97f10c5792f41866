"""A ROUTER socket for clients: who they are, what they send, and sends that never block.

The kernel, or the key of the handshake, says whose a connection is. The ZeroMQ identity, which a client chooses, only
routes. A connection ends when ZeroMQ reports its end; its messages are never sent to a later connection of the same
identity.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import zmq

from .client_connection import Connection, Waiting, shut_down
from .connection_shares import ConnectionShares
from .listeners import LOCAL_THREAD
from .monitor import monitored, read_events
from .peers import HolderOf, Identify, Peer
from .unread import OVERHEAD, Unread

#: Bodies of this size or more go to ZeroMQ without a copy, and count until ZeroMQ is done with them.
_LARGE = 64 * 1024
#: Smaller messages count in groups of this size: to count each would cost more than to send it.
_GROUP = 256 * 1024
#: A message of more frames is refused.
_MAX_FRAMES = 6
#: Further frames of such a message are read and dropped: all of a mistake's at once, a flood's in parts.
_FRAMES_OF_A_MISTAKE = 1_000
_SKIPPED_AT_ONCE = 4_000


class Received(NamedTuple):
    """A message: its connection, the envelope to mirror in the answer, and the frames after it."""

    connection: Connection
    envelope: tuple[bytes, ...]
    frames: list[bytes | memoryview]


class ClientRouter:
    """One socket for clients or operators, and the connections on it. Used in the loop's thread alone.

    Invariant: what clients leave unread takes at most ``send_buffer_bytes`` for bodies, and twice that in all, beside
    the few large results that :class:`Unread` lets go beyond that.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listener: int,
        endpoint: str,
        *,
        identify: Identify,
        holder_of: HolderOf,
        clock: Callable[[], float],
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
            holder_of: Tells whose connection a descriptor is, before its first message.
            clock: The time in seconds.
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
        self.monitor = monitored(self.socket)
        self.socket.bind(endpoint)
        self._identify = identify
        self._numbers = numbers
        self._holder_of = holder_of
        self._send_buffer_bytes = send_buffer_bytes
        self._encrypts = encrypts
        self.unread = Unread(
            send_buffer_bytes,
            encrypts=encrypts,
            clock=clock,
            end=self._end_unread,
            overrun=lambda number, job: overruns.append((number, job)),
        )
        self.shares = ConnectionShares(max_connections)
        self._by_routing_id: dict[bytes, Connection] = {}
        self._by_number: dict[int, Connection] = {}
        #: Open connections by descriptor; None before the first message.
        self._open: dict[int, Connection | None] = {}
        self._closed: list[Connection] = []
        self._waiting: dict[int, Connection] = {}
        #: Connections that were ended because too many were open.
        self.turned_away = self.turned_away_reported = 0
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
        return len(self.shares)

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
            else:
                connection.used = True
            if connection is not None:
                connection.unanswered += 1
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
        self.shares.spoke(connection)
        self._by_routing_id[routing_id] = connection
        self._by_number[connection.number] = connection
        return connection

    def read_monitor(self) -> None:
        """Take in which connections have opened and closed."""
        for event, fd in read_events(self.monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._open[fd] = None
                gives_way = self.shares.opened(fd, self._holder_of(fd))
                if gives_way is not None:
                    self._turn_away(gives_way)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self.handshakes_failed += 1
            else:
                self.shares.ended(fd)
                self._close(self._open.pop(fd, None))
                self.unread.disconnected(fd)

    def _turn_away(self, fd: int) -> None:
        """Over the limit: end the connection that gives way. A ZeroMQ client reconnects by itself."""
        self.turned_away += 1
        shut_down(fd)
        self._close(self._open.get(fd))

    def _end_unread(self, connection: Connection) -> None:
        """End the connection of a client that does not read."""
        self.unread_ended += 1
        connection.unread = True
        shut_down(connection.fd)
        self._close(connection)

    def _close(self, connection: Connection | None) -> None:
        if connection is None or connection.gone:
            return
        connection.gone = True
        self.unread.closed(connection, fd_is_open=connection.fd in self._open)
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
        for fd in self.shares.silent():
            self.shares.ended(fd)
            shut_down(fd)
        return ended

    def closed(self) -> list[Connection]:
        """Connections that have ended since the last call."""
        closed, self._closed = self._closed, []
        return closed

    # --- sending

    def send(
        self,
        number: int,
        envelope: tuple[bytes, ...],
        header: bytes,
        body: bytes | memoryview | None,
        *,
        final: bool = True,
    ) -> bool:
        """Send a message, or queue it until ZeroMQ takes it. Does nothing for a connection that is gone.

        A ``final`` message is the last one for its request; with a body, it may wait until there is room for that.

        Returns:
            False, with nothing sent, if the message has a body and the client leaves too much unread. A message without
            a body is sent all the same, up to a second limit.
        """
        connection = self._by_number.get(number)
        if connection is None:
            return True
        parked = False
        if (
            body is not None
            and (
                connection.unsent_bytes + len(body) > self.unread.share
                or self.unread.bytes + len(body) > self._send_buffer_bytes
            )
            and not self.unread.fits(connection, len(body))
        ):
            parked = final
            if not self.unread.may_send(connection, len(body), whole=final):
                return False
        connection.unanswered -= final
        frames: list[bytes | memoryview] = [*envelope, header]
        if body is not None:
            frames.append(body)
        if not connection.outbox and self._try(connection, frames, parked=parked):
            return True
        self.unread.queued(connection, Waiting(frames, sum(map(len, frames)) + OVERHEAD, parked))
        self._waiting[number] = connection
        if self.unread.bytes > 2 * self._send_buffer_bytes:
            self.unread.make_room(-self._send_buffer_bytes, None)
        return True

    def _try(self, connection: Connection, frames: list[bytes | memoryview], *, parked: bool) -> bool:
        """Returns False if ZeroMQ does not take the message now; True if it did, or the connection is gone."""
        if connection.gone:
            return True
        send, last = self.socket.send, frames[-1]
        apart = parked and (self.unread.has_turn(connection) or not self.unread.fits(connection, len(last)))
        if apart and not self.unread.take_turn(connection, len(last)):
            return False
        if self._encrypts and len(last) >= _LARGE and not apart:
            may_encrypt = self._may_encrypt(len(last))
            if connection.gone or not may_encrypt:
                # To ask may have shown that the connection has ended.
                return connection.gone
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
            self.unread.release(connection)
            tracker = send(zmq.Frame(last, track=True, copy=False, copy_threshold=0), copy=False)
            self.unread.sent(connection, connection.hold(tracker, encrypted=self._encrypts, apart=apart))
        return True

    def _may_encrypt(self, size: int) -> bool:
        if not self.unread.fits_into_zeromq(size):
            self.read_monitor()
        return self.unread.fits_into_zeromq(size)

    # --- results on disk, which are read when there is room for them

    def client_of(self, number: int) -> str | None:
        """The client of a connection; None when it is gone."""
        connection = self._by_number.get(number)
        return None if connection is None else connection.peer.client.key

    def expect(self, number: int, size: int) -> bool:
        """Whether a result of this size may be read for the connection; ``expected`` follows. True if it is gone."""
        connection = self._by_number.get(number)
        return connection is None or self.unread.expect(connection, size)

    def expected(self, number: int) -> None:
        """The result was sent, or could not be read."""
        self.unread.expected(self._by_number.get(number))

    @property
    def waiting(self) -> bool:
        """Whether a message waits to be sent, or it matters who reads."""
        return bool(self._waiting) or self.unread.pressing

    def flush(self) -> int:
        """Send what ZeroMQ takes now; returns the number of messages."""
        sent = 0
        if self._encrypts and self._waiting:
            self.unread.release_all()
        self.unread.look_at_readers()
        for number, connection in list(self._waiting.items()):
            while connection.outbox:
                first = connection.outbox[0]
                if not self._try(connection, first.frames, parked=first.parked) or connection.gone:
                    break
                self.unread.dequeued(connection)
                sent += 1
            if not connection.outbox or connection.gone:
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
