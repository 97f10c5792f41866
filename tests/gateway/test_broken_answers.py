"""Answers after their beginning, without a server and a daemon: how they break, and the memory that they hold."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from glmtts.client import Cancelled, GlmttsError, WorkerCrashed
from glmtts.client.speech import Chunk
from glmtts.client.voices import VoiceSample
from glmtts.gateway import bodies
from glmtts.gateway.app import build
from glmtts.gateway.settings import Settings

SECRET = "geheimwort"


class Stream:
    """Pieces of a speech, and the error that it ends with."""

    job = None

    def __init__(self, pieces: list[bytes], error: GlmttsError | None = None) -> None:
        self._chunks = self._made(pieces, error)
        self.closed = False

    async def _made(self, pieces: list[bytes], error: GlmttsError | None) -> AsyncIterator[Chunk]:
        for seq, samples in enumerate(pieces):
            yield Chunk(seq=seq, samples=samples, format="mp3", sample_rate=24_000, channels=1)
        if error is not None:
            raise error

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._chunks

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def __aenter__(self) -> Stream:
        return self

    async def close(self) -> None:
        self.closed = True


def _built() -> Any:
    return build(Settings(body_mib=1))


class Asked:
    """A gateway before a client library of its own, and what it answers."""

    def __init__(self, **client: Any) -> None:
        self.app = _built()
        self.app._app._app.state.client = type("Client", (), client)()
        self.memory = self.app._app._memory
        self.sent: list[Message] = []
        self.held: list[int] = []
        self.broken_off = asyncio.Event()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        raw = json.dumps(body).encode()
        received: list[Message] = [{"type": "http.request", "body": raw}]

        async def receive() -> Message:
            if received:
                return received.pop()
            await self.broken_off.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.sent.append(message)
            self.held.append(self.memory._held.total())

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"host", b"localhost")], "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "state": {"break_off": self.broken_off.set},
        }  # fmt: skip

        async def run() -> None:
            async with asyncio.timeout(20):
                await self.app(scope, receive, send)

        asyncio.run(run())
        headers = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        return self.sent[0]["status"], headers, b"".join(message.get("body", b"") for message in self.sent[1:])


def test_an_answer_that_breaks_is_one_line_of_the_log_without_the_words_of_its_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    stream = Stream([b"one"], WorkerCrashed(f"it died of {SECRET}"))
    asked = Asked(stream=lambda *_, **__: stream)
    assert asked.ask("POST", "/v1/audio/speech", {"input": SECRET})[0::2] == (200, b"one")
    assert asked.broken_off.is_set() and stream.closed
    (line,) = caplog.messages
    assert line.endswith(" error=worker_crashed") and SECRET not in caplog.text and "Traceback" not in caplog.text


def test_a_bug_in_the_middle_of_an_answer_is_logged_once_and_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream = Stream([b"one"], ZeroDivisionError())  # type: ignore[arg-type]
    asked = Asked(stream=lambda *_, **__: stream)
    assert asked.ask("POST", "/v1/audio/speech", {"input": "x"})[0] == 200
    assert asked.broken_off.is_set()
    assert caplog.text.count("ZeroDivisionError") == 1 and caplog.messages[-1].endswith(" error=internal_error")


def test_events_of_a_job_that_an_operator_cancels_end_with_its_error() -> None:
    stream = Stream([b"one"], Cancelled("cancelled by an operator"))
    asked = Asked(stream=lambda *_, **__: stream)
    status, _, events = asked.ask("POST", "/v1/audio/speech", {"input": "x", "stream": True})
    assert status == 200 and not asked.broken_off.is_set()
    assert b"event: speech.audio.error" in events and b'"code":"cancelled"' in events


def test_files_are_counted_while_they_are_sent_and_sent_in_pieces() -> None:
    file = bytes(2 << 20)

    async def voice_sample(*_: Any, **__: Any) -> VoiceSample:
        return VoiceSample(name="v", owner="own", format="wav", text="x", seconds=1.0, audio=file)

    asked = Asked(voice_sample=voice_sample)
    status, headers, body = asked.ask("GET", "/v1/audio/voices/v/sample")
    assert (status, headers["content-length"], body) == (200, str(len(file)), file)
    follows = Asked(stream=lambda *_, **__: Stream([file, b"end"]))
    assert follows.ask("POST", "/v1/audio/speech", {"input": "x"})[2] == file + b"end"
    for one in (asked, follows):
        assert max(len(message.get("body", b"")) for message in one.sent) <= 64 << 10
        assert len(file) - (64 << 10) <= max(one.held) <= len(file) and one.memory._held.total() == 0

    # No file of another request fits.
    for one in (asked, follows):
        one.memory.add("192.0.2.9", 7 << 20)
        one.sent.clear()
    assert asked.ask("GET", "/v1/audio/voices/v/sample")[0] == 503
    stream = Stream([file])
    follows.app._app._app.state.client.stream = lambda *_, **__: stream
    assert follows.ask("POST", "/v1/audio/speech", {"input": "x"})[0] == 503
    assert stream.closed


def test_what_is_one_customer_s_is_not_kept_by_a_cache() -> None:
    async def jobs(*_: Any, **__: Any) -> list[Any]:
        return []

    async def voices(*_: Any, **__: Any) -> list[Any]:
        return []

    for path in ("/v1/audio/jobs", "/v1/audio/voices", "/v1/models", "/livez"):
        assert Asked(jobs=jobs, voices=voices).ask("GET", path)[1]["cache-control"] == "no-store"
    assert "cache-control" in Asked().ask("GET", "/")[1]


def test_work_that_fails_after_its_client_has_gone_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            raise WorkerCrashed("too late") from None

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def run() -> None:
        with pytest.raises(bodies.ClientGoneError):
            await bodies.unless_gone(Request({"type": "http"}, receive), work())
        gc.collect()

    asyncio.run(run())
    assert "never retrieved" not in caplog.text
