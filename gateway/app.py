"""The ASGI application: its routes, its connection to the daemon, and the answer to each kind of error."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from glmtts.client import AsyncClient, GlmttsError

from . import (
    batch,
    docs_page,
    errors,
    jobs,
    lists,
    observed,
    openapi,
    page,
    session,
    speech,
    speech_stream,
    task_api,
    usage,
    voices,
)
from .bodies import ClientGoneError
from .customers import Customers
from .errors import HttpError
from .guard import Guard
from .memory import Memory
from .settings import Settings

_log = logging.getLogger("glmtts.gateway")

_Handler = Callable[[Request], Awaitable[Response]]


def _by_method(path: str, **handlers: _Handler) -> Route:
    """One route for several methods, so that its 405 names them all."""

    async def handle(request: Request) -> Response:
        # Starlette adds HEAD to GET.
        return await handlers[request.method if request.method in handlers else "GET"](request)

    return Route(path, handle, methods=list(handlers))


_ROUTES: list[BaseRoute] = [
    Route("/", page.page, methods=["GET"]),
    Route("/page/{path:path}", page.page, methods=["GET"]),
    _by_method("/session", GET=session.show, POST=session.log_in, DELETE=session.log_out),
    Route("/v1/audio/speech", speech.speech, methods=["POST"]),
    Route("/v1/audio/speech/batch", batch.batch, methods=["POST"]),
    WebSocketRoute(speech_stream.PATH, speech_stream.stream),
    Route(speech_stream.PATH, speech_stream.needs_upgrade, methods=["GET"]),
    _by_method("/v1/audio/jobs", GET=jobs.listed, POST=jobs.create),
    _by_method("/v1/audio/jobs/{id}", GET=jobs.one, DELETE=jobs.delete),
    Route("/v1/audio/jobs/{id}/audio", jobs.audio, methods=["GET"]),
    Route("/v1/audio/jobs/{id}/events", jobs.events, methods=["GET"]),
    Route("/v1/audio/usage", usage.usage, methods=["GET"]),
    _by_method("/v1/audio/voices", GET=voices.listed, POST=voices.create),
    Route("/v1/audio/voices/{id}", voices.delete, methods=["DELETE"]),
    Route("/v1/audio/voices/{id}/sample", voices.sample, methods=["GET"]),
    Route("/v1/audio/models", lists.audio_models, methods=["GET"]),
    Route("/v1/models", lists.models, methods=["GET"]),
    Route("/api/tts", task_api.create, methods=["POST"]),
    Route("/api/tts/{id}", task_api.one, methods=["GET"]),
    Route("/api/tts/{id}/audio", task_api.audio, methods=["GET"]),
    Route("/docs", docs_page.docs, methods=["GET"]),
    Route("/openapi.json", openapi.openapi, methods=["GET"]),
    Route("/livez", lists.live, methods=["GET"]),
    Route("/readyz", lists.ready, methods=["GET"]),
    Route("/metrics", observed.metrics, methods=["GET"]),
]


def build(settings: Settings, customers: Customers | None = None) -> ASGIApp:
    """The application. Raises ApiKeyProblem and OSError for the file of keys."""
    customers = customers or Customers(settings)
    metrics = observed.Metrics()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.client = AsyncClient(settings.endpoint or None, reconnect_s=10.0)
        try:
            yield
        finally:
            await app.state.client.close()

    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type", "idempotency-key", "if-range", "range", "x-api-key"],
        expose_headers=["x-request-id", "x-glmtts-job", "x-audio-sample-rate", "retry-after", "x-glmtts-ignored"],
    )
    app = Starlette(
        routes=_ROUTES,
        middleware=[cors] if settings.cors_origins else [],
        lifespan=lifespan,
        exception_handlers={
            HttpError: _on_http_error,
            GlmttsError: _on_daemon_error,
            HTTPException: _on_no_route,
            ClientGoneError: _on_client_gone,
            Exception: _on_bug,
        },
    )
    app.state.settings, app.state.customers, app.state.metrics = settings, customers, metrics
    # 307 to a path with a slash or without would name http:// where a proxy speaks https.
    app.router.redirect_slashes = False
    memory = Memory(customers, settings.body_mib << 20)
    return observed.Observed(Guard(app, customers, memory), metrics)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return error.response()


async def _on_daemon_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GlmttsError)
    return errors.of_daemon(error).response()


async def _on_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    words = {404: f"there is no {path} here", 405: f"{request.method[:20]} is not for {path}"}
    headers = dict(error.headers or {})
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return HttpError(
        error.status_code, words.get(error.status_code, error.detail), code=code, headers=headers
    ).response()


async def _on_client_gone(_: Request, __: Exception) -> Response:
    """There is no connection any more that could carry this."""
    return Response(status_code=499)


async def _on_bug(request: Request, error: Exception) -> Response:
    # One that ends an answer that has begun is in the access log, without its message: that may quote a text.
    if errors.behind(error) is None:
        _log.error("internal error at %s", request.url.path, exc_info=error)
    return HttpError(500, "an internal error of the gateway, which is in its log", code="internal_error").response()
