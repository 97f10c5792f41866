"""Listeners over HTTP: raw sockets that note when each part of an answer came, since any HTTP library costs more."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from load import TIMEOUT_MS, Throughput
from processes import NotMeasured


class Answer:
    """An answer of HTTP/1.1, of a known length or in chunks, as its bytes come."""

    def __init__(self, keep: bool = False) -> None:
        self.status = 0
        self.bytes = 0
        #: The body, if it is to be kept.
        self.content = bytearray()
        self._keep = keep
        self.complete = False
        self._buffer = b""
        #: Bytes that are left of the body or of the chunk; None before the head.
        self._left: int | None = None
        self._chunked = False

    def add(self, data: bytes) -> int:
        """How many bytes of the body are in ``data``."""
        before = self.bytes
        self._buffer += data
        if self._left is None and not self._head():
            return 0
        while self._buffer and not self.complete:
            if self._left:
                taken = min(self._left, len(self._buffer))
                self.bytes += taken
                if self._keep:
                    self.content += self._buffer[:taken]
                self._left -= taken
                self._buffer = self._buffer[taken:]
                self.complete = not self._chunked and not self._left
                continue
            line, found, rest = self._buffer.removeprefix(b"\r\n").partition(b"\r\n")
            if not found:
                break
            self._left, self._buffer = int(line, 16), rest
            if self._left == 0:
                self.complete = True
        return self.bytes - before

    def _head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        self.status, self._buffer = int(head[9:12]), rest
        _, has_length, length = head.lower().partition(b"content-length:")
        self._chunked = not has_length
        self._left = int(length.split(b"\r\n", 1)[0]) if has_length else 0
        self.complete = not self._chunked and not self._left
        return True


class Connection:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_MS / 1000)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = Answer()

    def ask(self, request: bytes, *, keep: bool = False) -> None:
        """Send a request. ``keep``: its answer's body is kept."""
        self.answer = Answer(keep)
        self.socket.sendall(request)

    def receive(self) -> int:
        """Read what there is; returns how many bytes of the body came. Raises ConnectionError when it is closed."""
        if not (data := self.socket.recv(65_536)):
            raise ConnectionError("the connection was closed")
        return self.answer.add(data)

    def finish(self) -> Answer:
        """Read the rest."""
        while not self.answer.complete:
            self.receive()
        return self.answer

    def close(self) -> None:
        """Close it."""
        self.socket.close()


def encode(path: str, body: dict[str, Any]) -> bytes:
    """A request, whole."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return f"{head}\r\n\r\n".encode() + data


def first_byte_s(connection: Connection, request: bytes, after: bytes = b"") -> float:
    """Seconds from the request to the first byte of audio, or to ``after`` in the body; the rest is read too."""
    begin = time.perf_counter()
    connection.ask(request, keep=bool(after))
    while not connection.receive() or after not in connection.answer.content:
        if connection.answer.complete:
            break
    took = time.perf_counter() - begin
    if connection.finish().status != 200:
        raise NotMeasured(f"a request was answered with status {connection.answer.status}")
    return took


def short_jobs(connections: Sequence[Connection], request: bytes, seconds: float) -> Throughput:
    """Keep one request outstanding on every connection for ``seconds``."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.ask(request)
        begin = time.perf_counter()
        end, answered, left, running = begin + seconds, 0, len(connections), True
        counted, elapsed = 0, seconds
        while left:
            if not (ready := selector.select(TIMEOUT_MS / 1000)):
                raise NotMeasured(f"{left} requests were not answered within {TIMEOUT_MS / 1000:g} s")
            if running and time.perf_counter() >= end:
                running, counted, elapsed = False, answered, time.perf_counter() - begin
            for key, _ in ready:
                connection = key.data
                connection.receive()
                if not connection.answer.complete:
                    continue
                if connection.answer.status != 200:
                    raise NotMeasured(f"a request was answered with status {connection.answer.status}")
                answered += 1
                if running:
                    connection.ask(request)
                else:
                    left -= 1
    return Throughput(counted, elapsed)


@dataclass(slots=True)
class Heard:
    """What one listener heard: it plays from the first byte on, and must never run dry."""

    asked_at: float
    first_at: float = 0.0
    audio_s: float = 0.0
    #: The least that was left to play when more came; below zero is a gap.
    reserve_s: float = field(default=float("inf"))
    gaps: int = 0
    ended: bool = False

    def more(self, audio_s: float, now: float) -> None:
        """So much audio came."""
        if not self.first_at:
            self.first_at = now
        else:
            reserve_s = self.audio_s - (now - self.first_at)
            self.reserve_s = min(self.reserve_s, reserve_s)
            self.gaps += reserve_s < 0
        self.audio_s += audio_s


def listen(count: int, request: Callable[[int], bytes], port: int, bytes_a_second: int, limit_s: float) -> list[Heard]:
    """``count`` listeners at once, each with a job of its own."""
    connections = [Connection(port) for _ in range(count)]
    heard: list[Heard] = []
    try:
        with selectors.DefaultSelector() as selector:
            for number, connection in enumerate(connections):
                selector.register(connection.socket, selectors.EVENT_READ, (number, connection))
                heard.append(Heard(time.perf_counter()))
                connection.ask(request(number))
            until = time.perf_counter() + limit_s
            while not all(listener.ended for listener in heard):
                ready = selector.select(max(0.0, until - time.perf_counter()))
                if not ready:
                    raise NotMeasured(f"{sum(not h.ended for h in heard)} streams have not ended within {limit_s:g} s")
                for key, _ in ready:
                    number, connection = key.data
                    got = connection.receive()
                    if connection.answer.status not in (0, 200):
                        raise NotMeasured(f"a listener was answered with status {connection.answer.status}")
                    if got:
                        heard[number].more(got / bytes_a_second, time.perf_counter())
                    if connection.answer.complete:
                        heard[number].ended = True
                        selector.unregister(connection.socket)
    finally:
        for connection in connections:
            connection.close()
    return heard


def most_at_once(heard: Sequence[Heard]) -> int:
    """The largest number of listeners that were playing at the same moment."""
    ends = [(one.first_at, 1) for one in heard] + [(one.first_at + one.audio_s, -1) for one in heard]
    most = now = 0
    for _, step in sorted(ends):
        now += step
        most = max(most, now)
    return most
