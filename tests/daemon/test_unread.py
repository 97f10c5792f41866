"""Who gives way when the memory for unread data is short: a client that does not read, never one that does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from glmtts.daemon.core.inputs import Client
from glmtts.daemon.transport import unread as module
from glmtts.daemon.transport.client_connection import Connection, Waiting
from glmtts.daemon.transport.peers import Peer
from glmtts.daemon.transport.unread import Unread
from glmtts.protocol import codec, events

BUDGET = 1_000


class Post:
    """Connections with a budget of 1,000 bytes; ZeroMQ takes every body at once, and clients read when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.ended: list[int] = []
        self.overruns: list[tuple[int, str]] = []
        self.samples: dict[int, int] = {}
        self.unread = Unread(
            BUDGET,
            encrypts=False,
            clock=lambda: self.now,
            end=self._end,
            overrun=lambda number, job: self.overruns.append((number, job)),
        )
        monkeypatch.setattr(module, "progress", lambda fd, **_: self.samples.get(fd, 0))
        self._connections: dict[int, Connection] = {}

    def connect(self, number: int, client: str) -> Connection:
        connection = Connection(number, b"", number, Peer(Client(client, client), {}))
        self._connections[number] = connection
        return connection

    def _end(self, connection: Connection) -> None:
        self.ended.append(connection.number)
        connection.gone = True
        self.unread.closed(connection, fd_is_open=False)

    def send(self, connection: Connection, size: int, *, whole: bool = True) -> bool:
        """As the router does; returns whether it was taken."""
        parked = False
        if not self.unread.fits(connection, size):
            parked = whole
            if not self.unread.may_send(connection, size, whole=whole):
                return False
        event: Any = events.Audio(id="r", job="j", seq=0, format="pcm_s16le", sample_rate=1, channels=1)
        self.unread.queued(connection, Waiting([codec.encode(event), bytes(size)], size, parked))
        self.flush(connection)
        return True

    def flush(self, connection: Connection) -> None:
        while connection.outbox:
            first = connection.outbox[0]
            size = first.size
            apart = first.parked and (self.unread.has_turn(connection) or not self.unread.fits(connection, size))
            if apart and not self.unread.take_turn(connection, size):
                return
            connection.uncounted += size
            tracker: Any = SimpleNamespace(done=False)
            self.unread.sent(connection, connection.hold(tracker, encrypted=False, apart=apart))
            self.unread.dequeued(connection)

    def read(self, connection: Connection) -> None:
        """The client reads all that ZeroMQ has."""
        for body in connection.in_flight:
            body.tracker.done = True  # type: ignore[misc]  # a stand-in

    def pass_time(self, seconds: float, *reading: Connection) -> None:
        """Time passes, with a look every second; those that read take a little each time."""
        for _ in range(int(seconds)):
            self.now += 1.0
            for connection in reading:
                self.samples[connection.fd] = self.samples.get(connection.fd, 0) + 1
            self.unread.look_at_readers()
            for connection in self._connections.values():
                if not connection.gone:
                    self.flush(connection)


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    return Post(monkeypatch)


def test_a_result_over_the_whole_budget_is_sent_and_costs_other_readers_nothing(post: Post) -> None:
    reader, greedy = post.connect(1, "uid:1"), post.connect(2, "uid:2")
    assert post.send(reader, 400)
    assert post.send(greedy, 5_000)
    assert not post.ended and not greedy.outbox
    # Beside it, others have the budget that they had.
    assert post.send(reader, 100) and post.send(post.connect(3, "uid:3"), 450)
    assert not post.ended and not reader.outbox


def test_large_results_take_turns_one_of_a_client_and_those_who_wait_get_theirs(post: Post) -> None:
    connections = [post.connect(n, "uid:1") for n in range(1, 3)] + [post.connect(n, f"uid:{n}") for n in range(3, 6)]
    for connection in connections[:1] + connections[2:4]:
        assert post.send(connection, 2_000) and not connection.outbox
    # The same client again, and a fourth one: both wait.
    waiting = [connections[1], connections[4]]
    assert post.send(waiting[0], 600) and waiting[0].outbox
    assert post.send(waiting[1], 300)
    post.read(connections[0])
    post.pass_time(1, *connections)
    assert not waiting[0].outbox and not post.ended


def test_who_does_not_read_loses_the_turn_that_others_wait_for_and_who_reads_slowly_does_not(post: Post) -> None:
    deaf, slow, other, waiting = (post.connect(n, f"uid:{n}") for n in range(1, 5))
    for connection in (deaf, slow, other, waiting):
        assert post.send(connection, 2_000)
    assert waiting.outbox
    post.pass_time(9, slow, other)
    assert not post.ended
    post.pass_time(4, slow, other)
    assert post.ended == [1] and not waiting.outbox
    # Without a queue for it a reader may take its time, and even none at all.
    post.pass_time(600, slow)
    assert post.ended == [1]


def test_no_reader_keeps_a_turn_for_ever_while_others_wait(post: Post) -> None:
    crawling = [post.connect(n, f"uid:{n}") for n in range(1, 4)]
    for connection in (*crawling, waiting := post.connect(4, "uid:4")):
        assert post.send(connection, 2_000)
    post.pass_time(29, *crawling)
    assert waiting.outbox and not post.ended
    post.pass_time(3, *crawling)
    assert not waiting.outbox and post.ended


def test_unread_streams_are_judged_by_client_and_not_by_connection(post: Post) -> None:
    """A client with many connections, each below another client's one, is the one that loses."""
    many = [post.connect(n, "uid:1") for n in range(1, 9)]
    one = post.connect(20, "uid:2")
    assert post.send(one, 250, whole=False)
    for connection in many[:7]:
        assert post.send(connection, 100, whole=False)
    assert not post.ended
    assert post.send(one, 150, whole=False)
    assert post.ended and set(post.ended) <= set(range(1, 9))


def test_a_client_that_does_not_read_goes_before_a_greater_one_that_does(post: Post) -> None:
    deaf, slow = post.connect(1, "uid:1"), post.connect(2, "uid:2")
    assert post.send(deaf, 400, whole=False) and post.send(slow, 500, whole=False)
    post.pass_time(15, slow)
    assert post.send(post.connect(3, "uid:3"), 200, whole=False)
    assert post.ended == [1]


def test_memory_for_results_that_wait_is_bounded_and_one_client_has_half_of_it(post: Post) -> None:
    for number in range(1, 4):
        assert post.send(post.connect(number, f"uid:{number}"), 2_000)
    assert post.send(post.connect(11, "uid:11"), 400)  # fits the budget
    assert post.send(post.connect(12, "uid:12"), 450)
    deaf = [post.connect(number, "uid:1") for number in range(20, 40)]
    taken = [post.send(connection, 300) for connection in deaf]
    assert sum(taken) * 300 <= BUDGET // 2 + 300
    assert post.send(post.connect(40, "uid:40"), 400)
    total = sum(connection.parked_bytes for connection in post._connections.values())
    assert total <= BUDGET and not {11, 12} & set(post.ended)


def test_a_result_on_disk_is_read_when_there_is_room_and_then_always_sent(post: Post) -> None:
    first = [post.connect(number, f"uid:{number}") for number in range(1, 4)]
    for connection in first:
        assert post.unread.expect(connection, 2_000)
        assert post.send(connection, 2_000) and not connection.outbox
        post.unread.expected(connection)
    late = post.connect(4, "uid:4")
    assert not post.unread.expect(late, 2_000) and post.unread.wanted
    post.read(first[0])
    assert post.unread.expect(late, 2_000)
    # The file could not be read: its turn is free again.
    post.unread.expected(late)
    other = post.connect(5, "uid:5")
    assert post.unread.expect(other, 2_000)
    post.pass_time(30, first[1], first[2])
    assert post.ended == []
