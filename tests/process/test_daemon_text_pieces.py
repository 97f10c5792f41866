"""A text that comes in pieces, spoken by real workers while it comes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from glmtts.client import AsyncClient, Client, TooLarge

from .conftest import PATIENCE_S, Daemon, Peer, Start
from .glmttsctl import GLMTTSCTL

#: Abbreviations, numbers, quotation marks, both scripts: a full stop is not always the end.
TEXT = 'Dr. Smith paid 3.50 dollars... "Really?" 他说：“好的。” 然后 he left. 2024. End'


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared()


@pytest.fixture(scope="module")
def espeak(start_shared: Start) -> Daemon:
    return start_shared(engine={"name": "espeak"})


def opened(client: Peer, text: str = "", **keys: Any) -> tuple[str, str]:
    """A job with ``more``: its request and its id."""
    request = client.send("synthesize", text=text, more=True, stream=True, **keys)
    return request, str(client.until(request, "accepted")["job"])


def spoken(client: Peer, text: str, size: int) -> tuple[Any, list[Any], bytes]:
    request, job = opened(client)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for number, piece in enumerate(pieces, 1):
        client.send("text", job=job, text=piece, last=number == len(pieces))
    events, audio = client.all(request)
    return events[-1], [(e["segment"], e["audio_s"]) for e in events if e["event"] == "progress"], audio


@pytest.mark.parametrize("engine", ["daemon", "espeak"])
def test_single_characters_sound_as_the_whole_text_does(engine: str, request: pytest.FixtureRequest) -> None:
    client = request.getfixturevalue(engine).client()
    done, segments, audio = spoken(client, TEXT, len(TEXT))
    assert done["event"] == "done" and len(segments) == 6
    assert spoken(client, TEXT, 1)[1:] == (segments, audio)
    if engine == "espeak":
        _, whole = client.speak(TEXT, stream=True)
        assert whole == audio


def test_a_sentence_is_heard_before_the_next_one_is_written(client: Peer, daemon: Daemon) -> None:
    request, job = opened(client, "Good morning. H")
    assert client.until(request, "audio")["seq"] == 0
    client.until(request, "progress")
    daemon.until(lambda: client.ask("job", job=job).get("waits_for_text"), "the job waits for text")
    # The only worker speaks for others meanwhile.
    client.speak("hello", options={"seconds": 0.2})
    assert client.ask("text", job=job, text="ow are you?", last=True)["text_length"] == 26
    assert client.until(request, "audio")["seq"] >= 1
    events, _ = client.all(request)
    assert events[-1]["event"] == "done" and "waits_for_text" not in client.ask("job", job=job)


def test_a_job_that_waits_for_text_is_cancelled_and_its_worker_lives(client: Peer) -> None:
    request, job = opened(client, "One. T")
    client.until(request, "progress")
    assert client.ask("cancel", job=job)["state"] == "cancelled"
    assert client.all(request)[0][-1]["code"] == "cancelled"
    assert client.ask("text", job=job, text="x")["code"] == "bad_request"
    assert client.speak()[0]["attempts"] == 1


def test_a_killed_worker_costs_a_file_in_pieces_no_word(client: Peer, daemon: Daemon) -> None:
    request = client.send("synthesize", text="One. T", more=True, format="pcm_s16le")
    job = client.until(request, "accepted")["job"]
    started = client.until(request, "started")
    client.until(request, "progress")
    os.kill(daemon.worker_of(started), signal.SIGKILL)
    client.ask("text", job=job, text="wo. Th")
    assert client.until(request, "started")["attempt"] == 2
    client.send("text", job=job, text="ree.", last=True)
    events, audio = client.all(request)
    assert events[-1]["event"] == "done" and events[-1]["attempts"] == 2
    _, _, whole = spoken(client, "One. Two. Three.", 16)
    assert np.array_equal(np.frombuffer(audio, "<i2"), np.frombuffer(whole, "<i2"))


def test_the_client_streams_pieces_while_they_are_made(daemon: Daemon) -> None:
    heard = threading.Event()

    def words() -> Iterator[str]:
        yield from "One. T"
        # The first sentence is heard before the second one is there.
        assert heard.wait(PATIENCE_S)
        yield from ("", "wo. ", "Three.")

    with Client(daemon.endpoint, timeout=PATIENCE_S) as client:
        stream = client.stream(words())
        audio = b""
        for chunk in stream:
            audio += chunk.samples
            heard.set()
        assert stream.done is not None
        assert audio == b"".join(chunk.samples for chunk in client.stream(["One. Two. Three."]))
        with pytest.raises(ZeroDivisionError):
            list(client.stream(str(1 // number) for number in (1, 0)))
        with pytest.raises(TypeError, match="one is int"):
            list(client.stream([1]))  # type: ignore[list-item]
        with pytest.raises(TooLarge, match="5002 characters"):
            list(client.stream(["One. ", "x" * 4_997]))
        assert client.speak("hello").attempts == 1
        assert not client.jobs("running")


def test_the_asyncio_client_streams_pieces_of_every_kind(daemon: Daemon) -> None:
    async def run() -> None:
        heard = asyncio.Event()

        async def words() -> AsyncIterator[str]:
            yield "One. T"
            await heard.wait()
            yield "wo. Three."

        async with AsyncClient(daemon.endpoint, timeout=PATIENCE_S) as client:
            first = b""
            async for chunk in client.stream(words()):
                first += chunk.samples
                heard.set()
            for text in (["One. ", "Two. Three."], iter("One. Two. Three.")):
                assert b"".join([chunk.samples async for chunk in client.stream(text)]) == first
            with pytest.raises(ZeroDivisionError):
                [chunk async for chunk in client.stream(str(1 // number) for number in (1, 0))]
            heard.clear()  # the rest never comes
            async with client.stream(words()) as stream:
                await anext(stream)
            assert stream.job is not None and (await client.job(stream.job.id)).state == "cancelled"

    asyncio.run(run())


def test_glmttsctl_speaks_while_its_input_grows(daemon: Daemon) -> None:
    command = [GLMTTSCTL, "say", "-", "--stream", "-q", "--endpoint", daemon.endpoint]
    with subprocess.Popen(command, stdin=-1, stdout=-1, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        # A line that a person has typed: the next one comes when this one was heard.
        for line in (b"Good morning.\n", b"How are you\n"):
            process.stdin.write(line)
            assert process.stdout.read(2)
        process.stdin.close()
        assert process.stdout.read()
        assert process.wait(PATIENCE_S) == 0
