"""The same load over HTTP, for the peer: raw sockets, kept alive, since any HTTP library costs more than the peer.

HTTP/1.1 has one request at a time on a connection, so that 64 outstanding jobs need 64 connections.
"""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

import msgpack
from load import TIMEOUT_MS, Throughput
from processes import NotMeasured


class HttpConnection:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_MS / 1000)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def receive(self) -> tuple[int, bytes] | None:
        """Read what there is: the status and body of an answer, or None while it is not complete.

        Raises ConnectionError when the peer has closed the connection.
        """
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("the connection was closed without an answer")
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        return int(head[9:12]), rest[:length]

    def call(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and wait for its answer."""
        self.socket.sendall(request)
        while (answer := self.receive()) is None:
            pass
        return answer

    def close(self) -> None:
        """Close it."""
        self.socket.close()


def encode(body: dict[str, Any]) -> bytes:
    """A request for the service, whole."""
    data: bytes = msgpack.packb(body)
    head = (
        "POST /inference HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class HttpLoad:
    """Load on an HTTP service from ``connections`` connections."""

    def __init__(self, port: int, request: dict[str, Any], audio_bytes: int, connections: int = 64) -> None:
        self._request = encode(request)
        self._at_least = audio_bytes
        self._connections = [HttpConnection(port) for _ in range(connections)]

    def sequential(self, jobs: int) -> list[float]:
        """See load.Load."""
        connection, clock = self._connections[0], time.perf_counter
        times: list[float] = []
        for _ in range(jobs):
            begin = clock()
            answer = connection.call(self._request)
            times.append(clock() - begin)
            self._check(answer)
        return times

    def outstanding(self, seconds: float, each: int) -> Throughput:
        """See load.Load; ``each`` counts for eight connections, as over ZeroMQ."""
        del each
        selector = selectors.DefaultSelector()
        begin = time.perf_counter()
        end = begin + seconds
        for connection in self._connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.socket.sendall(self._request)
        answered, left, running = 0, len(self._connections), True
        while left:
            ready = selector.select(TIMEOUT_MS / 1000)
            if not ready:
                raise NotMeasured(f"{left} jobs were not answered within {TIMEOUT_MS / 1000:g} s")
            if running and time.perf_counter() >= end:
                running = False
                elapsed, counted = time.perf_counter() - begin, answered
            for key, _ in ready:
                answer = key.data.receive()
                if answer is None:
                    continue
                self._check(answer)
                answered += 1
                if running:
                    key.data.socket.sendall(self._request)
                else:
                    left -= 1
        selector.close()
        return Throughput(counted, elapsed)

    def close(self) -> None:
        """See load.Load."""
        for connection in self._connections:
            connection.close()

    def _check(self, answer: tuple[int, bytes]) -> None:
        status, body = answer
        if status != 200 or len(body) < self._at_least:
            raise NotMeasured(f"a job was answered with status {status}: {body[:100]!r}")
