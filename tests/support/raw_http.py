"""Bytes to a gateway as no HTTP library sends them, and the answers."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
from collections.abc import Iterator
from socket import SocketIO
from typing import Any, NamedTuple

HEADERS = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"


class Answer(NamedTuple):
    """``status`` is 0 for a connection that closes without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, in the form of every error."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"], error
        return error


class _Kept(io.BufferedReader):
    """Read ahead for one answer after the other."""

    def close(self) -> None:
        pass


class Connection:
    """Sends bytes, and reads answers."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self._file = _Kept(SocketIO(socket, "rb"))

    def makefile(self, _: str) -> io.BufferedReader:
        """For HTTPResponse, which takes this for a socket."""
        return self._file

    def send(self, *pieces: bytes) -> int:
        """Send until the other side closes the connection. Returns the number of bytes."""
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                self.socket.sendall(piece)
                sent += len(piece)
        return sent

    def answer(self) -> Answer:
        """The next answer."""
        answer = http.client.HTTPResponse(self)  # type: ignore[arg-type]  # all that it asks of a socket is makefile()
        try:
            answer.begin()
            body = answer.read()
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return Answer(0, {}, b"")
        return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, body)


@contextlib.contextmanager
def connected(port: int, source: str = "127.0.0.1", patience_s: float = 30.0) -> Iterator[Connection]:
    """A connection from this address."""
    with socket.create_connection(("127.0.0.1", port), patience_s, source_address=(source, 0)) as connection:
        yield Connection(connection)


def say(port: int, *pieces: bytes, source: str = "127.0.0.1") -> Answer:
    """Send these bytes as far as they are taken, and return the first answer."""
    with connected(port, source) as connection:
        connection.send(*pieces)
        return connection.answer()


def form(*parts: tuple[str, bytes], boundary: str = "b", end: str = "--") -> bytes:
    """A form of parts, each the value of Content-Disposition and its content."""
    lines = [f"--{boundary}\r\nContent-Disposition: {name}\r\n\r\n".encode() + content for name, content in parts]
    return b"\r\n".join([*lines, f"--{boundary}{end}\r\n".encode()])
