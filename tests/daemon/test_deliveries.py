"""Results on disk: read one at a time, for each client in turn, and only when there is room to send them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.log.logger import Logger
from glmtts.daemon.storage.deliveries import Deliveries
from glmtts.daemon.storage.output_owners import OutputOwners

from .journal_rig import done

LARGE = 1 << 20


class Post:
    """Connections whose number's tens say whose they are; ``room`` says for how many bytes each has room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.room: dict[int, int] = {}
        self.gone: set[int] = set()
        self.expecting = 0
        self.sent: list[tuple[int, int]] = []
        self.lost: list[str] = []
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        owners = OutputOwners(folder, folder / "owners")
        self.deliveries = Deliveries(
            self._write,
            Logger("error", "text"),
            receivers=self,
            send=self._send,
            step=self._step,
            owners=owners,
            keep_free=lambda: 0,
        )

    def client_of(self, connection: int) -> str | None:
        return None if connection in self.gone else f"uid:{connection // 10}"

    def expect(self, connection: int, size: int) -> bool:
        if size > self.room.get(connection, LARGE << 10):
            return False
        assert not self.expecting, "one at a time"
        self.expecting = connection
        return True

    def expected(self, connection: int) -> None:
        assert connection == self.expecting
        self.expecting = 0

    def _send(self, effect: effects.Send) -> None:
        assert effect.body is not None and effect.to.connection == self.expecting
        self.sent.append((effect.to.connection, len(effect.body)))

    def _step(self, event: inputs.Input) -> None:
        if isinstance(event, inputs.StoredLost):
            self.lost.append(event.problem)

    def ask(self, connection: int, size: int = 100) -> None:
        file = self.folder / f"r-{size}"
        if size and not file.exists():
            file.write_bytes(bytes(size))
        self.deliveries.send_stored(effects.SendStored(inputs.ReplyTo(connection), done("a-1"), str(file)))

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.sent
            select.select([self._read], [], [], 0.05)
            self.deliveries.collect()
            self.deliveries.advance()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    yield Post(tmp_path)


def test_a_client_without_room_holds_up_no_other_and_gets_its_results_later(post: Post) -> None:
    post.room = {11: 0, 12: LARGE - 1}
    for connection in (11, 12, 11, 12, 21, 31):
        post.ask(connection, LARGE)
    post.until(lambda: len(post.sent) == 2)
    assert {connection for connection, _ in post.sent} == {21, 31}
    # Its other connection is not held up either.
    post.ask(13)
    post.until(lambda: post.sent[-1] == (13, 100))
    post.room = {11: 0}
    post.until(lambda: len(post.sent) == 5)
    assert post.sent[-2:] == [(12, LARGE)] * 2
    post.room = {}
    post.until(lambda: len(post.sent) == 7)
    assert not post.lost


def test_clients_take_turns_however_many_results_one_of_them_fetches(post: Post) -> None:
    post.room = {11: 0, 21: 0}
    for _ in range(50):
        post.ask(11)
    post.ask(21)
    post.room = {}
    post.until(lambda: len(post.sent) == 51)
    assert (21, 100) in post.sent[:3]


def test_a_lost_result_is_reported_and_one_for_a_closed_connection_is_not_read(post: Post) -> None:
    post.room = {11: 0}
    post.ask(11)
    post.gone = {11}
    post.room = {}
    post.ask(21, 0)
    post.ask(31)
    post.until(lambda: len(post.sent) == 1 and post.lost)
    assert post.sent == [(31, 100)] and "gone" in post.lost[0]
