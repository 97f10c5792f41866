"""What the gateway refuses before any route sees it, and the memory that requests may hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from glmtts.gateway.app import build
from glmtts.gateway.customers import Customers
from glmtts.gateway.errors import HttpError
from glmtts.gateway.memory import Memory
from glmtts.gateway.settings import Settings
from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey


def ask(
    app: ASGIApp,
    path: str = "/livez",
    *,
    method: str = "GET",
    peer: str | None = "127.0.0.1",
    at: str | None = "127.0.0.1",
    kind: str = "http",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request without a body, from ``peer`` to the gateway at ``at`` (None: a unix socket)."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request" if kind == "http" else "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": raw,
        "scheme": "http",
        "http_version": "1.1",
        "client": (peer, 1) if peer else None,
        "server": (at, 80) if at else ("/run/http.sock", None),
    }
    asyncio.run(app(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return int(sent[0]["code"]), {}, b""
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file of keys, and the header of its key."""
    key = api_keys.new_key()
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(api_keys.entry(ApiKey(name="anna", sha256=api_keys.digest(key))))
    return str(file), f"Bearer {key}"


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("app.localhost:8080", True),
        ("speechbox", True),
        ("192.168.1.9:8080", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("evil.example.", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_a_site_whose_name_leads_to_this_machine_is_refused(host: str, served: bool, keyed: tuple[str, str]) -> None:
    assert ask(build(Settings()), host=host)[0] == (200 if served else 403)
    assert ask(build(Settings()), host=host, kind="websocket")[0] == (1000 if served else 403)
    # Where the address is no secret, where a key is needed, or behind a proxy that is known, any name will do.
    assert ask(build(Settings(anonymous=True)), host=host, at="192.0.2.1", peer="192.0.2.9")[0] == 200
    assert ask(build(Settings(api_keys=keyed[0])), host=host)[0] == 200
    assert ask(build(Settings(trusted_proxies=["127.0.0.1"])), host=host)[0] == 200
    assert ask(build(Settings()), host=host, at=None, peer=None)[0] == 200


def test_a_length_that_is_said_twice_ends_the_connection() -> None:
    status, headers, body = ask(build(Settings()), host="localhost", content_length="1", transfer_encoding="chunked")
    assert (status, headers["connection"]) == (400, "close") and json.loads(body)["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/livez", {"a": "b" * 60_000}, 200),
        ("/livez", {"a": "b" * 70_000}, 431),
        ("/livez", {f"a{number}": "" for number in range(10_000)}, 431),
        ("/" + "a" * 8_000, {}, 404),
        ("/" + "a" * 9_000, {}, 414),
    ],
)
def test_headers_and_addresses_have_a_longest(path: str, headers: dict[str, str], status: int) -> None:
    assert ask(build(Settings()), path, **{"host": "localhost", **headers})[0] == status


def test_the_metrics_are_for_this_machine_or_with_a_key(keyed: tuple[str, str]) -> None:
    app = build(Settings(api_keys=keyed[0], listen="0.0.0.0:80"))
    assert ask(app, "/metrics", at="192.0.2.1")[0] == 200
    assert ask(app, "/metrics", at="192.0.2.1", peer="192.0.2.9")[0] == 401
    assert ask(app, "/metrics", at="192.0.2.1", peer="192.0.2.9", authorization=keyed[1])[0] == 200
    # A visitor of a proxy on this machine comes from this machine too.
    for header in ("x_forwarded_for", "forwarded", "via", "x_real_ip"):
        assert ask(app, "/metrics", **{header: "192.0.2.9"})[0] == 401
    # Where no key is needed, that is no key.
    assert ask(build(Settings(anonymous=True)), "/metrics", at="192.0.2.1", peer="192.0.2.9")[0] == 403
    assert ask(build(Settings()), "/metrics", host="localhost", x_forwarded_for="192.0.2.9")[0] == 403


def test_no_site_is_allowed_to_read_answers_unless_it_is_listed() -> None:
    site = "https://app.example.com"
    assert not any(
        name.startswith("access-control") for name in ask(build(Settings()), host="localhost", origin=site)[1]
    )
    listed = build(Settings(cors_origins=[site]))
    assert ask(listed, host="localhost", origin=site)[1]["access-control-allow-origin"] == site
    assert "access-control-allow-origin" not in ask(listed, host="localhost", origin="https://evil.example")[1]
    assert "access-control-allow-credentials" not in ask(listed, host="localhost", origin=site)[1]


def test_the_memory_for_bodies_is_shared_and_freed() -> None:
    memory = Memory(Customers(Settings()), 1 << 20)

    def take(address: str, count: int) -> Any:
        share = memory.share({"type": "http", "headers": [], "client": (address, 1)})
        share.take(count)
        return share

    # Four for one address, eight for all; small ones are not counted.
    first = [take("192.0.2.1", 1 << 20) for _ in range(4)]
    with pytest.raises(HttpError) as refused:
        take("192.0.2.1", 1 << 20)
    assert (refused.value.status, refused.value.retryable) == (503, True)
    others = [take(f"192.0.2.{number}", 1 << 20) for number in range(2, 6)]
    with pytest.raises(HttpError):
        take("192.0.2.9", 1 << 20)
    take("192.0.2.9", 60_000)
    for share in [*first, *others]:
        share.free()
        share.free()
    # A file that is larger than all bodies is sent if it is the only one.
    large = take("192.0.2.1", 1 << 30)
    with pytest.raises(HttpError):
        take("192.0.2.2", 1 << 20)
    large.free()
    take("192.0.2.2", 8 << 20)


def test_what_a_refused_request_held_is_free_again() -> None:
    memory = Memory(Customers(Settings()), 1 << 20)
    share = memory.share({"type": "http", "headers": [], "client": ("192.0.2.1", 1)})
    with pytest.raises(HttpError):
        for _ in range(100):
            share.take(100_000)
    share.free()
    assert not memory._held
