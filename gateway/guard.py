"""Requests that no route is to see: ambiguous in length, too long in name, or sent by a page of another site.

What a request holds in memory is counted from here to its end.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .customers import Customers
from .errors import HttpError
from .memory import Memory

#: Bytes of a path with its query.
_MAX_TARGET = 8_192
#: Bytes of all headers.
MAX_HEADERS = 64 << 10


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, customers: Customers, memory: Memory) -> None:
        self._app = app
        self._customers = customers
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrong = self._wrong(scope) if scope["type"] in {"http", "websocket"} else None
        if wrong is None:
            held = scope.setdefault("state", {})["held"] = self._memory.share(scope)
            try:
                await self._app(scope, receive, send)
            finally:
                held.free()
        else:
            await wrong.response()(scope, receive, send)

    def _wrong(self, scope: Scope) -> HttpError | None:
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy that goes by the other of the two sees other requests on this connection (RFC 9112, 6.3).
            message = "the request has both Content-Length and Transfer-Encoding"
            return HttpError(400, message, headers={"Connection": "close"})
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADERS:
            # The server looks only where they come in several packets.
            return HttpError(431, f"the headers are over {MAX_HEADERS >> 10} KiB", code="headers_too_large")
        if len(scope["raw_path"]) + len(scope["query_string"]) > _MAX_TARGET:
            return HttpError(414, f"the address is over {_MAX_TARGET} bytes long", code="uri_too_long")
        if not self._customers.needs_key and _is_local(scope) and not _is_own_name(headers.get("host", "")):
            # A page of another site that has its own name resolve to 127.0.0.1 would speak as its visitor.
            message = (
                f"{headers['host'][:100]!r} is no name of this machine; from here use localhost or an address. A proxy "
                'on this machine is to be named: [gateway] trusted_proxies = ["127.0.0.1"]'
            )
            return HttpError(403, message, code="forbidden") if not self._customers.from_proxy(scope) else None
        return None


def _is_local(scope: Scope) -> bool:
    """Whether the connection came to a loopback address."""
    try:
        return ipaddress.ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _is_own_name(host: str) -> bool:
    """Whether a Host can't be the name of a site: an address, or a name without a dot."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name.rstrip(".") or name.lower().rstrip(".").endswith(".localhost")
    return True
