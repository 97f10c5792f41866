"""A request for metrics is answered in bounded time, with them or with the reason. The rest: tests/process."""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from glmtts.daemon.config.tcp_access import Address
from glmtts.daemon.core import effects
from glmtts.daemon.core.settings import MetricsSettings
from glmtts.daemon.metrics import http as metrics_http
from glmtts.daemon.metrics import metrics
from glmtts.daemon.metrics.http import MetricsServer
from glmtts.daemon.storage.journal import JournalFigures
from glmtts.protocol.events import Error

LOOPBACK = Address("127.0.0.1", 0)
Serve = Callable[..., MetricsServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers whose loop answers with a count of its requests, from the second on, or with an error."""
    servers: list[MetricsServer] = []

    def begin(answer: str = "count", address: Address = LOOPBACK, **bounds: float) -> MetricsServer:
        for name, value in bounds.items():
            monkeypatch.setattr(metrics_http, f"_{name.upper()}", value)
        asked = itertools.count(1)
        open = threading.Event()

        def ask() -> None:
            number = next(asked)
            if answer == "error":
                server.give(lambda: bytes(1 // 0))
            elif answer == "count" or (answer == "second" and number == 2):
                server.give(lambda: f"asked {number}\n".encode() * 1_000)

        server = MetricsServer(address, ask, lambda problem: open.set() if not problem else None)
        servers.append(server)
        server.open()
        assert open.wait(20)
        return server

    yield begin
    for server in servers:
        server.close()


def get(server: MetricsServer, patience_s: float = 20.0) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience_s)) as connection:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_loop_that_does_not_answer_is_reported_as_stuck(serve: Serve) -> None:
    server = serve("second", answer_s=0.2)
    status, words = get(server)
    assert status == 503 and "stuck" in words
    assert get(server) == (200, "asked 2\n" * 1_000), "it is asked again"


def test_metrics_that_can_t_be_written_are_an_error_and_asked_for_again(serve: Serve) -> None:
    server = serve("error")
    for _ in range(2):
        status, words = get(server)
        assert status == 500 and "ZeroDivisionError" in words


def test_a_second_request_at_once_gets_the_same_text(serve: Serve) -> None:
    server = serve(fresh_s=60.0)
    assert get(server) == get(server) == (200, "asked 1\n" * 1_000)


def test_metrics_are_never_older_than_they_may_be(serve: Serve) -> None:
    server = serve(fresh_s=0.0)
    assert [get(server)[1][:7] for _ in range(2)] == ["asked 1", "asked 2"]


def test_a_request_that_comes_byte_by_byte_is_ended_and_the_next_is_answered(serve: Serve) -> None:
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


def test_a_server_that_is_closed_leaves_its_port_to_the_next(serve: Serve) -> None:
    first = serve()
    get(first)
    first.close()
    assert get(serve(address=Address("127.0.0.1", first.port)))[0] == 200


def test_metrics_that_can_t_be_written_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[effects.Send] = []

    class Background:
        def run(self, task: Callable[[], Any], then: Callable[[Any], None]) -> bool:
            try:
                then(task())
            except ImportError as error:
                with pytest.raises(ImportError):
                    then(error)
            return True

    def written(_: object) -> bytes:
        raise ImportError("a broken package")

    monkeypatch.setattr(metrics, "written", written)
    served = metrics.Metrics(
        MetricsSettings(),
        wakeup_fd=-1,
        log=cast("Any", None),
        background=cast("Any", Background()),
        core=list,
        facts=lambda: collections.defaultdict(int, tcp={"connections": 0}),
        journal=JournalFigures,
        send=sent.append,
    )
    served.write(effects.WriteMetrics(cast("Any", "operator"), "m", []))
    (answer,) = sent
    assert isinstance(answer.event, Error) and (answer.event.id, answer.event.code) == ("m", "unavailable")
