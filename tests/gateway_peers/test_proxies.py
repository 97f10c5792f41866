"""nginx, HAProxy and Caddy before two gateways: one at a port, and at a unix socket the one that takes over."""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.sync.client import connect

from ..process.conftest import Daemon, Start
from ..support.gateways import Gateway
from ..support.raw_http import connected, say
from .proxies import PROXIES, Proxy

#: Speech that takes as long as it lasts, in segments of half a second: some kB each in opus.
SLOW = {"fault": "audio", "seconds": 5.0, "rtf": 1.0, "segments": 10}


class Set(NamedTuple):
    proxy: Proxy
    first: Gateway
    second: Gateway


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(workers={"max": 2})


@pytest.fixture(scope="module", params=sorted(PROXIES))
def proxied(request: pytest.FixtureRequest, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Set]:
    folder = tmp_path_factory.mktemp("gateways")
    with contextlib.ExitStack() as stack:
        # The path of a socket has 107 bytes at most.
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="glmtts-http-", dir="/tmp"))
        path = str(Path(sockets) / "http.sock")
        first = Gateway(daemon, folder, 'trusted_proxies = ["127.0.0.1"]\n')
        stack.callback(first.close)
        second = Gateway(daemon, folder, 'trusted_proxies = ["unix"]\n', path=path)
        stack.callback(second.close)
        proxy = PROXIES[request.param](first.port, path)
        stack.callback(proxy.close)
        yield Set(proxy, first, second)


def begin(proxy: Proxy, body: Any, source: str = "127.0.0.1", **headers: str) -> http.client.HTTPResponse:
    """The answer to a request for speech from this address. The connection closes with its end, which is to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30, source_address=(source, 0))
    names = {name.replace("_", "-"): value for name, value in headers.items()} | {"Connection": "close"}
    connection.request("POST", "/v1/audio/speech", json.dumps(body), names)
    return connection.getresponse()


def ask(proxy: Proxy, body: Any, source: str = "127.0.0.1", **headers: str) -> tuple[int, bytes, Any]:
    """The status, the body and the headers of an answer."""
    answer = begin(proxy, body, source, **headers)
    return answer.status, answer.read(), answer.headers


def jobs_of(daemon: Daemon, address: str) -> int:
    return len(daemon.client().ask("jobs", on_behalf_of=f"ip:{address}")["jobs"])


@pytest.mark.parametrize("kind", [{"response_format": "opus"}, {"stream_format": "sse"}])
def test_the_first_byte_of_a_stream_is_not_buffered(proxied: Set, kind: dict[str, str]) -> None:
    began = time.monotonic()
    answer = begin(proxied.proxy, {"input": "x", "options": SLOW} | kind)
    assert answer.status == 200 and answer.read(200)
    first_s = time.monotonic() - began
    assert answer.read()
    assert first_s < (time.monotonic() - began) / 2


def test_a_visitor_s_address_is_its_own_and_can_t_be_invented(proxied: Set, daemon: Daemon) -> None:
    before = jobs_of(daemon, "127.0.0.2")
    forged = {"X_Forwarded_For": "6.6.6.6, 7.7.7.7", "Forwarded": "for=8.8.8.8", "X_Real_IP": "9.9.9.9"}
    assert ask(proxied.proxy, {"input": "x"}, "127.0.0.2", **forged)[0] == 200
    assert jobs_of(daemon, "127.0.0.2") == before + 1
    assert not any(jobs_of(daemon, address) for address in ("6.6.6.6", "7.7.7.7", "8.8.8.8", "9.9.9.9"))


def test_an_error_of_the_gateway_comes_through_as_it_is(proxied: Set) -> None:
    status, body, headers = ask(proxied.proxy, {"input": "x", "options": {"fault": "raise"}})
    assert (status, headers["x-should-retry"], json.loads(body)["error"]["code"]) == (500, "false", "synthesis_failed")


HIDDEN = b"GET /v1/audio/usage HTTP/1.1\r\nHost: localhost\r\nX-A: "


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: %(length)d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: %(length)d\r\n\r\n",
        b"Content-Length: 0, %(length)d\r\n\r\n",
        b"Content-Length: +0\r\n\r\n",
        b"Content-Length : %(length)d\r\n\r\n",
        b"Content-Length:\x0b%(length)d\r\n\r\n",
        b"Content-Length: %(length)d\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: %(length)d\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: %(length)d\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: %(length)d\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: %(length)d\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    ],
)
def test_no_request_is_hidden_in_another(proxied: Set, lengths: bytes) -> None:
    """The proxy and the gateway see the same requests: what one of them takes for a body is no request to the other."""
    proxy, first, second = proxied
    before = usages(first) + usages(second)
    head = b"POST /livez HTTP/1.1\r\nHost: localhost\r\n" + lengths % {b"length": len(HIDDEN) + 5}
    with connected(proxy.port, patience_s=3) as connection:
        # A first request makes the connection to the gateway one that is kept.
        connection.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.answer().status == 200
        connection.send(head + HIDDEN)
        answer = connection.answer()
        assert answer.status in (0, 400, 405, 411, 501), answer
    # The next visitor's request would be the end of the hidden one.
    for _ in range(3):
        assert say(proxy.port, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").body == b"ok\n"
    assert usages(first) + usages(second) == before


def usages(gateway: Gateway) -> int:
    """How often /v1/audio/usage was asked for."""
    lines = gateway.ask("GET", "/metrics")[1].decode().splitlines()
    route = 'glmtts_gateway_requests_total{route="/v1/audio/usage"'
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(route))


def test_metrics_are_not_for_visitors(proxied: Set) -> None:
    answer = say(proxied.proxy.port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.status in (401, 403, 404), answer


def test_streams_end_well_when_the_proxy_reloads_and_the_gateway_restarts(proxied: Set, daemon: Daemon) -> None:
    proxy, first, second = proxied
    answer = begin(proxy, {"input": "x", "response_format": "pcm", "options": SLOW})
    heard = [answer.read(1_000)]
    reader = threading.Thread(target=lambda: heard.append(answer.read()))
    reader.start()
    proxy.reload()
    assert ask(proxy, {"input": "x"})[0] == 200
    assert reader.is_alive()
    first.process.terminate()
    before = jobs_of(daemon, "127.0.0.3")
    while "POST /v1/audio/speech 200" not in second.log_file.read_text():
        # A visitor never meets the gateway that goes away.
        status, body, _ = ask(proxy, {"input": "x"}, "127.0.0.3", X_Forwarded_For="6.6.6.6")
        assert status == 200, body
    assert jobs_of(daemon, "127.0.0.3") > before and not jobs_of(daemon, "6.6.6.6")
    reader.join()
    assert sum(map(len, heard)) == 5 * 24_000 * 2
    assert first.process.wait(10) == 0


def test_a_websocket_passes_while_its_text_is_written(proxied: Set) -> None:
    url = f"ws://127.0.0.1:{proxied.proxy.port}/v1/audio/speech/stream"
    with connect(url, proxy=None, source_address=("127.0.0.7", 0)) as socket:
        socket.send(json.dumps({"type": "session.config", "response_format": "pcm"}))
        socket.send(json.dumps({"type": "input.text", "text": "One. Two"}))
        start = json.loads(socket.recv(30))
        assert start["type"] == "audio.start" and isinstance(socket.recv(30), bytes)
        # The customer is the visitor, and not the proxy.
        assert ask_job(proxied.proxy, start["job"], "127.0.0.7") == 200
        assert ask_job(proxied.proxy, start["job"], "127.0.0.8") == 404
        socket.send(json.dumps({"type": "input.done"}))
        while isinstance(message := socket.recv(30), bytes) or json.loads(message)["type"] != "session.done":
            pass


def ask_job(proxy: Proxy, id: str, source: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/audio/jobs/{id}")
        return connection.getresponse().status
