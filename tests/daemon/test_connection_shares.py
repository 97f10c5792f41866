"""Which connection ends when there are too many: one of the client that holds most of them."""

from __future__ import annotations

import itertools

import pytest

from glmtts.daemon.core.inputs import Client
from glmtts.daemon.transport.client_connection import Connection
from glmtts.daemon.transport.connection_shares import ConnectionShares
from glmtts.daemon.transport.peers import Peer


class Door:
    """Connections that come to a socket; each has the number of its descriptor."""

    def __init__(self, most: int) -> None:
        self.shares = ConnectionShares(most)
        self._fds = itertools.count(10)
        self.ended: list[int] = []

    def come(self, client: str) -> int:
        fd = next(self._fds)
        if (gives_way := self.shares.opened(fd, client)) is not None:
            self.ended.append(gives_way)
        return fd

    def speak(self, fd: int, client: str, *, busy: bool = False) -> Connection:
        connection = Connection(fd, b"", fd, Peer(Client(client, client), {}))
        connection.unanswered = int(busy)
        self.shares.spoke(connection)
        return connection


def test_a_client_whose_connections_all_spoke_shuts_no_other_client_out() -> None:
    door = Door(4)
    greedy = [door.come("uid:1") for _ in range(4)]
    for fd in greedy:
        door.speak(fd, "uid:1")
    door.speak(door.come("uid:2"), "uid:2")
    door.speak(door.come("uid:2"), "uid:2")
    assert door.ended == greedy[:2]
    # Now both have the same number, and the greedy one's newcomer costs it one of its own.
    door.come("uid:1")
    assert door.ended == greedy[:3] and len(door.shares) == 4


def test_of_the_greatest_client_silent_ones_go_first_then_the_longest_idle_then_the_newcomer() -> None:
    door = Door(4)
    used, busy, silent, idle = (door.come("uid:1") for _ in range(4))
    connections = [door.speak(fd, "uid:1", busy=fd == busy) for fd in (used, busy, idle)]
    connections[0].used = True
    for _ in range(2):
        door.speak(door.come("uid:1"), "uid:1")
    assert door.ended == [silent, idle]
    door = Door(2)
    for fd in (door.come("uid:1"), door.come("uid:1")):
        door.speak(fd, "uid:1", busy=True)
    refused = door.come("uid:1")
    assert door.ended == [refused]
    # Another client gets in all the same.
    door.come("uid:2")
    assert len(door.ended) == 2 and door.shares.by_client() == {"uid:1": 1, "uid:2": 1}


def test_a_key_counts_for_its_client_wherever_it_connects_from() -> None:
    door = Door(3)
    fds = [door.come(f"tcp:10.0.0.{n}") for n in range(3)]
    for fd in fds:
        door.speak(fd, "curve:aa")
    assert door.shares.by_client() == {"curve:aa": 3}
    door.come("tcp:10.0.0.9")
    assert door.ended == fds[:1]
    greatest = door.shares.greatest()
    assert greatest is not None and greatest[0] == "curve:aa" and greatest.connections == 2


@pytest.mark.parametrize("spoke", [True, False])
def test_an_ended_connection_counts_for_none(spoke: bool) -> None:
    door = Door(2)
    fd = door.come("uid:1")
    if spoke:
        door.speak(fd, "uid:1")
    door.shares.ended(fd)
    assert not len(door.shares) and door.shares.greatest() is None and not door.shares.by_client()
