"""``/v1/audio/usage``: what the customer had spoken, by day."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


async def usage(request: Request) -> Response:
    """The newest day first; ``since`` is a date such as 2026-11-30."""
    customer = request.app.state.customers.of(request)
    days = await request.app.state.client.usage(request.query_params.get("since"), on_behalf_of=customer.name)
    data = [{key: getattr(day, key) for key in ("day", "jobs", "characters", "audio_s")} for day in days]
    return JSONResponse({"object": "list", "data": data}, headers={"Cache-Control": "no-store"})
