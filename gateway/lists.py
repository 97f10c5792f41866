"""What programs ask before they speak: models, voices, and how the service is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from glmtts.client import AsyncClient, GlmttsError

#: Names under which programs may ask for the one model there is.
MODELS = ("glm-tts", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")


def _check(request: Request) -> None:
    """Some programs read the lists without their key (Open WebUI): ``public_lists`` allows it."""
    if not request.app.state.settings.public_lists:
        request.app.state.customers.of(request)


async def models(request: Request) -> Response:
    """The names for ``model``."""
    _check(request)
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "glmtts"} for name in MODELS]
    return JSONResponse({"object": "list", "data": data})


async def audio_models(request: Request) -> Response:
    """The names for ``model``, as Open WebUI reads them."""
    _check(request)
    return JSONResponse({"models": [{"id": name, "name": name} for name in MODELS]})


async def voices(request: Request) -> Response:
    """The names for ``voice``."""
    _check(request)
    client: AsyncClient = request.app.state.client
    found = [
        {"id": voice.name, "name": voice.name, "language": voice.language, "description": voice.description}
        for voice in await client.voices()
    ]
    return JSONResponse({"voices": found})


async def live(_: Request) -> Response:
    """The gateway runs."""
    return PlainTextResponse("ok\n")


async def ready(request: Request) -> Response:
    """The daemon takes jobs and starts them."""
    client: AsyncClient = request.app.state.client
    try:
        info = await client.info(timeout=5.0)
    except GlmttsError:
        return PlainTextResponse("the speech daemon is away\n", 503)
    return PlainTextResponse("ok\n") if info.ready else PlainTextResponse("the speech daemon takes no jobs now\n", 503)
