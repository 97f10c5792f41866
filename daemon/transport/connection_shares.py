"""Which client holds which connections of a socket, and which connection ends when there are too many. Without I/O."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

from .client_connection import Connection

#: Connections that are passed over in the search for an idle one: used lately, or with a request under way.
_MOST_LOOKS = 64


class Crowd(NamedTuple):
    """The client that holds most connections: its key, its user (``""`` before its first message), their number."""

    client: str
    user: str
    connections: int


class _Holder:
    """The connections of one client by descriptor: those without a message so far by age, the others about by last use.

    A message only marks its connection as used, which costs nothing; the search for an idle one puts those last.
    """

    __slots__ = ("key", "silent", "spoken", "user")

    def __init__(self, key: str) -> None:
        self.key = key
        self.user = ""
        self.silent: OrderedDict[int, None] = OrderedDict()
        self.spoken: OrderedDict[int, Connection] = OrderedDict()

    def __len__(self) -> int:
        return len(self.silent) + len(self.spoken)


class ConnectionShares:
    """Owns the list of open connections by client.

    Invariant: a client that holds fewer connections than another loses none, and none of its new ones is refused.
    """

    def __init__(self, most: int) -> None:
        """``most``: connections that may be open at a time."""
        self.most = most
        self._holders: dict[str, _Holder] = {}
        self._holder_of: dict[int, _Holder] = {}

    def __len__(self) -> int:
        return len(self._holder_of)

    def opened(self, fd: int, key: str) -> int | None:
        """A connection has come.

        Args:
            fd: Its descriptor.
            key: Whose it is, as far as that is known before its first message.

        Returns:
            The descriptor of the connection that has to end for it, which is forgotten here; None if there is room.
        """
        self.ended(fd)
        holder = self._holder(key)
        holder.silent[fd] = None
        self._holder_of[fd] = holder
        if len(self._holder_of) <= self.most:
            return None
        gives_way = self._gives_way(fd, holder)
        self.ended(gives_way)
        return gives_way

    def spoke(self, connection: Connection) -> None:
        """The first message of a connection has said whose it is."""
        self.ended(connection.fd)
        client = connection.peer.client
        holder = self._holder(client.key)
        holder.user = client.user
        holder.spoken[connection.fd] = connection
        self._holder_of[connection.fd] = holder

    def ended(self, fd: int) -> None:
        """A connection has ended, or is about to."""
        holder = self._holder_of.pop(fd, None)
        if holder is None:
            return
        holder.silent.pop(fd, None)
        holder.spoken.pop(fd, None)
        if not len(holder):
            del self._holders[holder.key]

    def silent(self) -> list[int]:
        """The descriptors of the connections without a message so far."""
        return [fd for holder in self._holders.values() for fd in holder.silent]

    def greatest(self) -> Crowd | None:
        """The client with most connections."""
        holder = self._greatest()
        return None if holder is None else Crowd(holder.key, holder.user, len(holder))

    def by_client(self) -> dict[str, int]:
        """How many connections each client has."""
        return {key: len(holder) for key, holder in self._holders.items()}

    def _holder(self, key: str) -> _Holder:
        holder = self._holders.get(key)
        if holder is None:
            holder = self._holders[key] = _Holder(key)
        return holder

    def _greatest(self) -> _Holder | None:
        # Between equals, connections that have never been used go first.
        return max(self._holders.values(), key=lambda holder: (len(holder), len(holder.silent)), default=None)

    def _gives_way(self, newcomer: int, its_holder: _Holder) -> int:
        """Of the client with most connections: the oldest that never spoke, else the one that is idle for longest.

        A ZeroMQ client connects again by itself, so an idle connection loses nothing by its end.
        """
        greatest = self._greatest()
        assert greatest is not None  # the newcomer is in the list
        oldest = next(iter(greatest.silent), newcomer)
        if oldest != newcomer:
            return oldest
        spoken = greatest.spoken
        for _ in range(min(_MOST_LOOKS, len(spoken))):
            fd = next(iter(spoken))
            if not spoken[fd].used and spoken[fd].idle:
                return fd
            spoken[fd].used = False
            spoken.move_to_end(fd)
        for fd in islice(spoken, _MOST_LOOKS):
            if spoken[fd].idle:
                return fd
        if greatest is its_holder:
            return newcomer
        return next(iter(greatest.spoken))
