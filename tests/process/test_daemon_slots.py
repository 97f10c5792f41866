"""A worker with several slots: an urgent job gets one at once, and a stream outlives the worker that made it."""

from __future__ import annotations

import hashlib
import os
import signal
from typing import Any

import pytest

from .conftest import Daemon, Peer, Start

SLOTS = 8
#: Ten minutes of speech, at the pace of speech.
CHAPTER: dict[str, Any] = {"seconds": 600.0, "segments": 10, "rtf": 1.0}
#: What the machine may take for a step, which is shared; a segment takes a minute.
SLACK_S = 5.0


@pytest.fixture
def daemon(start: Start) -> Daemon:
    return start(engine={"fault": {"slots": SLOTS}}, queue={"interactive_workers": 0})


def worker_of(daemon: Daemon) -> dict[str, Any]:
    (worker,) = daemon.control("workers")["workers"]
    return dict(worker)


def suspended(daemon: Daemon) -> list[str]:
    return list(worker_of(daemon)["suspended"])


def test_an_urgent_job_gets_a_slot_within_a_step_beside_eight_chapters(daemon: Daemon) -> None:
    client = daemon.client()
    keys: dict[str, Any] = {"priority": "batch", "durable": False, "options": CHAPTER}
    for id in [client.send("synthesize", text=f"chapter {n}", **keys) for n in range(SLOTS)]:
        client.until(id, "started")
    # A worker has up to three suspended.
    urgent = [client.send("synthesize", text=f"urgent {n}", options=CHAPTER) for n in range(3)]
    started = [client.until(id, "started") for id in urgent]
    assert max(event["waited_s"] for event in started) < SLACK_S
    assert len(suspended(daemon)) == 3
    for event in started:
        client.ask("cancel", job=event["job"])
    daemon.until(lambda: not suspended(daemon), "all are resumed")
    assert daemon.control("cancel", client=f"uid:{os.geteuid()}")["cancelled"] == SLOTS


def test_a_suspended_job_ends_with_the_same_bytes(daemon: Daemon) -> None:
    client = daemon.client()
    options = {"seconds": 2.0, "segments": 2}
    _, undisturbed = client.speak("a page", priority="batch", options=options)
    keys: dict[str, Any] = {"priority": "batch", "durable": False, "options": options | {"rtf": 1.0}}
    pages = [client.send("synthesize", text="a page", **keys) for _ in range(SLOTS)]
    for id in pages:
        client.until(id, "started")
    urgent = client.until(client.send("synthesize", text="urgent", options=CHAPTER), "started")["job"]
    assert len(suspended(daemon)) == 1
    client.ask("cancel", job=urgent)
    for id in pages:
        events, audio = client.all(id)
        assert (events[-1]["event"], events[-1]["attempts"]) == ("done", 1)
        assert hashlib.sha256(audio).digest() == hashlib.sha256(undisturbed).digest()


def test_a_stream_whose_worker_is_killed_goes_on_without_a_gap(daemon: Daemon) -> None:
    client = daemon.client()
    options = {"seconds": 4.0, "segments": 8}
    keys: dict[str, Any] = {"stream": True, "format": "wav"}
    events, undisturbed = client.all(client.send("synthesize", text="a story", options=options, **keys))
    streams = [client.send("synthesize", text="a story", options=options | {"rtf": 0.5}, **keys) for _ in range(3)]
    parts = {id: hear(client, id, 2) for id in streams}
    os.kill(worker_of(daemon)["pid"], signal.SIGKILL)
    for id in streams:
        rest, audio = client.all(id)
        whole = parts[id] + audio
        assert (rest[-1]["event"], rest[-1]["attempts"]) == ("done", 2)
        assert hashlib.sha256(whole).hexdigest() == rest[-1]["sha256"] == events[-1]["sha256"]
        assert whole == undisturbed
        chunks = [event["seq"] for event in rest if event["event"] == "audio"]
        assert chunks == list(range(2, rest[-1]["chunks"]))


def hear(client: Peer, id: str, count: int) -> bytes:
    """The first chunks of a stream."""
    heard: list[bytes] = []
    while len(heard) < count:
        event, body = client.next(id)
        assert event["event"] in ("accepted", "started", "progress", "audio"), event
        if event["event"] == "audio":
            heard.append(body or b"")
    return b"".join(heard)
