"""Clients that know the daemon's machine by a name: with several addresses, with another address later, and unknown."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from glmtts.client import AsyncClient, Client, DaemonNotRunning
from glmtts.client.addresses import reach

from ..support.tcp import LOOPBACK, by_tcp
from .conftest import Daemon, Start

NAME = "speech.test"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the name, as /etc/hosts would give them; the order counts."""
    found: list[str] = []
    look_up = socket.getaddrinfo

    def looked_up(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host != NAME:
            return look_up(host, port, *args, **more)
        return [one for address in found for one in look_up(address, port, *args, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    return found


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(tcp={"listen": LOOPBACK})


def port_of(daemon: Daemon) -> int:
    return int(by_tcp(daemon).rpartition(":")[2])


@pytest.fixture
def silent_address() -> Iterator[tuple[str, int]]:
    """An address whose packets are dropped: a listener that accepts nothing, with a full backlog."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.2", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_a_name_with_an_ipv6_address_reaches_a_daemon_on_ipv4(daemon: Daemon, addresses: list[str]) -> None:
    addresses[:] = ["::1", "127.0.0.1"]
    endpoint = f"tcp://{NAME}:{port_of(daemon)}"
    with Client(endpoint, timeout=5) as client:
        assert client.speak("hello").audio

    async def speak() -> bytes:
        async with AsyncClient(endpoint, timeout=5) as client:
            return (await client.speak("hello")).audio

    assert asyncio.run(speak())


def test_an_address_that_does_not_answer_costs_a_moment(addresses: list[str], silent_address: tuple[str, int]) -> None:
    silent, port = silent_address
    with socket.create_server(("127.0.0.1", port)):
        addresses[:] = [silent, silent, "127.0.0.1"]
        began = time.monotonic()
        assert reach(NAME, port) == f"tcp://127.0.0.1:{port}"
        assert time.monotonic() - began < 2.0


def test_a_daemon_that_moves_to_another_address_of_its_name_is_found_again(start: Start, addresses: list[str]) -> None:
    daemon = start(tcp={"listen": LOOPBACK})
    port = port_of(daemon)
    addresses[:] = ["127.0.0.1"]
    with Client(f"tcp://{NAME}:{port}", timeout=15) as client:
        client.ping()
        daemon.stop()
        daemon.configure({"tcp": {"listen": f"127.0.0.2:{port}"}})
        addresses[:] = ["127.0.0.3", "127.0.0.2"]
        daemon.restart()
        client.ping()
        assert client.speak("hello").audio


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("tcp://no-such-name.invalid:9", "the name 'no-such-name.invalid' "),
        (f"tcp://{'a' * 64}.test:9", "can't be the name of a machine"),
        ("tcp://127.0.0.1:1", "Connection refused"),
        ("tcp://127.0.0.1:99999", "ports go from 1 to 65535"),
    ],
)
def test_what_is_wrong_with_a_name_is_said_in_words(endpoint: str, words: str) -> None:
    with pytest.raises(DaemonNotRunning, match=words) as raised:
        Client(endpoint)
    assert "Unknown error" not in str(raised.value)
