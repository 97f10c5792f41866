"""The WebSocket for texts in pieces, without a daemon: what clients do wrong, and what each of them may cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import websockets
from websockets.asyncio.client import ClientConnection, connect

from glmtts.client import WorkerCrashed
from glmtts.client.speech import Chunk
from glmtts.gateway import server as servers
from glmtts.gateway import speech_stream
from glmtts.gateway.app import build
from glmtts.gateway.errors import HttpError
from glmtts.gateway.settings import Settings

from ..support.gateways import keys_for

PATIENCE_S = 20.0
Message = dict[str, Any]


class FakeStream:
    """Speaks a piece as its own bytes; endlessly for ``endless``, never for ``stuck``."""

    job = None

    def __init__(self, text: AsyncIterator[str], options: Message) -> None:
        self.text, self.options = text, options
        self.closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        seq = 0
        async for piece in self.text:
            if not piece:
                continue
            if piece == "stuck":
                await asyncio.sleep(PATIENCE_S)
            while True:
                samples = bytes(65_536) if piece == "endless" else piece.encode()
                yield Chunk(seq=seq, samples=samples, format="pcm_s16le", sample_rate=24_000, channels=1)
                seq += 1
                if piece != "endless":
                    break

    async def close(self) -> None:
        self.closed.set()


class FakeClient:
    def __init__(self) -> None:
        self.streams: list[FakeStream] = []

    def stream(self, text: AsyncIterator[str], **options: Any) -> FakeStream:
        self.streams.append(FakeStream(text, options))
        return self.streams[-1]

    async def close(self) -> None:
        pass


class Served:
    """A gateway in this loop."""

    def __init__(self, app: Any, server: uvicorn.Server, listening: socket.socket) -> None:
        self.server, self.client = server, FakeClient()
        self.port: int = listening.getsockname()[1]
        app._app._app.state.client = self.client
        self.held = app._app._memory._held.total

    def connect(self, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"ws://127.0.0.1:{self.port}{speech_stream.PATH}"
        return connect(url, additional_headers=named, proxy=None, compression=None)

    @contextlib.asynccontextmanager
    async def session(self, **config: Any) -> AsyncIterator[ClientConnection]:
        async with self.connect() as connection:
            await say(connection, "session.config", **{"response_format": "pcm", **config})
            yield connection


async def say(connection: ClientConnection, type: str, **keys: Any) -> None:
    await connection.send(json.dumps({"type": type, **keys}))


async def told(connection: ClientConnection) -> Message:
    """The next message that is no audio."""
    while isinstance(message := await asyncio.wait_for(connection.recv(), PATIENCE_S), bytes):
        pass
    return dict(json.loads(message))


async def heard(connection: ClientConnection) -> bytes:
    """The next message, which is audio."""
    message = await asyncio.wait_for(connection.recv(), PATIENCE_S)
    assert isinstance(message, bytes), message
    return message


async def close_code(connection: ClientConnection) -> int:
    await asyncio.wait_for(connection.wait_closed(), PATIENCE_S)
    return connection.close_code or 0


def serve(test: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
    """Run a test with a gateway."""

    async def run() -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            chosen = Settings(**settings)
            app = build(chosen)
            server = servers.server(app, chosen, lambda: None)
            running = asyncio.ensure_future(server.serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                await test(Served(app, server, listening))
            finally:
                server.should_exit = True
                await asyncio.wait_for(running, PATIENCE_S)

    level = logging.getLogger("uvicorn.error").level
    try:
        asyncio.run(run())
    finally:
        logging.getLogger("uvicorn.error").setLevel(level)


def test_pieces_become_frames_while_they_come_and_a_connection_speaks_several_texts() -> None:
    async def test(served: Served) -> None:
        async with served.session(voice="zh", speed=1.5, task_type="Base") as connection:
            for number, words in enumerate((["One. T", "wo."], ["Three."])):
                for piece in words:
                    await say(connection, "input.text", text=piece)
                    if piece == words[0]:
                        start = await told(connection)
                    assert await heard(connection) == piece.encode()
                await say(connection, "input.done")
                assert start == {
                    "type": "audio.start", "utterance_index": number, "sentence_index": 0, "sentence_text": words[0],
                    "format": "pcm", "sample_rate": 24_000, "channels": 1, "job": "",
                }  # fmt: skip
                total = len("".join(words))
                end = {"type": "audio.done", "utterance_index": number, "sentence_index": 0}
                assert await told(connection) == end | {"total_bytes": total, "error": False}
                done = {"type": "session.done", "utterance_index": number, "total_sentences": 1}
                assert await told(connection) == done
            await say(connection, "input.done")
            assert (await told(connection))["total_sentences"] == 0
            await say(connection, "session.close")
            assert await close_code(connection) == 1000
        options = served.client.streams[0].options
        assert (options["voice"], options["speed"], options["on_behalf_of"]) == ("zh", 1.5, "ip:127.0.0.1")

    serve(test)


def test_texts_may_be_sent_ahead_and_are_spoken_in_their_order() -> None:
    async def test(served: Served) -> None:
        async with served.session(stream_audio=False) as connection:
            for text in ("One.", "Two.", "Three."):
                await say(connection, "input.text", text=text[:2])
                await say(connection, "input.text", text=text[2:])
                await say(connection, "input.done")
            await say(connection, "session.close")
            frames = []
            with contextlib.suppress(websockets.ConnectionClosedOK):
                while True:
                    message = await connection.recv()
                    frames += [message] if isinstance(message, bytes) else []
            assert frames == [b"One.", b"Two.", b"Three."]

    serve(test)


CONFIG = '{"type": "session.config"}'


@pytest.mark.parametrize(
    ("messages", "code", "words", "closes"),
    [
        (['{"type": "input.text", "text": "a"}'], "bad_request", "has to be session.config", 1008),
        (["{"], "bad_request", "no JSON", 1008),
        (['{"type": "session.config", "response_format": "aac"}'], "bad_request", "response_format", 1008),
        (['{"type": "session.config", "priority": "vip"}'], "forbidden", "priority", 1008),
        ([CONFIG, b"samples"], "bad_request", "binary frame", 1003),
        ([CONFIG, "[" * 100_000], "bad_request", "nested too deeply", 0),
        ([CONFIG, '["input.text"]'], "bad_request", "JSON object", 0),
        ([CONFIG, "{}"], "bad_request", "type", 0),
        ([CONFIG, '{"type": "input.flush"}'], "bad_request", "'input.flush' is none of", 0),
        ([CONFIG, '{"type": "input.text", "text": 1}'], "bad_request", "text", 0),
        ([CONFIG, '{"type": "input.text", "text": "a"}', CONFIG], "bad_request", "an utterance is open", 0),
        ([CONFIG, '{"type": "input.text", "text": "%s"}' % ("a" * 140_000)], "too_large", "128 KiB", 0),
        ([CONFIG, "a" * (1 << 20) + "b"], "", "", 1009),
    ],
)
def test_what_is_wrong_is_named(messages: list[str | bytes], code: str, words: str, closes: int) -> None:
    async def test(served: Served) -> None:
        async with served.connect() as connection:
            for message in messages:
                await connection.send(message)
            if code:
                error = await told(connection)
                while error["type"] != "error":
                    error = await told(connection)
                assert error["code"] == code and words in error["message"], error
                assert error["retryable"] is False
            if closes:
                assert await close_code(connection) == closes
            else:
                await say(connection, "input.cancel")
                await say(connection, "input.text", text="again")
                while await asyncio.wait_for(connection.recv(), PATIENCE_S) != b"again":
                    pass

    serve(test, body_mib=1)


def test_messages_that_are_not_whole_have_a_bounded_memory() -> None:
    async def test(served: Served) -> None:
        async def half(size: int) -> AsyncIterator[str]:
            yield "a" * size
            await asyncio.sleep(PATIENCE_S)

        async with contextlib.AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(served.connect()) for _ in range(6)]
            sending = [asyncio.ensure_future(one.send(half(900_000))) for one in connections]
            closing = [asyncio.ensure_future(close_code(one)) for one in connections]
            await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
            assert {task.result() for task in closing if task.done()} == {1013}
            for task in [*sending, *closing]:
                task.cancel()
            await asyncio.wait([*sending, *closing])
        async with asyncio.timeout(PATIENCE_S):
            while served.held():
                await asyncio.sleep(0.01)

    serve(test, body_mib=1)


def test_a_client_that_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_stream, "_CONFIG_S", 0.1)
    monkeypatch.setattr(speech_stream, "_IDLE_S", 0.1)
    # Of a connection for HTTP; one that was upgraded has its own.
    monkeypatch.setattr(servers, "_HEADERS_S", 0.4)

    async def test(served: Served) -> None:
        async with served.connect() as connection:
            assert (await told(connection))["code"] == "timeout"
            assert await close_code(connection) == 1008
        monkeypatch.setattr(speech_stream, "_CONFIG_S", PATIENCE_S)
        async with served.session() as connection:
            assert (await told(connection))["code"] == "timeout"
            assert await close_code(connection) == 1000
        async with served.session() as connection:
            # The daemon hears of a text at its first word.
            await say(connection, "input.text", text="...")
            assert (await told(connection))["code"] == "timeout"
            assert await close_code(connection) == 1000
        # Time enough to say the first word, on a machine that is busy.
        monkeypatch.setattr(speech_stream, "_IDLE_S", 0.4)
        async with served.session() as connection:
            # With an open text the daemon decides for how long it waits.
            await say(connection, "input.text", text="word")
            assert (await told(connection))["type"] == "audio.start"
            await asyncio.sleep(0.6)
            await say(connection, "input.text", text="more")
            assert (await heard(connection), await heard(connection)) == (b"word", b"more")

    serve(test)


def test_a_text_that_comes_faster_than_it_is_spoken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_stream, "_UNSENT", 1_000)

    async def test(served: Served) -> None:
        async with served.session() as connection:
            await say(connection, "input.text", text="stuck")
            while not served.client.streams:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            for _ in range(3):
                await say(connection, "input.text", text="x" * 900)
            await say(connection, "input.cancel")
            assert (await told(connection))["cancelled"] is True
            for number in range(speech_stream._WAITING + 2):
                await say(connection, "input.text", text="stuck" if not number else "x")
                await say(connection, "input.done")
            assert (await told(connection))["code"] == "rate_limited"
        await asyncio.wait_for(served.client.streams[-1].closed.wait(), PATIENCE_S)

    serve(test)


def test_more_text_than_may_wait_ends_the_utterance() -> None:
    async def test() -> None:
        utterance = speech_stream._Utterance(0, speech_stream.SessionConfig())
        for _ in range(200):
            utterance.add("word " * 1_000)
        assert len(utterance._unsent) <= speech_stream._UNSENT
        assert await utterance.has_words()
        with pytest.raises(HttpError, match="wait to be spoken"):
            await anext(utterance.pieces())
        # Marks without a word are not kept either.
        waiting = asyncio.ensure_future((dots := speech_stream._Utterance(0, utterance.config)).has_words())
        for _ in range(200):
            dots.add("." * 1_000)
            await asyncio.sleep(0)
        assert len(dots._unsent) < 10_000 and not waiting.done()
        dots.end()
        assert not await waiting

    asyncio.run(test())


def test_a_client_that_goes_or_cancels_ends_its_job() -> None:
    async def test(served: Served) -> None:
        async with served.session() as connection:
            await say(connection, "input.text", text="endless")
            assert (await told(connection))["type"] == "audio.start"
            await say(connection, "input.cancel")
            done = [await told(connection), await told(connection)]
            assert [(m["type"], m["cancelled"]) for m in done] == [("audio.done", True), ("session.done", True)]
            assert served.client.streams[0].closed.is_set()
            await say(connection, "input.text", text="endless")
            assert (await told(connection))["utterance_index"] == 1
        await asyncio.wait_for(served.client.streams[1].closed.wait(), PATIENCE_S)
        assert not servers._Connection.of_address

    serve(test)


def test_a_close_ends_the_open_text_and_waits_for_its_speech() -> None:
    async def test(served: Served) -> None:
        async with served.session() as connection:
            await say(connection, "input.text", text="word")
            assert (await told(connection))["type"] == "audio.start"
            await say(connection, "input.text", text="more")
            await say(connection, "session.close")
            assert await told(connection) == {
                "type": "audio.done", "utterance_index": 0, "sentence_index": 0, "total_bytes": 8, "error": False,
            }  # fmt: skip
            assert (await told(connection))["type"] == "session.done"
            assert await close_code(connection) == 1000

    serve(test)


def test_a_daemon_that_goes_with_the_client_is_not_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def close(stream: FakeStream) -> None:
        stream.closed.set()
        raise WorkerCrashed("too late")

    monkeypatch.setattr(FakeStream, "close", close)

    async def test(served: Served) -> None:
        async with served.session() as connection:
            await say(connection, "input.text", text="word")
            assert (await told(connection))["type"] == "audio.start"
        await asyncio.wait_for(served.client.streams[0].closed.wait(), PATIENCE_S)

    serve(test)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_client_that_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_STALLED_S", 0.3)

    async def test(served: Served) -> None:
        async with served.session() as connection:
            connection.transport.pause_reading()
            await say(connection, "input.text", text="endless")
            while not served.client.streams:
                await asyncio.sleep(0.01)
            await asyncio.wait_for(served.client.streams[0].closed.wait(), PATIENCE_S)
            connection.transport.resume_reading()
            with pytest.raises(websockets.ConnectionClosedError):
                while True:
                    await connection.recv()

    serve(test)


def test_a_stop_lets_what_is_spoken_end() -> None:
    async def test(served: Served) -> None:
        async with served.session() as connection, served.session() as idle:
            await say(connection, "input.text", text="word")
            assert (await told(connection))["type"] == "audio.start"
            served.server.should_exit = True
            assert await close_code(idle) == 1012
            await say(connection, "input.text", text="more")
            await say(connection, "input.done")
            assert (await told(connection))["total_bytes"] == 8
            assert (await told(connection))["type"] == "session.done"
            assert await close_code(connection) == 1012

    serve(test)


def test_keys_origins_and_what_is_no_handshake(tmp_path: Path) -> None:
    file, headers = keys_for(tmp_path, "anna")

    async def test(served: Served) -> None:
        async def refused(**given: str) -> tuple[int, str]:
            with pytest.raises(websockets.InvalidStatus) as found:
                await served.connect(**given)
            response = found.value.response
            return response.status_code, json.loads(response.body or b"")["error"]["code"]

        assert await refused() == (401, "no_api_key")
        assert await refused(Authorization="Bearer glm-unknown") == (401, "invalid_api_key")
        assert await refused(Origin="http://evil.example") == (403, "forbidden")
        cookie = headers["anna"]["Authorization"].removeprefix("Bearer ")
        # The cookie of a browser counts for this service's own page alone.
        assert await refused(Cookie=f"glmtts_key={cookie}", Origin="http://evil.example") == (403, "forbidden")
        assert await refused(Cookie=f"glmtts_key={cookie}") == (403, "forbidden")
        for good in (headers["anna"], {"Cookie": f"glmtts_key={cookie}", "Origin": f"http://127.0.0.1:{served.port}"}):
            async with served.connect(**good) as connection:
                await say(connection, "session.config", response_format="pcm")
                await say(connection, "input.text", text="word")
                assert (await told(connection))["type"] == "audio.start"
        assert {stream.options["on_behalf_of"] for stream in served.client.streams} == {"anna"}

        async def answer(head: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(head.encode())
            answered = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            writer.close()
            return answered

        upgrade = "Host: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        path = speech_stream.PATH
        assert b" 426 " in await answer(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 405 " in await answer(f"POST {path} HTTP/1.1\r\n{upgrade}\r\n")
        assert b" 404 " in await answer(f"GET /v1/nothing HTTP/1.1\r\n{upgrade}\r\n")
        assert b" 400 " in await answer(f"GET {path} HTTP/1.1\r\n{upgrade}\r\n")
        assert b" 400 " in await answer(f"GET {path} HTTP/1.1\r\n{upgrade}X: {'a' * 20_000}\r\n\r\n")

    serve(test, api_keys=str(file))
