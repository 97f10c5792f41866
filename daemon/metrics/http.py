"""HTTP for Prometheus: one thread, a few connections, and a deadline for each. It can be slow; the loop is not.

Whoever connects and sends nothing, or reads nothing, is in nobody's way: the oldest connection gives way to the next.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable

from ..config.tcp_access import Address
from .exposition import CONTENT_TYPE

#: Connections at a time, and how long each may take in all. Prometheus has one, and gives up after 10 s by default.
MAX_CONNECTIONS = 16
_DEADLINE_S = 10.0
#: How long an answer may be on its way from the loop before whoever asked is told that there is none.
_ANSWER_S = 5.0
#: What was written a moment ago is good enough: however many ask, the loop is asked so often at most.
_FRESH_S = 0.25
_MAX_REQUEST_BYTES = 8_192
#: How often a port that is taken is tried again.
_RETRY_S = 10.0
_PATH = "/metrics"


class _Connection:
    def __init__(self, sock: socket.socket, now: float) -> None:
        self.socket = sock
        self.due = now + _DEADLINE_S
        self.received = b""
        self.answer = b""
        #: Since when it waits for metrics.
        self.waits_since: float | None = None
        self.only_head = False


class MetricsServer:
    """Serves ``GET /metrics``. ``ask`` is called when metrics are wanted, and must lead to :meth:`give`."""

    def __init__(self, address: Address, ask: Callable[[], None], told: Callable[[str], None]) -> None:
        """``told`` takes what is wrong with the address, or ``""`` when it is served. Both are called in the thread."""
        self._address = address
        self._ask = ask
        self._told = told
        self.port = address.port
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._bind_at = 0.0
        self._accept_at = 0.0
        self._problem: str | None = None
        #: The oldest first.
        self._connections: dict[int, _Connection] = {}
        self._asked = False
        self._known = (float("-inf"), b"")
        #: From :meth:`give`: what is to be written by the thread.
        self._given: Callable[[], bytes] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    # --- in the loop

    def open(self) -> None:
        """Serve from now on, as soon as the port can be had."""
        self._thread.start()

    def give(self, write: Callable[[], bytes]) -> None:
        """Here are the metrics: ``write`` makes their text, in the thread."""
        self._given = write
        self._wake()

    def close(self) -> None:
        """Serve no more."""
        self._closed = True
        self._wake()
        self._thread.join(1.0)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # --- in the thread

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception as error:
            self._told(f"metrics are not served any more, by an error of ours: {type(error).__name__}: {error}")
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            if self._listener is not None:
                self._listener.close()
            self._selector.close()

    def _turn(self) -> None:
        now = time.monotonic()
        if self._listener is None and now >= self._bind_at:
            self._bind(now)
        for key, _ in self._selector.select(self._pause_s(now)):
            if key.fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 512)
            elif key.data is None:
                self._accept()
            else:
                self._serve(key.data)
        write, self._given = self._given, None
        if write is not None:
            self._asked = False
            try:
                self._known = (time.monotonic(), write())
                self._answer_waiting("200 OK", self._known[1])
            except Exception as error:
                words = f"an error of the daemon's: {type(error).__name__}: {error}\n"
                self._answer_waiting("500 Internal Server Error", words.encode())
        self._look_at_clock(time.monotonic())

    def _pause_s(self, now: float) -> float | None:
        due = [connection.due for connection in self._connections.values()]
        waiting = [c.waits_since + _ANSWER_S for c in self._connections.values() if c.waits_since is not None]
        if self._listener is None:
            due.append(self._bind_at)
        elif self._accept_at > now:
            due.append(self._accept_at)
        due += waiting
        return max(0.0, min(due) - now) if due else None

    def _bind(self, now: float) -> None:
        address = self._address
        listener = socket.socket(socket.AF_INET6 if address.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((address.host, address.port))
            listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            listener.close()
            self._bind_at = now + _RETRY_S
            shown = f"[{address.host}]" if address.is_ipv6 else address.host
            self._tell(
                f"metrics can't be served at {shown}:{address.port}: {error.strerror}; speech is not concerned. Name "
                f"another port in [metrics] listen (another daemon may have this one); tried again every {_RETRY_S:g} s"
            )
            return
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)
        self._tell("")

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._told(problem)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(MAX_CONNECTIONS):
            try:
                sock, _peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptor is left, or it went away again: let the others go on.
                self._selector.unregister(self._listener)
                self._accept_at = time.monotonic() + 0.1
                return
            sock.setblocking(False)
            if len(self._connections) >= MAX_CONNECTIONS:
                self._drop(next(iter(self._connections.values())))
            connection = self._connections[sock.fileno()] = _Connection(sock, time.monotonic())
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _serve(self, connection: _Connection) -> None:
        if self._connections.get(connection.socket.fileno()) is not connection:
            return  # it gave way in this very turn
        try:
            if connection.answer:
                self._send(connection)
                return
            data = connection.socket.recv(_MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not data:
            self._drop(connection)
        elif connection.waits_since is None:
            connection.received += data
            self._look_at(connection)

    def _look_at(self, connection: _Connection) -> None:
        head, complete, _ = connection.received.partition(b"\r\n\r\n")
        if not complete:
            if len(connection.received) > _MAX_REQUEST_BYTES:
                self._answer(connection, "431 Request Header Fields Too Large", b"")
            return
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        path = target.partition(b"?")[0].decode("latin-1")
        connection.only_head = method == b"HEAD"
        if not version.startswith(b"HTTP/1."):
            self._answer(connection, "400 Bad Request", b"")
        elif method not in (b"GET", b"HEAD"):
            self._answer(connection, "405 Method Not Allowed", b"", "Allow: GET, HEAD\r\n")
        elif path != _PATH:
            self._answer(connection, "404 Not Found", f"glmttsd: its metrics are at {_PATH}\n".encode())
        elif time.monotonic() - self._known[0] < _FRESH_S:
            self._answer(connection, "200 OK", self._known[1])
        else:
            connection.waits_since = time.monotonic()
            if not self._asked:
                self._asked = True
                self._ask()

    def _answer_waiting(self, status: str, body: bytes) -> None:
        for connection in list(self._connections.values()):
            if connection.waits_since is not None:
                self._answer(connection, status, body)

    def _answer(self, connection: _Connection, status: str, body: bytes, more: str = "") -> None:
        connection.waits_since = None
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{more}"
            "Connection: close\r\n\r\n"
        )
        connection.answer = head.encode() + (b"" if connection.only_head else body)
        try:
            self._send(connection)
        except OSError:
            self._drop(connection)

    def _send(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = connection.socket.send(connection.answer)
            connection.answer = connection.answer[sent:]
        if connection.answer:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _look_at_clock(self, now: float) -> None:
        if self._listener is not None and 0.0 < self._accept_at <= now:
            self._accept_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        for connection in list(self._connections.values()):
            if connection.waits_since is not None and now - connection.waits_since >= _ANSWER_S:
                self._asked = False
                self._answer(
                    connection, "503 Service Unavailable", b"the daemon's loop has not answered in time: it is stuck\n"
                )
            elif now >= connection.due:
                self._drop(connection)
