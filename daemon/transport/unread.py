"""What clients have not read yet, and which client gives way when the memory for that is short.

A stream whose client does not read ends, and of a whole result the client hears that it can fetch it later. A result
that does not fit into the memory waits for its turn: few are sent beyond it at a time, and one of each client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from glmtts.protocol import codec, events
from glmtts.protocol.errors import ErrorCode

from ..core.api.client_requests import TOO_SLOW
from .client_connection import Connection, InFlight, Waiting, progress

#: Memory that a queued message takes beside its bytes, roughly.
OVERHEAD = 300
#: Results beyond the budget that are sent at a time, one of each client.
_TURNS = 3
#: A client that has read nothing for this long, in seconds, does not read.
_STALL_S = 10.0
#: While others wait for a turn, it ends after the first time in seconds, plus a second for each share of
#: the second size in bytes.
_LONGEST_S, _SLOWEST = 30.0, 128 << 10
#: Time between two looks at the readers, and the time after which the earlier look says nothing.
_LOOK_S, _LOOK_AGAIN_S = 0.25, 3.0
#: A result that waits for a turn asks for it again within this time, in seconds.
_WANTED_S = 2.0
#: A result of at most this share of the budget goes like a part of a stream, without a turn.
_SMALL = 16


class _Turn:
    """A result that is sent beyond the budget. ``in_flight``: None until ZeroMQ has taken it."""

    __slots__ = ("connection", "ends_at", "in_flight")

    def __init__(self, connection: Connection, size: int, now: float) -> None:
        self.connection = connection
        self.in_flight: InFlight | None = None
        self.ends_at = now + _LONGEST_S + size / _SLOWEST

    @property
    def over(self) -> bool:
        entry = self.in_flight
        if self.connection.gone or entry is None:
            return self.connection.gone
        return not any(held is entry for held in self.connection.in_flight)


class Unread:
    """Owns the count of unread bytes of one socket's clients.

    Invariant: bodies take at most ``budget`` bytes, beside the results whose turn it is; results that wait in memory
    for their turn take as much again, or are one.
    """

    def __init__(
        self,
        budget: int,
        *,
        encrypts: bool,
        clock: Callable[[], float],
        end: Callable[[Connection], None],
        overrun: Callable[[int, str], None],
    ) -> None:
        """
        Args:
            budget: Bytes of bodies that all clients together may leave unread.
            encrypts: See ClientRouter.
            clock: The time in seconds.
            end: Disconnects a client that does not read.
            overrun: Takes the number of a connection and the id of a job whose stream has lost a part.
        """
        self._budget = budget
        #: The share of one connection, so that others have room beside it.
        self.share = budget // 2
        self._encrypts = encrypts
        self._clock = clock
        self._end = end
        self._overrun = overrun
        #: An upper bound of the sum of all ``unsent_bytes``: what has left meanwhile is subtracted when it matters.
        self.bytes = 0
        self._loaded: dict[int, Connection] = {}
        #: Bytes that ZeroMQ holds, and those of them for connections that it has yet to end, by descriptor.
        self._held_bytes = 0
        self._leaving: dict[int, int] = {}
        #: By client: the result whose turn it is, and the bytes of those that wait in outboxes.
        self._turns: dict[str, _Turn] = {}
        self._parked: defaultdict[str, int] = defaultdict(int)
        #: A connection whose result is being read from the disk, because there was room.
        self._coming = 0
        #: When a result was last refused a turn, or 0. Those that wait ask again and again.
        self._wanted_at = 0.0
        self._looked_at = 0.0

    # --- what is counted

    def queued(self, connection: Connection, message: Waiting) -> None:
        """A message waits in the connection's outbox."""
        connection.outbox.append(message)
        self._loaded[connection.number] = connection
        if message.parked:
            connection.parked_bytes += message.size
            self._parked[connection.peer.client.key] += message.size
            return
        connection.outbox_bytes += message.size
        self.bytes += message.size

    def dequeued(self, connection: Connection) -> None:
        """ZeroMQ has taken the first message of the outbox."""
        message = connection.outbox.popleft()
        if message.parked:
            connection.parked_bytes -= message.size
            self._unpark(connection, message.size)
        else:
            connection.outbox_bytes -= message.size
            self.bytes -= message.size

    def sent(self, connection: Connection, entry: InFlight) -> None:
        """ZeroMQ has taken a large body."""
        turn = self._turns.get(connection.peer.client.key)
        if turn is not None and turn.connection is connection and not entry.size:
            turn.in_flight = entry
        self._loaded[connection.number] = connection
        if len(connection.in_flight) == 1:
            # Until now there was nothing for it to read.
            connection.moved_at = self._clock()
        self.bytes += entry.size
        self._held_bytes += entry.size

    def closed(self, connection: Connection, *, fd_is_open: bool) -> None:
        """A connection has ended; ZeroMQ may still hold its messages."""
        self.bytes -= connection.unsent_bytes
        if fd_is_open:
            self._leaving[connection.fd] = self._leaving.get(connection.fd, 0) + connection.in_flight_bytes
        else:
            self._held_bytes -= connection.in_flight_bytes
        self._unpark(connection, connection.parked_bytes)
        connection.clear()
        self._loaded.pop(connection.number, None)

    def disconnected(self, fd: int) -> None:
        """ZeroMQ has ended the connection with this descriptor."""
        self._held_bytes -= self._leaving.pop(fd, 0)

    def release(self, connection: Connection) -> None:
        """Count no more what the client has read."""
        if connection.in_flight and (size := connection.release_sent(encrypted=self._encrypts)):
            self.bytes -= size
            self._held_bytes -= size

    def release_all(self) -> None:
        """Count no more what clients have read."""
        for connection in list(self._loaded.values()):
            self.release(connection)
            if not connection.in_flight and not connection.outbox:
                del self._loaded[connection.number]

    def _unpark(self, connection: Connection, size: int) -> None:
        if size:
            key = connection.peer.client.key
            self._parked[key] -= size
            if not self._parked[key]:
                del self._parked[key]

    def by_client(self) -> dict[str, int]:
        """The unread bytes of each client that has any."""
        self.release_all()
        found: defaultdict[str, int] = defaultdict(int)
        for connection in self._loaded.values():
            found[connection.peer.client.key] += connection.unsent_bytes
        return found

    # --- what may be sent

    def fits(self, connection: Connection, size: int) -> bool:
        """Whether a body of this size may be sent to a connection now."""
        if self._has_room(connection, size):
            return True
        self.release_all()
        return self._has_room(connection, size)

    def _has_room(self, connection: Connection, size: int) -> bool:
        return connection.unsent_bytes + size <= self.share and self.bytes + size <= self._budget

    def fits_into_zeromq(self, size: int) -> bool:
        """Whether there is memory for another encrypted copy. If ZeroMQ holds nothing, a message of any size may go.

        Copies for an ended connection count until ZeroMQ has ended it too.
        """
        return self._held_bytes <= 0 or self._held_bytes + size <= self._budget

    def may_send(self, connection: Connection, size: int, *, whole: bool) -> bool:
        """Make room for a body that does not fit, or let it wait; ``whole``: it is a result, not a part of a stream."""
        if not whole or size <= self._budget // _SMALL:
            return self.make_room(size, connection)
        if self._may_park(connection, size):
            return True
        return size <= self.share and self.make_room(size, connection, of_deaf=True)

    def make_room(self, size: int, sender: Connection | None, *, of_deaf: bool = False) -> bool:
        """Drop what the greatest holders leave unread until ``size`` more bytes fit; ``of_deaf``: no reader's data.

        Returns False if ``sender`` is the one that would lose them, or holds its share already.
        """
        self.release_all()
        if sender is not None and sender.unsent_bytes and sender.unsent_bytes + size > self.share:
            return False
        while self.bytes + size > self._budget and (greatest := self._greatest()) is not None:
            if greatest is sender or (of_deaf and not self._is_deaf(greatest)):
                return False
            if not self._drop_outbox(greatest):
                self._end(greatest)
        return True

    def _greatest(self) -> Connection | None:
        """The connection with most unread bytes, of the client with most; one that reads only if all do."""
        loaded = [connection for connection in self._loaded.values() if connection.unsent_bytes]
        deaf = [connection for connection in loaded if self._is_deaf(connection)]
        of_client: defaultdict[str, int] = defaultdict(int)
        for connection in deaf or loaded:
            of_client[connection.peer.client.key] += connection.unsent_bytes
        return max(
            deaf or loaded,
            key=lambda connection: (of_client[connection.peer.client.key], connection.unsent_bytes),
            default=None,
        )

    def _is_deaf(self, connection: Connection) -> bool:
        now = self._clock()
        return now - connection.looked_at <= _LOOK_AGAIN_S and now - connection.moved_at > _STALL_S

    def _drop_outbox(self, connection: Connection) -> bool:
        """Drop the bodies that wait for a connection; returns whether there were any.

        Their jobs end in ``slow_consumer`` for it. Where the job's ``done`` waits here too, the error takes its place;
        the other jobs go to ``overrun``. Results that wait for their turn stay: they take nothing of the budget.
        """
        kept: list[Waiting] = []
        jobs: dict[str, None] = {}
        for message in connection.outbox:
            frames = message.frames
            header = next(i for i, frame in enumerate(frames) if frame)
            event = codec.decode_event(frames[header])
            job = getattr(event, "job", "")
            if message.parked or (len(frames) == header + 1 and (job not in jobs or not event or not event.final)):
                kept.append(message)
                continue
            jobs[job] = None
            if isinstance(event, events.Done):
                error = events.Error.of(event.id, ErrorCode.SLOW_CONSUMER, TOO_SLOW, job=job)
                kept.append(Waiting([*frames[:header], codec.encode(error)], OVERHEAD))
                del jobs[job]
        before = connection.outbox_bytes
        connection.outbox.clear()
        connection.outbox.extend(kept)
        connection.outbox_bytes = sum(message.size for message in kept if not message.parked)
        self.bytes += connection.outbox_bytes - before
        for job in jobs:
            self._overrun(connection.number, job)
        return connection.outbox_bytes < before

    # --- results that wait for their turn

    def _may_park(self, connection: Connection, size: int) -> bool:
        """Whether a result that does not fit may wait in memory until there is room, or until it has its turn."""
        if connection.number == self._coming:
            return True
        client, total = self._parked.get(connection.peer.client.key, 0), sum(self._parked.values())
        return (not total or total + size <= self._budget) and (not client or client + size <= self.share)

    def expect(self, connection: Connection, size: int) -> bool:
        """Whether there is room for a result that is still on disk; if so, it will be taken (see ``expected``)."""
        if connection.parked_bytes:
            self._wanted_at = self._clock()
            return False
        if not self.fits(connection, size) and not self.take_turn(connection, size):
            return False
        self._coming = connection.number
        return True

    def expected(self, connection: Connection | None) -> None:
        """The result from the disk was sent, or could not be read."""
        self._coming = 0
        if connection is not None and not connection.outbox and self.has_turn(connection):
            del self._turns[connection.peer.client.key]

    def has_turn(self, connection: Connection) -> bool:
        """Whether it is the turn of the connection's next result."""
        turn = self._turns.get(connection.peer.client.key)
        return turn is not None and turn.connection is connection and turn.in_flight is None

    def take_turn(self, connection: Connection, size: int) -> bool:
        """Whether a result that does not fit into the budget may be sent now."""
        if self.has_turn(connection):
            return True
        key = connection.peer.client.key
        self._end_turns()
        if key in self._turns or len(self._turns) >= _TURNS:
            self._wanted_at = self._clock()
            return False
        connection.moved_at = self._clock()
        self._turns[key] = _Turn(connection, size, connection.moved_at)
        return True

    def _end_turns(self) -> None:
        for key, turn in list(self._turns.items()):
            self.release(turn.connection)
            if turn.over:
                del self._turns[key]

    @property
    def wanted(self) -> bool:
        """Whether a result waits for a turn."""
        return self._wanted_at > 0.0 and self._clock() - self._wanted_at < _WANTED_S

    @property
    def pressing(self) -> bool:
        """Whether it matters who reads: much is unread, or a result waits for a turn."""
        return self.bytes > self.share or self._wanted_at > 0.0

    def look_at_readers(self) -> None:
        """See who reads while memory is short; end the turn of a client that does not while others wait for one."""
        if not self.pressing or (now := self._clock()) - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        self.release_all()
        for connection in self._loaded.values():
            sample = progress(connection.fd, encrypted=self._encrypts)
            if sample != connection.sample or now - connection.looked_at > _LOOK_AGAIN_S:
                connection.sample, connection.moved_at = sample, now
            connection.looked_at = now
        if not self.wanted:
            self._wanted_at = 0.0
            return
        self._end_turns()
        for turn in list(self._turns.values()):
            if self._is_deaf(turn.connection) or now > turn.ends_at:
                self._end(turn.connection)
