"""The events socket: what a watcher hears of jobs, workers, the queue and the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq

from .conftest import Daemon, Peer, Start

SLOW: dict[str, Any] = {"seconds": 20.0, "rtf": 1.0}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(workers={"max": 2})


@pytest.fixture
def watcher(daemon: Daemon) -> Iterator[zmq.Socket[bytes]]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    with contextlib.closing(socket):
        socket.linger = 0
        socket.connect(daemon.events_endpoint)
        socket.subscribe("")
        # A subscription takes its way: what is published until then is missed.
        daemon.until(lambda: daemon.control("log_level", level="info") and _primed(daemon, socket), "it is subscribed")
        yield socket


def _primed(daemon: Daemon, socket: zmq.Socket[bytes]) -> bool:
    """Whether a job of our own is heard of; drops all that is."""
    with contextlib.closing(daemon.client()) as client:
        job = client.speak("heard?", events="final")[0]["job"]
    while socket.poll(100):
        topic, values = socket.recv_multipart()
        if topic == b"job.done" and msgpack.unpackb(values)["job"] == job:
            return True
    return False


def hear(watcher: zmq.Socket[bytes], *topics: str) -> list[tuple[str, Any]]:
    """Listen until each of the topics was heard, in this order."""
    heard: list[tuple[str, Any]] = []
    for topic in topics:
        while not heard or heard[-1][0] != topic:
            assert watcher.poll(10_000), f"no {topic} after {heard}"
            name, values = watcher.recv_multipart()
            heard.append((name.decode(), msgpack.unpackb(values)))
        heard[-1] = (heard[-1][0] + " ", heard[-1][1])
    return [(name.strip(), values) for name, values in heard]


def test_a_watcher_hears_of_jobs(client: Peer, watcher: zmq.Socket[bytes]) -> None:
    done, _ = client.speak()
    heard = dict(hear(watcher, "job.waiting", "job.running", "job.done"))
    assert {heard[t]["job"] for t in heard if t.startswith("job.")} == {done["job"]}
    assert heard["job.running"]["worker"] == "w0" and heard["job.done"]["outcome"] == "done"
    client.refused("synthesize", text="x", options={"fault": "raise"})
    assert dict(hear(watcher, "job.failed"))["job.failed"]["outcome"] == "synthesis_failed"
    client.refused("synthesize", text="x", options=SLOW, deadline_s=0.05)
    assert dict(hear(watcher, "job.failed"))["job.failed"]["outcome"] == "deadline_exceeded"


def test_a_watcher_hears_of_workers_and_the_queue(daemon: Daemon, client: Peer, watcher: zmq.Socket[bytes]) -> None:
    pid = daemon.workers()[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    heard = hear(watcher, "worker.starting", "worker.ready")
    assert heard[-1][1]["name"] == "w1" and heard[-1][1]["pid"] != pid
    assert heard[-1][1]["last_death"]["cause"] == "crashed"
    ids = [client.send("synthesize", text="hello", options={"seconds": 1.2, "rtf": 1.0}) for _ in range(3)]
    assert dict(hear(watcher, "queue"))["queue"]["waiting"] == 1
    for id in ids:
        client.all(id)


def test_a_watcher_hears_of_the_daemon_itself(daemon: Daemon, watcher: zmq.Socket[bytes]) -> None:
    daemon.control("drain")
    daemon.control("resume")
    hear(watcher, "daemon.draining", "daemon.drained", "daemon.running")


@pytest.mark.usefixtures("watcher")
def test_a_watcher_that_does_not_read_slows_no_client(daemon: Daemon, client: Peer) -> None:
    with daemon.still_serves(32):
        for _ in range(400):
            client.speak(events="final", options={"seconds": 0.01})
