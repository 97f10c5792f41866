"""``POST /v1/audio/speech/batch``: many texts in one request, each a durable job of the customer's.

The answer is one JSON document, sent as its results are there. It holds few of them in memory, and no proxy takes the
connection for dead.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glmtts.client import AsyncClient, ConnectionLost, DaemonNotRunning, GlmttsError, QueueFull, RateLimited
from glmtts.client.errors import ShuttingDown, Unavailable
from glmtts.client.exchange import Job
from glmtts.client.speech import Speech
from glmtts.protocol.requests import MAX_KEY

from . import bodies, errors, requests, speech
from .customers import Customer
from .errors import HttpError
from .requests import SpeechRequest
from .settings import Settings

#: Items of a batch, and its jobs that the daemon has at a time.
MAX_ITEMS, _AHEAD = 1_000, 32
#: Bytes of results and recordings, as far as they can be foreseen, that all batches together hold beside the one result
#: that each of them may always have.
_HELD_BYTES = 256 << 20
#: Seconds that an item which the daemon refuses for now (rate, full queue, daemon away) is sent again.
_PATIENCE_S = 600.0
_AGAIN_S = 5.0
#: Bytes that are sent at a time: a client that reads slowly holds the rest back.
_PIECE = 64 << 10
#: Seconds without a result after which a space keeps the connection alive.
_SIGN_OF_LIFE_S = 15.0


class BatchRequest(SpeechRequest, kw_only=True):
    """The body of ``POST /v1/audio/speech/batch``: items, and what holds for those that don't say otherwise."""

    #: Objects with ``input`` and any other key of a speech request. One that is wrong fails alone.
    items: Annotated[list[Any], Meta(min_length=1, max_length=MAX_ITEMS)]
    input: str = ""
    response_format: str = "wav"


async def batch(request: Request) -> Response:
    """Speak many texts; one that fails does not touch the others."""
    state = request.app.state
    customer: Customer = state.customers.of(request)
    values = bodies.parsed(await bodies.read(request, state.settings.body_mib << 20))
    asked, ignored = bodies.checked(values, BatchRequest)
    if "input" in values:
        raise HttpError(400, "input: the texts of a batch are in its items", param="input")
    asked.check()
    if not 1 <= len(request.headers.get("idempotency-key", "x")) <= MAX_KEY:
        raise HttpError(400, f"Idempotency-Key: 1 to {MAX_KEY} characters", param="Idempotency-Key")
    client: AsyncClient = state.client
    # Refused as a whole while the daemon is away.
    await client.info()
    running = _Batch(request, customer, values, asked)
    keys = {key for item in asked.items if isinstance(item, dict) for key in item}
    ignored += sorted(keys.difference(SpeechRequest.__struct_fields__))
    headers = speech.HEADERS | bodies.ignored_header(ignored)
    return StreamingResponse(running.told(), media_type="application/json", headers=headers)


class _Batch:
    """One request: its jobs are taken in order, a few ahead of the result that is sent next."""

    #: Bytes that all batches hold, as foreseen.
    held = 0

    def __init__(self, request: Request, customer: Customer, values: dict[str, Any], asked: BatchRequest) -> None:
        self._client: AsyncClient = request.app.state.client
        self._settings: Settings = request.app.state.settings
        self._customer = customer
        self._items = asked.items
        self._defaults = {
            **{key: value for key, value in values.items() if key != "items" and value is not None},
            "response_format": asked.response_format,
        }
        key = request.headers.get("idempotency-key")
        # With a key the batch is fetched again, and its jobs don't end with the connection.
        self._leaves_jobs = key is not None
        digest = hashlib.sha256(f"{customer.name}\n{key}".encode()).hexdigest() if key else secrets.token_hex(16)
        self._id = f"speech-batch-{digest[:24]}"
        self._priority = "batch" if "batch" in customer.priorities else "interactive"
        # Most items have the same recording.
        self._recording = cache(bodies.recording)
        self._turn = asyncio.Lock()

    async def told(self) -> AsyncIterator[bytes | memoryview]:
        """The answer, in pieces."""
        ahead: deque[tuple[asyncio.Task[dict[str, Any]], int]] = deque()
        begun = succeeded = 0
        try:
            yield b'{"id":"%s","results":[' % self._id.encode()
            for index in range(len(self._items)):
                while begun < len(self._items) and len(ahead) < _AHEAD:
                    size = _foreseen(self._items[begun], self._defaults)
                    if ahead and _Batch.held + size > _HELD_BYTES:
                        break
                    _Batch.held += size
                    ahead.append((asyncio.create_task(self._result(begun)), size))
                    begun += 1
                task, size = ahead[0]
                while not (await asyncio.wait({task}, timeout=_SIGN_OF_LIFE_S))[0]:
                    yield b" "
                result = task.result()
                encoded = memoryview((b"," if index else b"") + msgspec.json.encode(result))
                for start in range(0, len(encoded), _PIECE):
                    yield encoded[start : start + _PIECE]
                succeeded += result["status"] == "success"
                ahead.popleft()
                _Batch.held -= size
            counts = b'],"total":%d,"succeeded":%d,"failed":%d}'
            yield counts % (len(self._items), succeeded, len(self._items) - succeeded)
        finally:
            for task, size in ahead:
                task.cancel()
                _Batch.held -= size

    async def _result(self, index: int) -> dict[str, Any]:
        """The result of an item, whatever happens to it."""
        answer: dict[str, Any] = {"index": index}
        try:
            asked, options = self._asked(index)
            await requests.check_size(self._client, options.get("prompt", b""), "ref_audio")
            spoken = await self._speak(asked.input, options)
        except (HttpError, GlmttsError) as error:
            wrong = error if isinstance(error, HttpError) else errors.of_daemon(error)
            answer |= {"status": "error", "error": wrong.message, "code": wrong.code, "retryable": wrong.retryable}
            if wrong.param:
                answer["param"] = wrong.param
            if wrong.retry_after_s is not None:
                answer["retry_after_s"] = wrong.retry_after_s
            if job := getattr(error, "job", None):
                answer["job"] = job
            return answer
        return answer | {
            "status": "success",
            "audio_data": spoken.audio,
            "media_type": asked.media_type(),
            "sample_rate": spoken.sample_rate,
            "audio_s": spoken.audio_s,
            "job": spoken.job,
            "usage": speech.usage(asked.input, spoken.audio_s),
        }

    def _asked(self, index: int) -> tuple[SpeechRequest, dict[str, Any]]:
        item = self._items[index]
        if not isinstance(item, dict):
            raise HttpError(400, f'items[{index}] is to be a JSON object, such as {{"input": "..."}}', param="items")
        own = {key: value for key, value in item.items() if value is not None}
        merged = self._defaults | own
        if ("voice" in own or "speaker" in own) and "ref_audio" not in own:
            # The item's own voice, and not the recording of all.
            merged.pop("ref_audio", None)
        asked, _ = bodies.checked(merged, SpeechRequest)
        key = f"{self._id}-{index}"
        options = asked.options_for(
            self._customer, self._settings, key, priority=self._priority, recording=self._recording
        )
        return asked, {"durable": True} | options

    async def _speak(self, text: str, options: dict[str, Any]) -> Speech:
        """The speech; what the daemon refuses for now, or loses, is sent again: by its key it is spoken once."""
        clock = asyncio.get_running_loop().time
        give_up_at = math.inf
        while True:
            try:
                async with self._turn:
                    job = await self._accepted(text, options, give_up_at)
                return await self._wait(job, options)
            except (ShuttingDown, ConnectionLost, DaemonNotRunning):
                give_up_at = min(give_up_at, clock() + _PATIENCE_S)
                if clock() + _AGAIN_S > give_up_at:
                    raise
                await asyncio.sleep(_AGAIN_S)

    async def _accepted(self, text: str, options: dict[str, Any], give_up_at: float) -> Job:
        clock = asyncio.get_running_loop().time
        while True:
            submitting = asyncio.ensure_future(self._client.submit(text, **options))
            try:
                return await asyncio.shield(submitting)
            except asyncio.CancelledError:
                with suppress(GlmttsError):
                    await self._leave(await submitting, options)
                raise
            except (RateLimited, QueueFull, Unavailable) as error:
                give_up_at = min(give_up_at, clock() + _PATIENCE_S)
                wait_s = max(0.05, error.retry_after_s or _AGAIN_S)
                if clock() + wait_s > give_up_at:
                    raise
                await asyncio.sleep(wait_s)

    async def _wait(self, job: Job, options: dict[str, Any]) -> Speech:
        try:
            return await self._client.wait(job)
        except asyncio.CancelledError:
            await self._leave(job, options)
            raise

    async def _leave(self, job: Job, options: dict[str, Any]) -> None:
        """The listener is gone."""
        try:
            if not self._leaves_jobs:
                with suppress(GlmttsError):
                    await self._client.cancel(job, on_behalf_of=options["on_behalf_of"])
        finally:
            self._client.leave(job)


def _foreseen(item: Any, defaults: dict[str, Any]) -> int:
    """About how many bytes an item takes until it is sent: of slow speech, at most."""
    if not isinstance(item, dict):
        return 0
    own = item.get("ref_audio")
    text, recording = str(item.get("input", "")), len(own) if isinstance(own, str) else 0
    is_small = str(item.get("response_format") or defaults["response_format"]) in ("mp3", "opus")
    # A character lasts up to a third of a second; encoded audio has 16 kB a second, samples have 2 bytes.
    return recording + len(text) * (6_000 if is_small else 16_000)
