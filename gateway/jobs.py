"""``/v1/audio/jobs``: durable jobs, which outlive the connection, the gateway and the daemon."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glmtts.client import AsyncClient, GlmttsError
from glmtts.client.aio import AsyncStream
from glmtts.client.exchange import JobEvent
from glmtts.client.speech import Speech
from glmtts.protocol.events import JobInfo

from . import bodies, errors, requests, speech
from .errors import HttpError
from .requests import FORMATS

_MEDIA_TYPES = dict(FORMATS.values())
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", ""})
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def described(info: JobInfo) -> dict[str, Any]:
    """A job as JSON."""
    values: dict[str, Any] = {
        "id": info.job,
        "object": "audio.job",
        "status": info.state,
        "priority": info.priority,
        "created_at": int(info.created),
        "characters": info.text_length,
    }
    names = ("label", "position", "estimated_wait_s", "segment", "segments", "audio_s", "waited_s", "synthesis_s")
    for name in names:
        if (value := getattr(info, name)) is not UNSET:
            values[name] = value
    if info.code is not UNSET:
        values["error"] = {"code": info.code, "message": info.message if info.message is not UNSET else ""}
    return values


async def create(request: Request) -> Response:
    """Take a job. It is on disk when the answer goes out."""
    asked, options, _ = await requests.asked(request)
    client: AsyncClient = request.app.state.client
    job = await client.submit(asked.input, **(options | {"durable": True, "follow": True}))
    client.leave(job)
    values = {
        "id": job.id,
        "object": "audio.job",
        "status": "waiting",
        "position": job.position,
        "estimated_wait_s": job.estimated_wait_s,
        "warning": job.warning,
    }
    if asked.label:
        values["label"] = asked.label
    return JSONResponse(values, 202, {"Location": f"/v1/audio/jobs/{job.id}", "Cache-Control": "no-store"})


async def listed(request: Request) -> Response:
    """The customer's newest jobs that the daemon has in memory."""
    customer = request.app.state.customers.of(request)
    asked = request.query_params.get("limit", "100")
    limit = int(asked) if re.fullmatch("[0-9]{1,4}", asked) else 0
    if not 1 <= limit <= 1_000:
        raise HttpError(400, "limit: a number from 1 to 1000", param="limit")
    found = await request.app.state.client.jobs(limit=limit, on_behalf_of=customer.name)
    return JSONResponse({"object": "list", "data": [described(info) for info in found]})


async def one(request: Request) -> Response:
    """The state of a job."""
    customer = request.app.state.customers.of(request)
    info = await request.app.state.client.job(request.path_params["id"], on_behalf_of=customer.name)
    return JSONResponse(described(info), headers={"Cache-Control": "no-store"})


async def delete(request: Request) -> Response:
    """Cancel a job."""
    customer = request.app.state.customers.of(request)
    id = request.path_params["id"]
    state = await request.app.state.client.cancel(id, on_behalf_of=customer.name)
    return JSONResponse({"id": id, "object": "audio.job", "status": state})


async def audio(request: Request) -> Response:
    """The audio of a job, or a range of it. Waits for a job that has not ended; ``follow`` sends what is made of it."""
    customer = request.app.state.customers.of(request)
    client: AsyncClient = request.app.state.client
    follow = request.query_params.get("follow", "0").lower()
    if follow not in _YES | _NO:
        raise HttpError(400, "follow: 1 or 0", param="follow")
    if follow in _YES and request.method == "GET":
        info = await client.job(request.path_params["id"], on_behalf_of=customer.name)
        if info.state in ("waiting", "running"):
            return await _followed(request, client.follow(info.job, on_behalf_of=customer.name))
    found = await bodies.unless_gone(request, _end_of(client, request.path_params["id"], customer.name))
    if not found.audio:
        raise HttpError(404, "this job was heard as a stream, of which no file is kept", code="job_not_found")
    etag = f'"{found.sha256}"'
    headers = {
        **speech.HEADERS,
        "x-glmtts-job": found.job,
        "x-audio-sample-rate": str(found.sample_rate),
        "Accept-Ranges": "bytes",
        "ETag": etag,
    }
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    file = with_sizes(found.audio)
    request.state.held.take(len(file))
    # A range of another file than the one that the client has a part of would not fit (RFC 9110, 13.1.5).
    is_same = request.headers.get("if-range", etag).strip() == etag
    asked = request.headers.get("range", "") if is_same and request.method == "GET" else ""
    part = _part(asked, len(file))
    first, end = part or (0, len(file))
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(file)}"
    headers["Content-Length"] = str(end - first)
    media_type = _MEDIA_TYPES.get(found.format, "application/octet-stream")
    pieces = bodies.in_pieces(memoryview(file)[first:end])
    return StreamingResponse(pieces, 206 if part else 200, media_type=media_type, headers=headers)


async def _followed(request: Request, stream: AsyncStream) -> Response:
    """The file while it is made, from its beginning. Its length is not known, and a part of it can't be had."""
    first = await speech.first_of(request, stream)
    headers = {
        **speech.HEADERS,
        "x-glmtts-job": stream.job.id if stream.job else "",
        "x-audio-sample-rate": str(first.sample_rate),
        "Accept-Ranges": "none",
    }
    media_type = _MEDIA_TYPES.get(first.format, "application/octet-stream")
    return StreamingResponse(speech.pieces_of(request, first, stream), media_type=media_type, headers=headers)


async def _end_of(client: AsyncClient, id: str, customer: str) -> Speech:
    try:
        return await client.wait(id, on_behalf_of=customer)
    except asyncio.CancelledError:
        # Otherwise the result would be kept for a call that does not come.
        client.leave(id, on_behalf_of=customer)
        raise


def _names(header: str, etag: str) -> bool:
    """Whether If-None-Match names this file."""
    return header.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(","))


def with_sizes(file: bytes) -> bytes:
    """A WAV file that was streamed has no sizes (0xFFFFFFFF); players that seek need them."""
    at = file.find(b"data\xff\xff\xff\xff", 0, 256)
    if not file.startswith(b"RIFF\xff\xff\xff\xff") or at < 0:
        return file
    sizes = [(len(file) - start).to_bytes(4, "little") for start in (8, at + 8)]
    return b"".join((file[:4], sizes[0], file[8 : at + 4], sizes[1], file[at + 8 :]))


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """The first byte of a range and the one behind its last; None for the whole (RFC 9110, section 14)."""
    found = _RANGE.fullmatch(asked.strip())
    if found is None or not (found[1] or found[2]):
        # Several ranges, and units that are not known, may be answered with the whole.
        return None
    if not found[1]:
        first, end = max(0, size - int(found[2])), size
    else:
        first, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if first >= end:
        if found[2] and found[1] and int(found[2]) < int(found[1]):
            return None
        raise HttpError(416, f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return first, end


async def events(request: Request) -> Response:
    """The events of a job, as server-sent events, up to its end."""
    customer = request.app.state.customers.of(request)
    client: AsyncClient = request.app.state.client
    # A job of another customer is refused before the answer begins.
    await client.job(request.path_params["id"], on_behalf_of=customer.name)
    told = _told(client, request.path_params["id"], customer.name)
    return StreamingResponse(told, media_type="text/event-stream", headers=speech.HEADERS)


async def _told(client: AsyncClient, id: str, customer: str) -> AsyncIterator[str]:
    heard: asyncio.Queue[JobEvent] = asyncio.Queue()
    waiting = asyncio.ensure_future(client.wait(id, on_behalf_of=customer, on_event=heard.put_nowait))
    news: asyncio.Task[JobEvent] | None = None
    try:
        while not (waiting.done() and heard.empty()):
            news = news or asyncio.ensure_future(heard.get())
            await asyncio.wait({waiting, news}, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                event, news = news.result(), None
                yield speech.sse("job", {"id": id, "event": speech.in_words(event)})
        found = waiting.result()
        yield speech.sse("done", {"id": id, "audio_s": found.audio_s, "url": f"/v1/audio/jobs/{id}/audio"})
    except GlmttsError as error:
        yield speech.sse("error", {"id": id, **errors.of_daemon(error).body})
    finally:
        bodies.drop(waiting, news)
