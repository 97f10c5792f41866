"""``POST /v1/audio/speech``: audio as it is made, as bytes or as server-sent events."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glmtts.client import AsyncClient, GlmttsError
from glmtts.client.aio import AsyncStream
from glmtts.client.exchange import JobEvent
from glmtts.client.speech import Chunk
from glmtts.protocol.events import Accepted, Progress, Queued, Started

from . import bodies, errors, requests
from .errors import HttpError
from .requests import SpeechRequest

#: Speech tokens that GLM-TTS makes for a second, as ``usage`` counts output (zai-org/GLM-TTS: 25 Hz).
_TOKENS_A_SECOND = 25
#: Of every answer with audio: it is the asker's alone, and no proxy is to gather it.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def speech(request: Request) -> Response:
    """Speak a text. The status goes out with the first audio, so an earlier failure has its own status."""
    asked, options, ignored = await requests.asked(request)
    client: AsyncClient = request.app.state.client
    headers = HEADERS | bodies.ignored_header(ignored)
    if asked.sse:
        return await _events(request, client, asked, options, headers)
    stream = client.stream(asked.input, **options)
    first = await first_of(request, stream)
    headers |= {"x-glmtts-job": stream.job.id if stream.job else "", "x-audio-sample-rate": str(first.sample_rate)}
    told = pieces_of(request, first, stream, keep=asked.durable is True)
    return StreamingResponse(told, media_type=asked.media_type(), headers=headers)


async def first_of(request: Request, stream: AsyncStream) -> Chunk:
    """The first piece of a stream, and all that the request holds. Raises HttpError for a stream without."""
    first = await bodies.unless_gone(request, _first_of(stream))
    request.state.held.free()
    try:
        # It is the whole file where the job has ended.
        request.state.held.take(len(first.samples))
    except HttpError:
        await stream.close()
        raise
    return first


async def _first_of(stream: AsyncStream) -> Chunk:
    async for chunk in stream:
        return chunk
    raise HttpError(500, "the speech is empty", code="synthesis_failed")


async def pieces_of(
    request: Request, first: Chunk, stream: AsyncStream, *, keep: bool = False
) -> AsyncIterator[bytes | memoryview]:
    """The audio. An error on the way breaks the answer off: a file that looks whole is whole.

    ``keep``: the job goes on without its listener.
    """
    try:
        async for piece in bodies.in_pieces(first.samples):
            yield piece
        del first
        request.state.held.free()
        async for chunk in stream:
            async for piece in bodies.in_pieces(chunk.samples):
                yield piece
    finally:
        await _end(request.app.state.client, stream, keep=keep)


async def _end(client: AsyncClient, stream: AsyncStream, *, keep: bool) -> None:
    """A listener that leaves cancels its job; a durable one goes on and is fetched later."""
    if keep and stream.job is not None:
        client.leave(stream.job)
    await stream.close()


# --- server-sent events


async def _events(
    request: Request, client: AsyncClient, asked: SpeechRequest, options: dict[str, Any], headers: dict[str, str]
) -> Response:
    heard: asyncio.Queue[JobEvent] = asyncio.Queue()
    stream = client.stream(asked.input, on_event=heard.put_nowait, **options)
    await bodies.unless_gone(request, stream.__aenter__())
    request.state.held.free()
    headers["x-glmtts-job"] = stream.job.id if stream.job else ""
    return StreamingResponse(_told(stream, heard, client, asked), media_type="text/event-stream", headers=headers)


async def _told(
    stream: AsyncStream, heard: asyncio.Queue[JobEvent], client: AsyncClient, asked: SpeechRequest
) -> AsyncIterator[str]:
    """The events of a stream: comments while it waits, deltas, and one end."""
    waiting: asyncio.Task[Chunk | None] | None = None
    news: asyncio.Task[JobEvent] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(stream))
            news = news or asyncio.ensure_future(heard.get())
            await asyncio.wait({waiting, news}, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                if comment := in_words(news.result()):
                    yield f": {comment}\n\n"
                news = None
            if waiting.done():
                chunk, waiting = waiting.result(), None
                if chunk is None:
                    break
                if chunk.samples:
                    audio = base64.b64encode(chunk.samples).decode()
                    yield sse("speech.audio.delta", {"type": "speech.audio.delta", "audio": audio})
        assert stream.done is not None
        used = usage(asked.input, stream.done.audio_s)
        yield sse("speech.audio.done", {"type": "speech.audio.done", "usage": used})
    except GlmttsError as error:
        yield sse("speech.audio.error", {"type": "speech.audio.error", **errors.of_daemon(error).body})
    finally:
        bodies.drop(waiting, news)
        await _end(client, stream, keep=asked.durable is True)


async def _next(stream: AsyncStream) -> Chunk | None:
    return await anext(stream, None)


def usage(text: str, audio_s: float) -> dict[str, int]:
    """What OpenAI's API counts: characters for the input, speech tokens for the output."""
    tokens = round(audio_s * _TOKENS_A_SECOND)
    return {"input_tokens": len(text), "output_tokens": tokens, "total_tokens": len(text) + tokens}


def sse(event: str, data: object) -> str:
    """One server-sent event."""
    return f"event: {event}\ndata: {msgspec.json.encode(data).decode()}\n\n"


def in_words(event: JobEvent) -> str:
    """An event of a job as one line: ``queued position=3 wait=12``."""
    match event:
        case Accepted() | Queued():
            wait = "" if event.estimated_wait_s is UNSET else f" wait={event.estimated_wait_s:.0f}"
            return f"queued position={event.position}{wait}"
        case Started():
            return "started"
        case Progress():
            return f"progress segment={event.segment} segments={event.segments}"
        case _:
            return ""
