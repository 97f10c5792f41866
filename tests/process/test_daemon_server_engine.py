"""A daemon whose engine is a server, a stand-in with the bad habits of real ones. tests/system has a real one."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from ..support import speech_server
from ..support.speech_server import tone

if TYPE_CHECKING:
    from ..fake_gpu.fake_gpu import FakeGpus
    from .conftest import Daemon, Peer, Start

MIB = 1 << 20
STAND_IN = [sys.executable, speech_server.__file__, "{port}"]
RESTART = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50, "quarantine_after": 1}


def through(*command: str, **settings: Any) -> dict[str, Any]:
    """The configuration of the engine."""
    server = {"command": list(command), "start_timeout_s": 15.0, "slots": 4} | settings
    return {"name": "server", "warmup_text": "warm", "server": server}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(
        engine=through(*STAND_IN, "deaf"),
        workers={"hang_timeout_s": 2.0, "restart": RESTART},
        daemon={"log_level": "debug"},
    )


@pytest.fixture
def client(daemon: Daemon) -> Peer:
    daemon.until_ready()
    return daemon.client()


def heard(audio: bytes) -> np.ndarray:
    samples: np.ndarray
    samples, rate = soundfile.read(io.BytesIO(audio), dtype="int16")
    assert rate == speech_server.RATE
    return samples


def servers(daemon: Daemon) -> list[int]:
    """The stand-ins that live."""
    mark = speech_server.__file__.encode()
    found = []
    for pid in daemon.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_jobs_are_spoken_side_by_side_through_the_server(daemon: Daemon, client: Peer) -> None:
    texts = [f"slowly {name * 30}" for name in "abcd"]
    ids = {client.send("synthesize", text=text): text for text in texts}
    for id, text in ids.items():
        events, audio = client.all(id)
        assert events[-1]["event"] == "done", events[-1]
        alone = np.frombuffer(b"".join(tone(letter) for letter in text), "<i2")
        assert np.array_equal(heard(audio), alone)
    (server,) = servers(daemon)
    port = int(Path(f"/proc/{server}/cmdline").read_bytes().split(b"\0")[2])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as asked:
        asked.request("GET", "/state")
        assert json.loads(asked.getresponse().read())["most"] == 4


def test_its_memory_is_the_workers_and_its_texts_stay_out_of_the_log(daemon: Daemon, client: Peer) -> None:
    client.speak("a")
    (before,) = daemon.workers()
    client.speak("leak of the server")
    client.speak("print secret")
    (after,) = daemon.workers()
    assert after["rss"] - before["rss"] > 30 * MIB
    assert servers(daemon), "no server is seen"
    daemon.until_logged("server: <3>speaking print secret")
    line = next(line for line in daemon.log().splitlines() if "speaking print secret" in line)
    assert "debug" in line.lower()


def test_a_job_that_kills_the_server_or_hangs_in_it_costs_itself_alone(daemon: Daemon, client: Peer) -> None:
    old = servers(daemon)
    other = client.send("synthesize", text="slowly spoken beside the one that kills")
    assert client.refused("synthesize", text="die")["code"] == "quarantined"
    assert client.all(other)[0][-1]["event"] == "done"
    assert client.refused("synthesize", text="hang")["code"] == "quarantined"
    client.speak("fork a child that would stay")
    assert client.speak("next")[1]
    daemon.until(lambda: not set(old) & set(servers(daemon)), "the old server is gone")
    assert len(servers(daemon)) == 1


def test_a_server_that_dies_idle_is_replaced_before_the_next_job(daemon: Daemon, client: Peer) -> None:
    (old,) = servers(daemon)
    os.kill(old, signal.SIGKILL)
    daemon.until(lambda: servers(daemon) and old not in servers(daemon), "another server is started")
    daemon.until_ready()
    events, _ = client.all(client.send("synthesize", text="next"))
    assert events[-1]["event"] == "done" and [event["event"] for event in events].count("started") == 1


def test_a_broken_server_is_replaced_and_its_jobs_are_done_by_the_next(daemon: Daemon, client: Peer) -> None:
    (before,) = daemon.workers()
    # Each asks the server once more than it may fail.
    events, _ = client.all(client.send("synthesize", text="break once"))
    assert events[-1]["event"] in ("done", "error")
    assert client.speak("next")[1]
    (after,) = daemon.workers()
    assert after["pid"] != before["pid"]


def test_nothing_of_the_server_is_left_when_the_daemon_is_killed(daemon: Daemon, client: Peer) -> None:
    client.speak("fork a child that would stay")
    assert len(daemon.processes()) >= 4
    daemon.kill()
    daemon.until_nothing_is_left(5.0)
    daemon.restart()  # for the other tests


def test_a_server_that_can_not_start_is_named_in_status(start: Start) -> None:
    daemon = start(wait=False, engine=through(*STAND_IN, "print"), workers={"restart": RESTART})
    daemon.until_logged("OSError: the weights are missing")
    daemon.until(lambda: (daemon.workers()[0].get("last_death") or {}).get("detail"), "its end is seen")
    assert "it printed last" in daemon.workers()[0]["last_death"]["detail"]


def test_its_gpu_memory_is_the_workers(start: Start, fake_gpus: FakeGpus) -> None:
    daemon = start(
        environment=fake_gpus.environment(),
        engine=through(*STAND_IN, "vram"),
        workers={"gpus": "all", "max": 0},
    )
    daemon.until(lambda: daemon.workers()[0]["vram"], "its memory is known")
    (worker,), (server,) = daemon.workers(), servers(daemon)
    assert worker["vram_trust"] == "process" and worker["vram"] == fake_gpus.held_by(server) >= 1_500 * MIB
    assert daemon.gpus()[0]["others"] == 0
