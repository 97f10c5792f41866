"""Floods and slowness: bounded memory, named answers, written times, and other clients that notice nothing."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ..process.conftest import Daemon, Peer, Start
from ..support.gateways import Gateway, keys_for
from ..support.raw_http import CHUNKED, HEADERS, Connection, connected

#: Times that docs/http.md promises, and how far a busy machine may be late.
HEADERS_S, BODY_S, STALLED_S, LATE_S = 15, 60, 60, 20
#: Speech that is made faster than it is sent, and for longer than a stalled reader is kept.
FAST = {"fault": "audio", "seconds": 3_600.0, "rtf": 0.05, "segments": 720}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(workers={"max": 2})


def rss_mib(gateway: Gateway) -> float:
    return float(psutil.Process(gateway.process.pid).memory_info().rss) / (1 << 20)


@contextlib.contextmanager
def unnoticed(daemon: Daemon, gateway: Gateway, grows_mib: float, **headers: str) -> Iterator[None]:
    """What happens in the block delays no client of the daemon, and leaves memory and log of the gateway in order."""
    gateway.ask("POST", "/v1/audio/speech", {"input": "Warm."}, **headers)
    before, most = rss_mib(gateway), 0.0
    waits: list[float] = []
    ended = threading.Event()

    def probe() -> None:
        nonlocal most
        with contextlib.closing(Peer(daemon.endpoint)) as peer:
            while not ended.wait(0.05):
                began = time.monotonic()
                peer.ask("ping")
                waits.append(time.monotonic() - began)
                most = max(most, rss_mib(gateway))

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        yield
    finally:
        ended.set()
        prober.join()
    assert gateway.ask("POST", "/v1/audio/speech", {"input": "Still here."}, **headers)[0] == 200
    print(
        f"ping median {statistics.median(waits) * 1e3:.1f} ms, longest {max(waits) * 1e3:.0f} ms of {len(waits)}; ",
        end="",
    )
    print(f"gateway {before:.0f} MiB, at most {most:.0f}, at the end {rss_mib(gateway):.0f}")
    assert statistics.median(waits) < 0.1
    assert most - before < grows_mib
    assert "Traceback" not in gateway.log_file.read_text()


def test_a_thousand_connections_that_say_nothing(daemon: Daemon, tmp_path: Path) -> None:
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway, unnoticed(daemon, gateway, 64):
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            # Four addresses may have 256 each. Of a thousand from one address 744 are refused.
            silent = [stack.enter_context(connected(gateway.port, f"127.0.0.{2 + n % 4}")) for n in range(1_000)]
            greedy = [stack.enter_context(connected(gateway.port, "127.0.0.9")) for _ in range(1_000)]
            refused = Counter(connection.answer().status for connection in greedy[-700:])
            assert refused == {429: 700}
            assert gateway.ask("POST", "/v1/audio/speech", {"input": "Meanwhile."})[0] == 200
            assert {connection.answer().status for connection in silent + greedy[:256]} == {0}
        assert HEADERS_S - 1 < time.monotonic() - began < HEADERS_S + LATE_S


@pytest.mark.timeout(180)
def test_what_comes_too_slowly_and_what_is_not_read(daemon: Daemon, tmp_path: Path) -> None:
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway, unnoticed(daemon, gateway, 200):
        _, file, _ = gateway.ask(
            "POST",
            "/v1/audio/jobs",
            {"input": "x", "response_format": "wav", "options": FAST | {"seconds": 500.0, "rtf": 0.001}},
        )
        path = f"/v1/audio/jobs/{file['id']}"
        daemon.until(lambda: gateway.ask("GET", path)[1]["status"] == "done", "the file is there")
        ends: dict[str, tuple[float, int, str]] = {}

        def drip(name: str, head: bytes, drop: bytes) -> None:
            """Send a byte a second, until there is an answer."""
            began = time.monotonic()
            with connected(gateway.port, patience_s=BODY_S + LATE_S) as connection:
                connection.send(head)
                connection.socket.settimeout(1)
                while time.monotonic() - began < BODY_S + LATE_S:
                    with contextlib.suppress(TimeoutError):
                        connection.socket.recv(1, socket.MSG_PEEK)
                        break
                    connection.send(drop)
                connection.socket.settimeout(10)
                answer = connection.answer()
            ends[name] = time.monotonic() - began, answer.status, answer.error["code"]

        def stall(name: str, request: bytes) -> None:
            """Read the beginning of an answer, and then no more, until the connection is broken."""
            began = time.monotonic()
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                connection.connect(("127.0.0.1", gateway.port))
                connection.sendall(request)
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
                while time.monotonic() - began < STALLED_S + LATE_S + 10:
                    time.sleep(0.5)
                    if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        break
                ends[name] = time.monotonic() - began, 0, ""

        body = json.dumps({"input": "x", "response_format": "pcm", "options": FAST}).encode()
        events = json.dumps({"input": "x", "response_format": "pcm", "stream_format": "sse", "options": FAST}).encode()
        things = [
            (drip, "header", HEADERS, b"a"),
            (drip, "body", HEADERS + b"Content-Length: 1000\r\n\r\n", b" "),
            (drip, "chunks", CHUNKED, b"1\r\n \r\n"),
            (stall, "stream", HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body),
            (stall, "events", HEADERS + b"Content-Length: %d\r\n\r\n" % len(events) + events),
            (stall, "file", f"GET {path}/audio HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()),
        ]
        threads = [threading.Thread(target=act, args=arguments) for act, *arguments in things]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(ends)
        for name, (took_s, status, code) in ends.items():
            limit_s = HEADERS_S if name == "header" else BODY_S
            assert limit_s - 2 < took_s < limit_s + LATE_S, ends
            if name in ("header", "body", "chunks"):
                assert (status, code) == (408, "timeout"), ends
        assert len(ends) == len(things)
        # The daemon may have given them up before: its buffer for what the gateway leaves unread is bounded too.
        daemon.until(lambda: {*states(gateway)} <= {"cancelled", "failed", "done"}, "no job is spoken any more")
        assert sorted(states(gateway)).count("done") == 2


def states(gateway: Gateway) -> list[str]:
    return [job["status"] for job in gateway.ask("GET", "/v1/audio/jobs")[1]["data"]]


def test_an_answer_that_is_read_slowly_comes_whole(daemon: Daemon, tmp_path: Path) -> None:
    with (
        contextlib.closing(Gateway(daemon, tmp_path)) as gateway,
        contextlib.closing(gateway.connection()) as connection,
    ):
        body = {"input": "x", "response_format": "pcm", "options": FAST | {"seconds": 100.0, "rtf": 0.001}}
        connection.request("POST", "/v1/audio/speech", json.dumps(body))
        answer = connection.getresponse()
        time.sleep(3)
        assert len(answer.read()) == 100 * 24_000 * 2


def test_a_body_without_end_is_not_read_without_end(daemon: Daemon, tmp_path: Path) -> None:
    with contextlib.closing(Gateway(daemon, tmp_path)) as gateway, unnoticed(daemon, gateway, 100):
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        began = time.monotonic()
        with connected(gateway.port) as connection:
            connection.send(CHUNKED)
            while connection.send(chunk):
                assert time.monotonic() - began < HEADERS_S + LATE_S
                time.sleep(0.002)


def test_large_bodies_at_once_take_bounded_memory_and_small_ones_pass(daemon: Daemon, tmp_path: Path) -> None:
    settings = "body_mib = 8\n"
    with contextlib.closing(Gateway(daemon, tmp_path, settings)) as gateway, unnoticed(daemon, gateway, 150):
        recording = base64.b64encode(bytes(5 << 20))
        body = b'{"input": "x", "ref_text": "y", "ref_audio": "' + recording + b'"}'
        head = HEADERS + b"Content-Length: %d\r\n\r\n" % len(body)
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connected(gateway.port, f"127.0.0.{2 + n // 10}")) for n in range(40)]
            for connection in held:
                connection.send(head, body[:-1])
            # All but the last byte came from each: four bodies' memory for an address, eight for all.
            refused = 0
            for connection in held:
                connection.socket.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    answer = connection.answer()
                    assert (answer.status, answer.error["code"]) == (503, "unavailable"), answer
                    assert answer.headers["x-should-retry"] == "true" and answer.headers["retry-after"] == "1"
                    refused += 1
            assert 25 <= refused < 40, refused
            assert gateway.ask("POST", "/v1/audio/speech", {"input": "A small one."})[0] == 200
        daemon.until(lambda: gateway.ask("POST", "/v1/audio/speech", body)[0] != 503, "there is memory again")


UPGRADE = (
    b"GET /v1/audio/speech/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def frame(opcode: int, length: int) -> bytes:
    """The head of a frame that is masked with zeros."""
    return bytes([opcode, 0xFF]) + length.to_bytes(8, "big") + bytes(4)


def upgrade(connection: Connection) -> None:
    """Make it a WebSocket."""
    connection.send(UPGRADE)
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        heard += connection.socket.recv(1)
    assert heard.startswith(b"HTTP/1.1 101"), heard


def closing(connection: Connection) -> int:
    """The code with which the gateway closes; 0 if it does not."""
    connection.socket.settimeout(0.5)
    heard = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while piece := connection.socket.recv(4_096):
            heard += piece
    return int.from_bytes(heard[2:4], "big") if heard[:1] == b"\x88" else 0


def test_messages_of_websockets_that_never_end_take_bounded_memory(daemon: Daemon, tmp_path: Path) -> None:
    settings = "body_mib = 4\n"
    with contextlib.closing(Gateway(daemon, tmp_path, settings)) as gateway, unnoticed(daemon, gateway, 100):
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connected(gateway.port)) for _ in range(30)]
            for connection in held:
                upgrade(connection)
                connection.send(frame(0x81, 4 << 20), bytes(3 << 20))
            # Ten of them fit into eight bodies' memory.
            codes = Counter(closing(connection) for connection in held)
            assert set(codes) <= {0, 1013} and codes[1013] >= 15, codes
            assert gateway.ask("POST", "/v1/audio/speech", {"input": "A small one."})[0] == 200
        with connected(gateway.port) as connection:
            upgrade(connection)
            connection.send(frame(0x01, 1) + b" ", *[(frame(0x00, 1) + b" ") * 1_000] * 20)
            assert closing(connection) == 1008


def test_one_customer_s_many_connections_get_their_answers(daemon: Daemon, tmp_path: Path) -> None:
    file, headers = keys_for(tmp_path, "anna", "bob")
    settings = f'api_keys = "{file}"\n'
    with (
        contextlib.closing(Gateway(daemon, tmp_path, settings)) as gateway,
        unnoticed(daemon, gateway, 100, **headers["bob"]),
    ):
        connections: list[http.client.HTTPConnection] = []
        for number in range(200):
            connections.append(gateway.connection())
            connections[-1].request("POST", "/v1/audio/speech", json.dumps({"input": f"{number}"}), headers["anna"])
        statuses = Counter[int]()
        for connection in connections:
            answer = connection.getresponse()
            content = answer.read()
            statuses[answer.status] += 1
            assert content if answer.status == 200 else json.loads(content)["error"]["code"] == "queue_full"
            connection.close()
        print(statuses)
        assert set(statuses) <= {200, 503} and statuses[200] >= 100
