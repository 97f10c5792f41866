"""The HTTP server: uvicorn, with limits for connections that say nothing and for each address."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import service_manager
from .settings import Listen, Settings

#: Seconds in which the headers of a request have to come, and that an idle connection stays open.
_HEADERS_S = 15.0
_IDLE_S = 30
#: Connections over all.
_CONNECTIONS = 4_096
#: Seconds that answers under way get at a stop.
_DRAIN_S = 30


class _Connection(H11Protocol):
    """A connection that has to send its headers in time, one of a limited number from its address."""

    of_address: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 256

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
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif not answering and self._patience is None:
            self._expect()

    def _expect(self) -> None:
        self._patience = self.loop.call_later(_HEADERS_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.abort()


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


def server(app: ASGIApp, settings: Settings, listen: Listen, reload: Callable[[], None]) -> uvicorn.Server:
    """A server for the application; ``run`` or ``serve`` it in the main thread. SIGHUP calls ``reload``."""
    feed_s = service_manager.feed_s()
    _Connection.most = settings.connections_per_address
    place: dict[str, Any] = {"uds": listen.path} if listen.path else {"host": listen.host, "port": listen.port}
    return _Server(
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
            callback_notify=_feed_watchdog if feed_s else None,
            timeout_notify=int(feed_s or 0),
        ),
        reload,
    )
