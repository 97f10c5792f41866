"""Every request has an id, a line in the log and its place in the metrics; none of them has a text."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import errors
from .errors import HttpError

_log = logging.getLogger("glmtts.gateway.access")


#: Headers that proxies add.
_PASSED_ON = ("x-forwarded-for", "forwarded", "via", "x-real-ip")


class Metrics:
    """The gateway's own metrics; the daemon has those of jobs and workers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["route", "status"]
        self.requests = Counter("glmtts_gateway_requests_total", "Answered requests.", labels, registry=self.registry)
        self.open = Gauge("glmtts_gateway_open_requests", "Requests that are being answered.", registry=self.registry)
        self.streams = Gauge(
            "glmtts_gateway_open_streams",
            "Answers of which a part is sent, and more to come, and open WebSockets.",
            ["route"],
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "glmtts_gateway_first_byte_seconds",
            "Time from the request to the first byte of its answer's body.",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )


class Observed:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, began = self._metrics, time.monotonic()
        id, seen = f"req_{secrets.token_hex(8)}", _Seen()

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                found = dict(message["headers"])
                seen.job = found.get(b"x-glmtts-job", b"").decode()
                added = [(b"x-request-id", id.encode())]
                if b"cache-control" not in found:
                    # Almost all answers are for one customer, or of one moment.
                    added.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *added]
            elif message.get("body"):
                seen.first_s = seen.first_s or time.monotonic() - began
                seen.bytes += len(message["body"])
                if seen.streams is None and message.get("more_body"):
                    seen.streams = metrics.streams.labels(_path(scope))
                    seen.streams.inc()
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                seen.is_whole = True

        metrics.open.inc()
        try:
            await self._app(scope, receive, observed)
        except Exception as error:
            if not seen.status:
                raise
            # The server would log it, with what it quotes of the request.
            seen.error = errors.code_of(error)
            if not seen.is_whole:
                scope["state"]["break_off"]()
                while (await receive())["type"] != "http.disconnect":
                    pass
        finally:
            metrics.open.dec()
            if seen.streams is not None:
                seen.streams.dec()
            path = _path(scope)
            metrics.requests.labels(path, str(seen.status or 499)).inc()
            if seen.first_s:
                metrics.first_byte.labels(path).observe(seen.first_s)
            _log.info(
                "%s %s %s bytes=%d first_s=%.3f total_s=%.3f request=%s%s%s",
                scope["method"],
                path,
                seen.status or "client gone",
                seen.bytes,
                seen.first_s,
                time.monotonic() - began,
                id,
                f" job={seen.job}" if seen.job else "",
                f" error={seen.error}" if seen.error else "",
            )

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A connection is a request with the status 101, or what refuses it; its line comes at its end."""
        metrics, began = self._metrics, time.monotonic()
        id, seen = f"req_{secrets.token_hex(8)}", _Seen()

        async def observed(message: Message) -> None:
            kind = message["type"]
            if kind in ("websocket.accept", "websocket.http.response.start"):
                seen.status = message.get("status", 101)
                message["headers"] = [*message.get("headers", []), (b"x-request-id", id.encode())]
                if kind == "websocket.accept":
                    seen.streams = metrics.streams.labels(_path(scope))
                    seen.streams.inc()
            elif kind == "websocket.close":
                seen.status, seen.code = seen.status or 403, message.get("code", 1000)
            elif message.get("bytes"):
                seen.first_s = seen.first_s or time.monotonic() - began
                seen.bytes += len(message["bytes"])
            await send(message)

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                seen.code = seen.code or message.get("code", 1005)
            return message

        try:
            await self._app(scope, heard, observed)
        finally:
            if seen.streams is not None:
                seen.streams.dec()
            path = _path(scope)
            metrics.requests.labels(path, str(seen.status or 499)).inc()
            _log.info(
                "WEBSOCKET %s %s bytes=%d first_s=%.3f total_s=%.3f request=%s close=%s",
                *(path, seen.status or "client gone", seen.bytes, seen.first_s, time.monotonic() - began, id),
                seen.code or "none",
            )


class _Seen:
    """What was seen of an answer."""

    status = 0
    bytes = 0
    first_s = 0.0
    job = ""
    #: The code of the error that broke the answer off, and whether it is sent to its end.
    error = ""
    is_whole = False
    #: A WebSocket's close code.
    code = 0
    #: The gauge in which it counts as an open stream.
    streams: Gauge | None = None


def _path(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path", "none"))


async def metrics(request: Request) -> Response:
    """The metrics, for a scraper on this machine or one with a key. What a proxy passes on is not of this machine."""
    peer = request.client.host if request.client else ""
    is_near = peer in ("", "127.0.0.1", "::1") and not any(header in request.headers for header in _PASSED_ON)
    if not is_near and not request.app.state.customers.of(request).has_key:
        raise HttpError(403, "the metrics are for this machine, or with a key", code="forbidden")
    return PlainTextResponse(
        generate_latest(request.app.state.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
