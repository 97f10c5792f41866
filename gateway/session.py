"""``/session``: who the page's visitor is, and the key as a cookie, which scripts can't read."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmtts.client import AsyncClient, GlmttsError

from . import __version__, bodies
from .customers import COOKIE, Customers
from .errors import HttpError
from .requests import FORMATS

#: Seconds that the browser keeps the key; the file of keys says how long it is valid.
_KEPT_S = 30 * 24 * 3600
_MOST_BYTES = 4_096
#: Seconds to wait for the daemon: a page without it shows that it is away.
_PATIENCE_S = 3.0


class Login(Struct, kw_only=True):
    """The body of ``POST /session``."""

    key: str


async def show(request: Request) -> Response:
    """Who asks, and what is there for them."""
    customers: Customers = request.app.state.customers
    answer: dict[str, Any] = {
        "version": __version__,
        "needs_key": customers.needs_key,
        "has_keys": customers.has_keys,
        "customer": None,
        "has_key": False,
        "priorities": [],
        "formats": list(FORMATS),
    }
    try:
        customer = customers.of(request)
    except HttpError as error:
        if error.status != 401:
            raise
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})
    answer |= {"customer": customer.name, "has_key": customer.has_key, "priorities": customer.priorities}
    client: AsyncClient = request.app.state.client
    try:
        info = await client.info(timeout=_PATIENCE_S)
    except GlmttsError:
        answer["daemon"] = None
    else:
        answer["daemon"] = {
            "ready": info.ready,
            "features": info.features,
            "clones_voices": info.clones_voices,
            "default_voice": info.default_voice,
            "sample_rate": info.sample_rate,
            "text_chars": info.limits.get("text_chars"),
            "recording_min_s": info.limits.get("recording_min_s"),
            "recording_max_s": info.limits.get("recording_max_s"),
            "durable": info.limits.get("durable", False),
        }
    return JSONResponse(answer, headers={"Cache-Control": "no-store"})


async def log_in(request: Request) -> Response:
    """Change a key into a cookie. Raises HttpError for a key that is not known.

    The cookie is the key: it can't be forged, every gateway with the same file of keys takes it, before and after a
    restart, and a key that is taken out of the file is out of force in the cookie too.
    """
    customers: Customers = request.app.state.customers
    customers.check_origin(request)
    asked, _ = bodies.decode(await bodies.read(request, _MOST_BYTES), Login)
    key = asked.key.strip()
    customers.check_key(key)
    answer = Response(status_code=204, headers={"Cache-Control": "no-store"})
    _set(answer, request, key, _KEPT_S)
    return answer


async def log_out(request: Request) -> Response:
    """Have the browser forget the key."""
    request.app.state.customers.check_origin(request)
    answer = Response(status_code=204, headers={"Cache-Control": "no-store"})
    _set(answer, request, "", 0)
    return answer


def _set(answer: Response, request: Request, key: str, kept_s: int) -> None:
    secure = request.app.state.customers.is_secure(request)
    answer.set_cookie(COOKIE, key, max_age=kept_s, path="/", secure=secure, httponly=True, samesite="strict")
