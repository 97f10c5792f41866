"""Whoever asks for metrics gets them or is told why not, in bounded time, and takes no more than a few connections."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from glmtts.daemon.config.tcp_access import Address
from glmtts.daemon.metrics import http as metrics_http
from glmtts.daemon.metrics.http import MAX_CONNECTIONS, MetricsServer

LOOPBACK = Address("127.0.0.1", 0)
Open = Callable[..., MetricsServer]


class Told:
    """What the server says of its address."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._came = threading.Condition()

    def __call__(self, problem: str) -> None:
        with self._came:
            self.problems.append(problem)
            self._came.notify_all()

    def until(self, count: int) -> list[str]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.problems) >= count, 20)
            return self.problems


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Starts servers: ``serve()`` answers with a count of how often it was asked, ``serve(answers=False)`` never."""
    servers: list[MetricsServer] = []

    def begin(
        address: Address = LOOPBACK,
        *,
        answers: bool = True,
        broken: bool = False,
        told: Told | None = None,
        **bounds: Any,
    ) -> Any:
        for name, value in bounds.items():
            monkeypatch.setattr(metrics_http, f"_{name.upper()}", value)
        asked: list[float] = []

        def ask() -> None:
            asked.append(time.monotonic())
            if broken:
                server.give(lambda: bytes(1 // 0))
            elif answers:
                server.give(lambda: f"asked {len(asked)}\n".encode() * 1_000)

        told = told or Told()
        server = MetricsServer(address, ask, told)
        servers.append(server)
        server.open()
        told.until(1)
        return server

    yield begin
    for server in servers:
        server.close()


def get(server: MetricsServer, patience_s: float = 20.0) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience_s)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_loop_that_does_not_answer_is_said_to_be_stuck(serve: Open) -> None:
    server = serve(answers=False, answer_s=0.2)
    status, words = get(server)
    assert status == 503 and "stuck" in words


def test_metrics_that_can_t_be_written_are_said_to_be_and_asked_for_again(serve: Open) -> None:
    server = serve(broken=True)
    for _ in range(2):
        status, words = get(server)
        assert status == 500 and "ZeroDivisionError" in words


def test_who_asks_again_at_once_gets_what_was_just_written(serve: Open) -> None:
    server = serve(fresh_s=60.0)
    assert get(server) == get(server) == (200, "asked 1\n" * 1_000)


def test_metrics_are_never_older_than_they_may_be(serve: Open) -> None:
    server = serve(fresh_s=0.0)
    assert [get(server)[1][:7] for _ in range(2)] == ["asked 1", "asked 2"]


def test_a_request_that_comes_byte_by_byte_is_ended_and_the_next_is_answered(serve: Open) -> None:
    server = serve(deadline_s=0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 20 and not _ended(slow):
                slow.sendall(b"G")
        assert time.monotonic() - began < 10
    assert get(server)[0] == 200


def _ended(connection: socket.socket) -> bool:
    connection.settimeout(0.02)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def test_the_oldest_of_too_many_connections_gives_way(serve: Open) -> None:
    server = serve()
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            for _ in range(MAX_CONNECTIONS)
        ]
        assert get(server)[0] == 200
        assert crowd[0].recv(1) == b"", "the first is still there"


def test_a_port_that_is_taken_is_told_and_taken_over_when_it_is_free(serve: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = Told()
        server = serve(Address("127.0.0.1", port), told=told, retry_s=0.05)
        assert f"127.0.0.1:{port}" in told.problems[0] and "speech is not concerned" in told.problems[0]
    assert told.until(2)[1] == ""
    assert get(server)[0] == 200


def test_a_server_that_is_closed_leaves_its_port_to_the_next(serve: Open) -> None:
    first = serve()
    get(first)
    first.close()
    assert get(serve(Address("127.0.0.1", first.port)))[0] == 200
