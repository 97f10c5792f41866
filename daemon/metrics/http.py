"""HTTP for Prometheus, served by an event loop in a thread of its own: it may be slow, the daemon's loop is not.

A connection that sends nothing, or reads nothing, delays no other: each has a deadline, and when there are too many
the oldest is closed for the next, one without a request before those with one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

from glmtts.protocol.system_words import error_in_words

from ..config.tcp_access import Address
from .exposition import CONTENT_TYPE

#: Connections at a time, and how long each may take in all. Prometheus has one, and gives up after 10 s by default.
MAX_CONNECTIONS = 64
#: Connections accepted in one turn: a burst of dead ones is gone before it could push a request out.
_BACKLOG = 16
_DEADLINE_S = 10.0
#: How long the daemon's loop may take to hand over its metrics before the request is answered with 503.
_ANSWER_S = 5.0
#: A text that is no older is sent again: this bounds how often the daemon's loop is asked.
_FRESH_S = 0.25
_MAX_REQUEST_BYTES = 8_192
#: How often a port that is taken is tried again.
_RETRY_S = 10.0
_PATH = "/metrics"


class MetricsServer:
    """Serves ``GET /metrics`` at an address. Owns its thread, its sockets, and the text that was written last."""

    def __init__(self, address: Address, ask: Callable[[], None], report: Callable[[str], None]) -> None:
        """Both callables are called in the server's thread.

        Args:
            ask: called when metrics are wanted; it has to lead to :meth:`give`.
            report: takes what is wrong with the address, or ``""`` once it is served.
        """
        self.port = address.port
        self._address = address
        self._ask = ask
        self._report = report
        self._problem: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._closing = asyncio.Event()
        #: The handler of each connection, the oldest first, and whether its request has come.
        self._handlers: dict[asyncio.Task[None], bool] = {}
        self._written_at, self._text = float("-inf"), b""
        #: The text that was asked for and has not come yet.
        self._wanted: asyncio.Future[bytes] | None = None

    # --- in the daemon's loop

    def open(self) -> None:
        """Serve from now on, as soon as the port is free."""
        self._loop = asyncio.new_event_loop()
        # Connections that can't be accepted for want of a descriptor are tried again by asyncio; it need not log that.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._thread.start()

    def give(self, write: Callable[[], bytes]) -> None:
        """Answer the call of ``ask``; ``write`` makes the text, in the server's thread."""
        self._call(lambda: self._take(write))

    def close(self) -> None:
        """Stop serving, and leave the port."""
        self._call(self._closing.set)
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def _call(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(function)

    # --- in the server's thread

    def _run(self) -> None:
        assert self._loop is not None
        loop = self._loop
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            self._tell(f"metrics are no longer served because of a bug: {type(error).__name__}: {error}")

    async def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                listener = self._bind()
            except OSError as error:
                host = f"[{self._address.host}]" if self._address.is_ipv6 else self._address.host
                self._tell(
                    f"metrics can't be served at {host}:{self._address.port}: {error_in_words(error)}. Speech is "
                    "served. Name another address or port in [metrics] listen, or end the program that uses it; it is "
                    f"tried again every {_RETRY_S:g} s"
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_S)
                continue
            self.port = listener.getsockname()[1]
            server = await asyncio.start_server(self._handle, sock=listener, backlog=_BACKLOG, limit=_MAX_REQUEST_BYTES)
            self._tell("")
            await self._closing.wait()
            server.close()

    def _bind(self) -> socket.socket:
        address, ipv6 = self._address, self._address.is_ipv6
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG, dualstack_ipv6=ipv6)

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._report(problem)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        if len(self._handlers) >= MAX_CONNECTIONS:
            oldest = min(self._handlers, key=self._handlers.__getitem__)
            del self._handlers[oldest]
            oldest.cancel()
        self._handlers[handler] = False
        try:
            async with asyncio.timeout(_DEADLINE_S):
                writer.write(await self._answer(handler, reader))
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, was too slow, or had to give way
        finally:
            self._handlers.pop(handler, None)
            writer.transport.abort()

    async def _answer(self, handler: asyncio.Task[None], reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large")
        if handler in self._handlers:
            self._handlers[handler] = True
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return _response("400 Bad Request")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", more="Allow: GET, HEAD\r\n")
        if target.partition(b"?")[0] != _PATH.encode():
            status, body = "404 Not Found", f"glmttsd: its metrics are at {_PATH}\n".encode()
        else:
            status, body = await self._metrics()
        return _response(status, body, only_head=method == b"HEAD")

    async def _metrics(self) -> tuple[str, bytes]:
        if time.monotonic() - self._written_at < _FRESH_S:
            return "200 OK", self._text
        if self._wanted is None:
            self._wanted = asyncio.get_running_loop().create_future()
            self._ask()
        wanted = self._wanted
        try:
            return "200 OK", await asyncio.wait_for(asyncio.shield(wanted), _ANSWER_S)
        except TimeoutError:
            if self._wanted is wanted:
                self._wanted = None
            return "503 Service Unavailable", f"the daemon's loop is stuck: no answer in {_ANSWER_S:g} s\n".encode()
        except Exception as error:
            return "500 Internal Server Error", f"a bug in the daemon: {type(error).__name__}: {error}\n".encode()

    def _take(self, write: Callable[[], bytes]) -> None:
        wanted, self._wanted = self._wanted, None
        try:
            self._text = write()
            self._written_at = time.monotonic()
            if wanted is not None:
                wanted.set_result(self._text)
        except Exception as error:
            if wanted is not None:
                wanted.set_exception(error)


def _response(status: str, body: bytes = b"", *, more: str = "", only_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n{more}"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if only_head else body)
