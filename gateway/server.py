"""The HTTP server: uvicorn, with limits for connections that say nothing and for each address."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from . import service_manager, speech_stream
from .errors import HttpError
from .guard import MAX_HEADERS
from .memory import Share
from .settings import Settings

#: Seconds in which the headers of a request have to come, and that an idle connection stays open.
_HEADERS_S = 15.0
_IDLE_S = 30
#: Seconds in which a client that has an answer to read reads nothing of it: then it is gone. Its job is cancelled.
_STALLED_S = 60.0
#: Fragments of a message of a WebSocket: one of 32 MiB in fragments of a byte would take 1.3 GiB.
_FRAGMENTS = 1_024
#: SO_LINGER: on, for 0 s.
_AT_ONCE = struct.pack("ii", 1, 0)
#: Connections over all.
_CONNECTIONS = 4_096
#: Seconds that answers under way get at a stop, and that an open connection may still bring a request: a proxy that
#: sends one on a connection that closes at that moment can't know whether it was taken.
_DRAIN_S = 30
_LAST_REQUEST_S = 1.0


class _Stalls(asyncio.Protocol):
    """Ends a connection whose client reads nothing of what it is sent."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """More is to be sent than the client reads."""
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_S, self._look, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _look(self, unsent: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= unsent:
            self._reset()
        else:
            self._stalled = self.loop.call_later(_STALLED_S, self._look, left)

    def _reset(self) -> None:
        # Without this the system keeps what it was given to send, and the client hears nothing, or a good end.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._stalled is not None:
            self._stalled.cancel()


class _Connection(_Stalls, H11Protocol):
    """A connection that has to send its headers in time, one of a limited number from its address."""

    of_address: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 256
    proxies: ClassVar[list[ipaddress.IPv4Network | ipaddress.IPv6Network]] = []
    stopping = False
    upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        _Connection.of_address[self._address] += 1
        self._patience: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, "break_off": self._break_off}
        # All visitors of a proxy come from its address, and programs at a unix socket have none.
        counted = self._address and not any(ipaddress.ip_address(self._address) in known for known in self.proxies)
        if counted and _Connection.of_address[self._address] > self.most:
            message = f"there are {self.most} connections from {self._address}, and more are not accepted"
            self._refuse(HttpError(429, message, code="too_many_connections", retryable=True, retry_after_s=1.0))
        elif len(self.connections) > _CONNECTIONS:
            message = "this gateway has as many connections as it accepts"
            self._refuse(HttpError(503, message, code="unavailable", retryable=True, retry_after_s=1.0))
        else:
            self._expect()

    def _break_off(self) -> None:
        """End an answer that fails in its middle."""
        if self.scope["http_version"] == "1.0":
            # It has no end but the connection's.
            self._reset()
        else:
            self.transport.close()

    def _refuse(self, error: HttpError) -> None:
        """Answer, whatever was or will be asked, and close."""
        answer = error.response()
        headers = b"".join(b"%s: %s\r\n" % header for header in [*answer.raw_headers, CLOSE_HEADER])
        status = HTTPStatus(error.status)
        self.transport.write(b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()))
        self.transport.write(headers + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def send_400_response(self, _: str) -> None:
        """Answer what is no HTTP. It is called where the error is caught."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._refuse(_no_http(sys.exception()))
        else:
            # In the middle of an answer, or behind it.
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _Connection.leave(self._address)
        if self._patience is not None:
            self._patience.cancel()

    @staticmethod
    def leave(address: str) -> None:
        """There is one connection less from this address."""
        _Connection.of_address[address] -= 1
        if _Connection.of_address[address] <= 0:
            del _Connection.of_address[address]

    def _should_upgrade(self) -> bool:
        # What asks for an upgrade elsewhere, or with a body, is answered as what it is without.
        plain = self.scope["method"] == "GET" and self.scope["path"] == speech_stream.PATH
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return plain and not has_body and super()._should_upgrade()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Leave the connection to the protocol for WebSockets."""
        self.upgraded = True
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()
        self._patience = self._stalled = None
        super().handle_websocket_upgrade(event)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.upgraded:
            return
        answering = not self._is_idle()
        if self.stopping and answering:
            self.stopping = False
            self.shutdown()
        if answering and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif not answering and self._patience is None:
            self._expect()

    def shutdown(self) -> None:
        """The server stops: the answer under way is the last one, or the next one if it comes soon."""
        if self._is_idle():
            self.stopping = True
            self.loop.call_later(_LAST_REQUEST_S, self._stop)
        else:
            self.cycle.scope["headers"] = [*self.cycle.scope["headers"], CLOSE_HEADER]
            super().shutdown()

    def _stop(self) -> None:
        if self._is_idle() and not self.transport.is_closing():
            super().shutdown()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if not self._is_idle() or self.transport.is_closing():
            return
        begun = self.conn.trailing_data[0]
        if begun and self.conn.our_state is h11.IDLE:
            message = f"the headers did not come within {_HEADERS_S:g} s"
            self._refuse(HttpError(408, message, code="timeout", retryable=True))
        else:
            self.transport.abort()


class _WebSocket(_Stalls, WebSocketsSansIOProtocol):
    """A connection after its upgrade. What is spoken on it at a stop of the server is spoken to its end."""

    def __init__(self, config: uvicorn.Config, server_state: Any, app_state: dict[str, Any], **more: Any) -> None:
        self._stopping = asyncio.Event()
        self._unread: Share | None = None
        super().__init__(config, server_state, {**app_state, "stopping": self._stopping}, **more)
        # Its messages are of what clients do wrong.
        self.logger = self.conn.logger = logging.getLogger("glmtts.gateway.websocket")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._unread is not None:
            self._unread.free()
        _Connection.leave(self.client[0] if self.client else "")

    def data_received(self, data: bytes) -> None:
        if self.handshake_complete and not self._hold(len(data)):
            return
        super().data_received(data)
        if len(self.frames) > _FRAGMENTS and not self.transport.is_closing():
            self.conn.fail(1008, f"a message has over {_FRAGMENTS} fragments")
            self.handle_parser_exception()
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # A handshake with headers that are too long, or too many; uvicorn would leave it without an answer.
            self.close_sent = True
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def _hold(self, count: int) -> bool:
        """Count the bytes of a message that is not whole. Without memory for them the connection is closed."""
        if self._unread is None and (held := self.scope["state"].get("held")) is not None:
            self._unread = held.another()
        try:
            if self._unread is not None:
                self._unread.take(count)
        except HttpError as error:
            self.conn.fail(1013, error.message[:100])
            self.handle_parser_exception()
            return False
        return True

    def send_receive_event_to_app(self) -> None:
        """A message is whole."""
        super().send_receive_event_to_app()
        if self._unread is not None:
            self._unread.free()

    def shutdown(self) -> None:
        """The server stops."""
        if self.handshake_complete and not (self.close_sent or self.disconnected):
            self._stopping.set()
        else:
            super().shutdown()


def _no_http(error: BaseException | None) -> HttpError:
    """The answer to bytes that are no request."""
    status = getattr(error, "error_status_hint", 400)
    if status == 431:
        return HttpError(431, f"the headers are over {MAX_HEADERS >> 10} KiB", code="headers_too_large")
    if status == 501:
        return HttpError(501, "of the transfer codings only chunked is understood", code="not_implemented")
    return HttpError(400, f"this is no HTTP/1.1 request: {str(error)[:200]}")


class _Server(uvicorn.Server):
    """Tells the service manager how it is, and reads the keys again at SIGHUP."""

    def __init__(self, config: uvicorn.Config, reload: Callable[[], None]) -> None:
        super().__init__(config)
        self._reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            service_manager.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service_manager.notify("STOPPING=1")
        await super().shutdown(sockets)


async def _feed_watchdog() -> None:
    service_manager.notify("WATCHDOG=1")


def server(app: ASGIApp, settings: Settings, reload: Callable[[], None]) -> uvicorn.Server:
    """A server for the application; ``serve`` sockets by it in the main thread. SIGHUP calls ``reload``."""
    feed_s = service_manager.feed_s()
    # Its warnings are for each wrong request, without a hint whose it was.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("glmtts.gateway.websocket").setLevel(logging.CRITICAL)
    _Connection.proxies = [ipaddress.ip_network(known) for known in settings.trusted_proxies if known != "unix"]
    _Connection.most = settings.connections_per_address
    return _Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws=_WebSocket,
            # A recording comes in base64, as over HTTP.
            ws_max_size=settings.body_mib << 20,
            # Pings keep proxies from closing what is silent. A listener at the speed of the speech answers them late.
            ws_ping_timeout=None,
            # Audio is compressed already.
            ws_per_message_deflate=False,
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_DRAIN_S,
            h11_max_incomplete_event_size=MAX_HEADERS,
            callback_notify=_feed_watchdog if feed_s else None,
            timeout_notify=int(feed_s or 0),
        ),
        reload,
    )
