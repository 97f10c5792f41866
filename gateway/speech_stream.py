"""``/v1/audio/speech/stream``: a WebSocket on which a text comes in pieces, and its speech goes back while it comes.

The messages are vllm-omni's (``vllm_omni/entrypoints/openai/serving_speech_stream.py``), so that its clients work.
An utterance, from its first ``input.text`` to its ``input.done``, is one job of the daemon, which cuts it into
sentences and keeps the voice over all of them. To the client it is one sentence, as with vllm-omni's own default.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from glmtts.client import FLUSH, AsyncClient, GlmttsError
from glmtts.client.pieces import PAUSE_S, ends_sentence
from glmtts.client.speech import Chunk
from glmtts.protocol import texts

from . import bodies, errors, jobs
from .errors import HttpError
from .memory import Share
from .requests import SpeechRequest, check_size

_log = logging.getLogger("glmtts.gateway")

PATH = "/v1/audio/speech/stream"
#: Seconds for the first message, and without any where nothing is spoken.
_CONFIG_S = 15.0
_IDLE_S = 300.0
#: Seconds between two looks at whether what is spoken has ended, when the gateway stops.
_STOP_S = 0.1
#: Bytes of a message other than ``session.config``, which may have a recording.
_MESSAGE_BYTES = 128 << 10
#: Characters that wait to be sent to the daemon, and that are sent at once.
_UNSENT = 100_000
_TOGETHER = 2_000
#: Utterances that wait for the one that is spoken.
_WAITING = 16
#: Bytes of a frame where one frame is to have the whole speech.
_WHOLE_FRAME = 16 << 20
#: Characters of ``sentence_text``.
_SHOWN = 1_000

_NORMAL, _NO_TEXT, _POLICY, _BUG, _RESTART = 1000, 1003, 1008, 1011, 1012


class SessionConfig(SpeechRequest, kw_only=True):
    """The message ``session.config``: a request for speech without its text."""

    type: str = ""
    input: str = ""
    response_format: str = "wav"
    #: Frames as they are made, or one for the whole speech.
    stream_audio: bool = True


class _ClosedError(Exception):
    """The connection is to be closed with this code."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _GoneError(Exception):
    """The connection is closed."""


class _Utterance:
    """A text that comes in pieces."""

    def __init__(self, number: int, config: SessionConfig) -> None:
        self.number, self.config = number, config
        self.text = ""
        self._unsent = ""
        self.ended = asyncio.Event()
        self._news = asyncio.Event()
        self._problem: HttpError | None = None
        #: Its speech has ended in an error: more text is not kept.
        self.failed = self.cancelled = False
        #: It has words, which the daemon gets; and it has audio.
        self.begun = self.started = False
        #: Bytes sent, and those that wait for the others of their frame.
        self.bytes = 0
        self.frame = bytearray()

    def add(self, text: str) -> None:
        """Add a piece."""
        if self.failed or self._problem is not None:
            return
        if len(self._unsent) + len(text) > _UNSENT:
            message = f"text: over {_UNSENT} characters wait to be spoken; send them more slowly, or as several jobs"
            self._problem = HttpError(413, message, code="too_large", param="text")
        else:
            self._unsent += text
            self.text = (self.text + text)[:_SHOWN]
        self._news.set()

    def end(self) -> None:
        """No more text comes."""
        self.ended.set()
        self._news.set()

    @property
    def is_empty(self) -> bool:
        """Whether more text is to come before there is something to speak."""
        return not self.begun and not self.ended.is_set()

    async def has_words(self) -> bool:
        """Wait for something to speak. Returns False for a text that ends without any."""
        while not texts.has_words(self._unsent) and self._problem is None and not self.ended.is_set():
            # Marks without a word may come in any number.
            self._unsent = self._unsent[-_SHOWN:]
            await self._changed()
        return texts.has_words(self._unsent) or self._problem is not None

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes. A sentence that has ended is spoken after a pause, or with the next one."""
        piece = ""
        while True:
            if self._problem is not None:
                raise self._problem
            if self._unsent:
                piece, self._unsent = self._unsent[:_TOGETHER], self._unsent[_TOGETHER:]
                yield piece
            elif self.ended.is_set():
                return
            else:
                try:
                    async with asyncio.timeout(PAUSE_S if ends_sentence(piece) else None):
                        await self._changed()
                except TimeoutError:
                    piece = ""
                    yield FLUSH

    async def _changed(self) -> None:
        self._news.clear()
        await self._news.wait()


def _named(error: GlmttsError | HttpError) -> HttpError:
    return error if isinstance(error, HttpError) else errors.of_daemon(error)


class _Session:
    """One connection: a task reads its messages, another one speaks its utterances in turn."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._config: SessionConfig | None = None
        self._utterances: asyncio.Queue[_Utterance | None] = asyncio.Queue()
        #: All that have not ended, the last one of which may get more text; and how many there were.
        self._live: list[_Utterance] = []
        self._open: _Utterance | None = None
        self._count = 0
        self._speaking: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Serve until one side closes."""
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._speak(), self._stop())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            bodies.drop(*tasks)
            # The client library sends the daemon its `cancel` before the connection ends.
            await asyncio.wait(tasks)

    # --- what comes

    async def _read(self) -> None:
        while True:
            message = await self._next()
            try:
                await self._take(message)
            except (GlmttsError, HttpError) as error:
                await self._tell(_named(error))
                if self._config is None:
                    raise _ClosedError(_POLICY, "no session.config") from None

    async def _next(self) -> str:
        while True:
            try:
                async with asyncio.timeout(_CONFIG_S if self._config is None else _IDLE_S):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self._config is None:
                    await self._tell(HttpError(408, f"no session.config came within {_CONFIG_S:g} s", code="timeout"))
                    raise _ClosedError(_POLICY, "no session.config") from None
                # The daemon decides for how long it waits for more of a text.
                if all(utterance.failed or utterance.is_empty for utterance in self._live):
                    await self._tell(HttpError(408, f"no message came within {_IDLE_S:g} s", code="timeout"))
                    raise _ClosedError(_NORMAL, "idle") from None
                continue
            if message["type"] == "websocket.disconnect":
                raise _GoneError
            if message.get("text") is None:
                words = "a binary frame came, and a client sends JSON in text frames alone"
                await self._tell(HttpError(400, words))
                raise _ClosedError(_NO_TEXT, "binary frame")
            return str(message["text"])

    async def _take(self, message: str) -> None:
        """Act on a message. Raises HttpError for one that is wrong, and _ClosedError."""
        if '"session.config"' not in message[:_MESSAGE_BYTES] and len(message) > _MESSAGE_BYTES:
            raise HttpError(413, f"the message is over {_MESSAGE_BYTES >> 10} KiB", code="too_large")
        try:
            values = bodies.parsed(message.encode())
        except HttpError as error:
            raise HttpError(error.status, error.message.replace("the body", "the message"), code=error.code) from None
        kind = values.get("type")
        if not isinstance(kind, str):
            raise HttpError(400, 'type: a message has one, such as {"type": "input.text"}', param="type")
        if kind == "session.config":
            if self._open is not None:
                raise HttpError(400, "session.config: an utterance is open; send input.done or input.cancel first")
            config, _ = bodies.checked(values, SessionConfig)
            options = self._options(config)
            await check_size(self._websocket.app.state.client, options.get("prompt", b""), "ref_audio")
            held: Share = self._websocket.state.held
            held.free()
            held.take(len(message))
            self._config = config
        elif self._config is None:
            raise HttpError(400, f"the first message has to be session.config, and is {kind[:40]!r}", param="type")
        elif kind == "input.text":
            self._add(values.get("text", ""), self._config)
        elif kind == "input.done":
            utterance = self._open or self._begin(self._config)
            self._open = None
            utterance.end()
        elif kind == "input.cancel":
            self._cancel()
        elif kind == "session.close":
            self._open = None
            for utterance in self._live:
                utterance.end()
            self._utterances.put_nowait(None)
        else:
            known = "session.config, input.text, input.done, input.cancel and session.close"
            raise HttpError(400, f"type: {kind[:40]!r} is none of {known}", param="type")

    def _add(self, text: object, config: SessionConfig) -> None:
        if not isinstance(text, str):
            raise HttpError(400, "text: input.text has to have a string", param="text")
        if text:
            self._open = self._open or self._begin(config)
            self._open.add(text)

    def _begin(self, config: SessionConfig) -> _Utterance:
        if len(self._live) > _WAITING:
            message = f"{_WAITING} utterances wait to be spoken already; wait for a session.done"
            raise HttpError(429, message, code="rate_limited", retryable=True)
        utterance = _Utterance(self._count, config)
        self._count += 1
        self._live.append(utterance)
        self._utterances.put_nowait(utterance)
        return utterance

    def _cancel(self) -> None:
        self._open = None
        for utterance in self._live:
            self._end_unheard(utterance)

    def _end_unheard(self, utterance: _Utterance) -> None:
        utterance.cancelled = True
        utterance.end()
        if utterance is self._live[0] and self._speaking is not None:
            self._speaking.cancel()

    # --- what goes

    async def _speak(self) -> None:
        while (utterance := await self._utterances.get()) is not None:
            if not utterance.cancelled:
                self._speaking = asyncio.ensure_future(self._speak_one(utterance))
                try:
                    await self._speaking
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not utterance.cancelled or (task is not None and task.cancelling()):
                        raise
                finally:
                    self._speaking = None
            if self._open is utterance:
                # The daemon has waited for more for as long as it waits.
                self._open = None
            number = {"utterance_index": utterance.number}
            cancelled = {"cancelled": True} if utterance.cancelled else {}
            if utterance.started:
                done = {"total_bytes": utterance.bytes, "error": utterance.failed, **cancelled}
                await self._send({"type": "audio.done", **number, "sentence_index": 0, **done})
            self._live.remove(utterance)
            sentences = int(utterance.started)
            await self._send({"type": "session.done", **number, "total_sentences": sentences, **cancelled})
        raise _ClosedError(_NORMAL)

    async def _speak_one(self, utterance: _Utterance) -> None:
        """Speak an utterance, and send its error if it fails."""
        if not await utterance.has_words():
            return
        utterance.begun = True
        try:
            client: AsyncClient = self._websocket.app.state.client
            stream = client.stream(utterance.pieces(), **self._options(utterance.config))
            try:
                async for chunk in stream:
                    await self._send_audio(utterance, chunk, stream.job.id if stream.job else "")
                if utterance.frame:
                    await self._send_frame(utterance, whole=utterance.bytes == 0)
            finally:
                await stream.close()
        except (GlmttsError, HttpError) as error:
            utterance.failed = True
            await self._tell(_named(error), utterance)
            # What a client sends of this text before it hears of the error is no text of its own.
            await utterance.ended.wait()

    async def _send_audio(self, utterance: _Utterance, chunk: Chunk, job: str) -> None:
        if not utterance.started:
            utterance.started = True
            await self._send(
                {
                    "type": "audio.start",
                    "utterance_index": utterance.number,
                    "sentence_index": 0,
                    "sentence_text": utterance.text.strip(),
                    "format": utterance.config.response_format,
                    "sample_rate": chunk.sample_rate,
                    "channels": chunk.channels,
                    "job": job,
                }
            )
        utterance.frame += chunk.samples
        if utterance.frame and (utterance.config.stream_audio or len(utterance.frame) >= _WHOLE_FRAME):
            await self._send_frame(utterance)

    async def _send_frame(self, utterance: _Utterance, *, whole: bool = False) -> None:
        frame, utterance.frame = utterance.frame, bytearray()
        sent = jobs.with_sizes(bytes(frame)) if whole else bytes(frame)
        await self._send(sent)
        utterance.bytes += len(sent)

    async def _tell(self, error: HttpError, utterance: _Utterance | None = None) -> None:
        told: dict[str, Any] = {
            "type": "error",
            "message": error.message,
            "code": error.code,
            "param": error.param,
            "retryable": error.retryable,
        }
        if error.retry_after_s is not None:
            told["retry_after_s"] = error.retry_after_s
        if utterance is not None:
            told["utterance_index"] = utterance.number
        await self._send(told)

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        try:
            # It waits for a client that reads slowly; the server lets one go that does not read at all.
            if isinstance(message, bytes):
                await self._websocket.send_bytes(message)
            else:
                await self._websocket.send_text(msgspec.json.encode(message).decode())
        except (WebSocketDisconnect, RuntimeError):
            raise _GoneError from None

    async def _stop(self) -> None:
        """The gateway stops: what is spoken is spoken to its end."""
        await self._websocket.state.stopping.wait()
        while self._live:
            await asyncio.sleep(_STOP_S)
        raise _ClosedError(_RESTART, "the gateway stops")

    def _options(self, config: SessionConfig) -> dict[str, Any]:
        """The options of the client library. Raises HttpError, also for a key that is not known any more."""
        state = self._websocket.app.state
        return config.options_for(state.customers.of(self._websocket), state.settings, None)


async def stream(websocket: WebSocket) -> None:
    """Serve one connection."""
    try:
        websocket.app.state.customers.of(websocket)
    except HttpError as error:
        await websocket.send_denial_response(error.response())
        return
    await websocket.accept()
    closed = _ClosedError(_BUG, "an internal error of the gateway")
    try:
        await _Session(websocket).serve()
    except _GoneError:
        return
    except _ClosedError as reason:
        closed = reason
    except Exception:
        _log.exception("internal error at %s", PATH)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.close(closed.code, closed.reason)


async def needs_upgrade(_: Request) -> Response:
    """Answer a request that is no handshake."""
    message = f"{PATH} is a WebSocket: ask for it with a client for WebSockets (ws:// or wss://)"
    return HttpError(426, message, code="upgrade_required", headers={"Upgrade": "websocket"}).response()
