"""The daemon notices that it does not work: against a socket that answers, or does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from glmtts.daemon.service.watchdog import SelfCheck


class Rig:
    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(f"ipc://{folder}/s")
        self.check = SelfCheck(self.context, f"ipc://{folder}/s", lambda: self.now)

    def asked(self) -> dict[str, Any]:
        """The request that it sent."""
        assert self.router.poll(5_000)
        self.envelope, question = self.router.recv_multipart()
        return dict(msgpack.unpackb(question))

    def answer(self, **event: Any) -> None:
        self.router.send_multipart([self.envelope, msgpack.packb({"v": 1, **event})])
        assert self.check.socket.poll(5_000)
        self.check.receive()

    def pong(self, id: str) -> None:
        self.answer(event="pong", id=id, version="1", protocol=1, uptime_s=1.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.check.close()
    made.router.close(0)
    made.context.term()


def test_a_daemon_that_answers_itself_is_well(rig: Rig) -> None:
    for _ in range(3):
        assert rig.check.well()
        question = rig.asked()
        assert question["op"] == "ping"
        rig.pong(question["id"])


def test_a_daemon_without_an_answer_is_not_well_until_the_answer_comes(rig: Rig) -> None:
    assert rig.check.well()
    question = rig.asked()
    rig.now = 7.0
    assert not rig.check.well() and "not been answered for 7.0 s" in rig.check.problem
    rig.pong(question["id"])
    assert rig.check.well() and rig.check.problem == ""


def test_an_error_and_the_answer_to_an_earlier_ping_do_not_count(rig: Rig) -> None:
    assert rig.check.well()
    first = rig.asked()["id"]
    rig.answer(event="error", id=first, code="unavailable", message="an internal error", retryable=True)
    assert not rig.check.well()
    rig.pong("self-0")
    assert not rig.check.well()
    rig.pong(first)
    assert rig.check.well()


def test_a_thread_that_has_ended_is_noticed(rig: Rig) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="journal")
    thread.start()
    assert rig.check.well()
    rig.pong(rig.asked()["id"])
    end.set()
    thread.join()
    assert not rig.check.well() and "'journal'" in rig.check.problem
