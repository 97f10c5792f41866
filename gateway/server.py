"""The HTTP server: uvicorn, with limits for connections that say nothing and for each address."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from .settings import Listen, Settings

#: Seconds in which the headers of a request have to come, and that an idle connection stays open.
_HEADERS_S = 15.0
_IDLE_S = 30
#: Connections over all.
_CONNECTIONS = 4_096
#: Seconds that answers under way get at a stop, and that an open connection may still bring a request: a proxy that
#: sends one on a connection that closes at that moment can't know whether it was taken.
_DRAIN_S = 30
_LAST_REQUEST_S = 1.0


class _Connection(H11Protocol):
    """A connection that has to send its headers in time, one of a limited number from its address."""

    of_address: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 256
    stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        _Connection.of_address[self._address] += 1
        self._patience: asyncio.TimerHandle | None = None
        if self._address and _Connection.of_address[self._address] > self.most:
            transport.abort()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _Connection.of_address[self._address] -= 1
        if _Connection.of_address[self._address] <= 0:
            del _Connection.of_address[self._address]
        if self._patience is not None:
            self._patience.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
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
        if self._is_idle() and not self.transport.is_closing():
            self.transport.abort()


def server(app: ASGIApp, settings: Settings, listen: Listen) -> uvicorn.Server:
    """A server for the application; ``run`` or ``serve`` it."""
    _Connection.most = settings.connections_per_address
    place: dict[str, Any] = {"uds": listen.path} if listen.path else {"host": listen.host, "port": listen.port}
    return uvicorn.Server(
        uvicorn.Config(
            app,
            **place,
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_DRAIN_S,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )


def inherited() -> list[socket.socket]:
    """The sockets that systemd hands over (sd_listen_fds(3)); none without it."""
    import os

    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    return [socket.socket(fileno=3 + number) for number in range(int(os.environ.get("LISTEN_FDS", "0")))]
