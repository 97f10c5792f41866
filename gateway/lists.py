"""What programs ask before they speak: models, and how the service is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from glmtts.client import AsyncClient, Forbidden, GlmttsError

from .voices import asker

#: Names under which programs may ask for the one model there is.
MODELS = ("glm-tts", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")


async def models(request: Request) -> Response:
    """The names for ``model``."""
    asker(request)
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "glmtts"} for name in MODELS]
    return JSONResponse({"object": "list", "data": data})


async def audio_models(request: Request) -> Response:
    """The names for ``model``, as Open WebUI reads them."""
    asker(request)
    return JSONResponse({"models": [{"id": name, "name": name} for name in MODELS]})


async def live(_: Request) -> Response:
    """The gateway runs."""
    return PlainTextResponse("ok\n")


async def ready(request: Request) -> Response:
    """The daemon takes jobs and starts them."""
    client: AsyncClient = request.app.state.client
    try:
        # In a customer's name, as every request: the daemon may not let this gateway.
        await client.voices(timeout=5.0, on_behalf_of="readyz")
        info = await client.info(timeout=5.0)
    except Forbidden as error:
        return PlainTextResponse(f"the speech daemon refuses this gateway: {error}\n", 503)
    except GlmttsError:
        return PlainTextResponse("the speech daemon is away\n", 503)
    return PlainTextResponse("ok\n") if info.ready else PlainTextResponse("the speech daemon takes no jobs now\n", 503)
