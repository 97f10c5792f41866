"""Clients that connect and say nothing, ask and never read, or vanish: the daemon's memory and its other clients."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from .conftest import Daemon, Peer, Start

#: 48 kB a second, as fast as the worker can make it.
LONG: dict[str, Any] = {"seconds": 2_000.0}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared()


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """As many descriptors as we may have; yields how many connections that is good for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(5_000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(daemon: Daemon, count: int, stack: contextlib.ExitStack) -> None:
    """That many connections that never say a word."""
    for _ in range(count):
        raw = stack.enter_context(socket.socket(socket.AF_UNIX))
        # A wait in the kernel, where the backlog is full: a Python timeout would make it an error.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
        raw.connect(str(daemon.runtime / "glmtts.sock"))


def test_thousands_of_silent_connections_leave_room_for_new_clients(start: Start, many_descriptors: int) -> None:
    daemon = start()
    early = daemon.client()
    early.speak()
    with daemon.still_serves(), contextlib.ExitStack() as stack:
        connect(daemon, many_descriptors, stack)
        assert early.ask("ping")["event"] == "pong"
        late = daemon.client()
        late.speak("let me in")
        turned_away = many_descriptors - 4_096
        daemon.until(lambda: daemon.status()["connections_turned_away"] >= turned_away, "the rest is turned away")
        assert daemon.status()["connections"] <= 4_096
    early.speak()


def test_a_daemon_with_few_descriptors_does_not_end_for_want_of_them(start: Start, many_descriptors: int) -> None:
    few = 2_048
    daemon = start()
    daemon.stop()
    daemon.process = daemon.launch(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (few, few)))
    daemon.until_ready()
    daemon.until_logged("LimitNOFILE")
    early = daemon.client()
    early.speak()
    with daemon.still_serves(), contextlib.ExitStack() as stack:
        connect(daemon, min(3_000, many_descriptors), stack)
        assert early.ask("ping")["event"] == "pong"
        daemon.client().speak()
        assert daemon.status()["connections"] <= few / 2


def test_a_stream_whose_client_vanishes_is_cancelled(daemon: Daemon, client: Peer) -> None:
    with contextlib.closing(daemon.client()) as vanishing:
        id = vanishing.send("synthesize", text="gone", stream=True, options={"seconds": 60.0, "rtf": 1.0})
        vanishing.until(id, "audio")
    daemon.until(lambda: client.ask("jobs", state="cancelled")["jobs"], "the job is cancelled")
    client.speak()
    with contextlib.closing(daemon.client()) as vanishing:
        options = {"seconds": 60.0, "rtf": 1.0}
        ids = [vanishing.send("synthesize", text=f"gone {n}", stream=True, options=options) for n in range(50)]
        for id in ids:
            vanishing.until(id, "accepted")
    daemon.until(lambda: len(client.ask("jobs", state="cancelled")["jobs"]) == 51, "all of them are cancelled")
    client.speak()


def test_a_stream_that_is_not_read_ends_as_slow_consumer(start: Start) -> None:
    daemon = start(limits={"send_buffer_mib": 4}, queue={"keep_results_mib": 0})
    client = daemon.client()
    with daemon.still_serves(40), contextlib.closing(daemon.client(RCVHWM=1, RCVBUF=4_096)) as deaf:
        id = deaf.send("synthesize", text="for deaf ears", stream=True, options=LONG)
        daemon.until(lambda: daemon.status()["counts"]["ended"].get("slow_consumer"), "the job has ended")
        client.speak("meanwhile")
        # What was sent can still be read, and then why there is no more.
        events, audio = deaf.all(id)
        assert events[-1]["event"] == "error" and events[-1]["code"] == "slow_consumer"
        assert [e["seq"] for e in events if e["event"] == "audio"] == list(range(len(events) - 3))
        assert 1 << 20 <= len(audio) < 16 << 20


def test_many_clients_that_never_read_stay_within_one_memory_limit(start: Start) -> None:
    daemon = start(limits={"send_buffer_mib": 8}, queue={"keep_results_mib": 0, "max_waiting": 200})
    client = daemon.client()
    client.speak()
    before = daemon.rss_mib
    with daemon.still_serves(80), contextlib.ExitStack() as stack:
        for number in range(40):
            deaf = stack.enter_context(contextlib.closing(daemon.client(RCVHWM=1, RCVBUF=4_096)))
            # Some in small pieces, some in files of 6 MB.
            keys = {"stream": True} if number % 2 else {"format": "pcm_s16le"}
            deaf.send("synthesize", text=f"deaf {number}", options={"seconds": 120.0}, **keys)
        daemon.until(lambda: not client.ask("jobs", state="waiting")["jobs"], "all are through")
        assert daemon.rss_mib < before + 80
        client.speak("meanwhile")


def test_the_memory_of_large_messages_is_given_back(daemon: Daemon, client: Peer) -> None:
    client.speak()
    before = daemon.rss_mib
    for _ in range(2):
        recording = bytes(15 << 20)
        ids = [client.send("synthesize", recording, text="no recording", prompt={"text": "x"}) for _ in range(30)]
        for id in ids:
            client.all(id)
    daemon.until(lambda: daemon.rss_mib < before + 16, "what was sent is not kept")


def test_a_client_that_never_reads_its_answers_is_disconnected(start: Start) -> None:
    daemon = start(limits={"send_buffer_mib": 1})
    client = daemon.client()
    with daemon.still_serves(40), contextlib.closing(daemon.client(RCVHWM=1, RCVBUF=4_096, SNDHWM=0)) as deaf:
        for _ in range(3_000):
            deaf.send("info")
        daemon.until(lambda: daemon.status()["connections_ended_unread"], "the connection is ended")
        client.speak("meanwhile")


def test_a_client_that_reads_late_but_reads_loses_nothing(start: Start) -> None:
    daemon = start()
    client, slow = daemon.client(), daemon.client(RCVHWM=1)
    expected, _ = client.speak("patience", stream=True, options={"seconds": 400.0})
    id = slow.send("synthesize", text="patience", stream=True, options={"seconds": 400.0})
    daemon.until(lambda: len(client.ask("jobs", state="done")["jobs"]) == 2, "it is spoken")
    events, audio = slow.all(id)
    assert events[-1]["event"] == "done" and events[-1]["sha256"] == expected["sha256"]
    assert len(audio) == 400 * 48_000


def test_a_flood_of_requests_leaves_others_their_turn(daemon: Daemon, client: Peer) -> None:
    client.speak()
    stop = threading.Event()

    def flood(peer: Peer) -> None:
        while not stop.is_set():
            peer.send("ping")
            while peer.socket.poll(0):
                peer.receive()

    threads = [threading.Thread(target=flood, args=(daemon.client(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        begun = time.monotonic()
        for _ in range(5):
            client.speak()
        assert time.monotonic() - begun < 15
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_frames_without_an_end_cost_their_sender_its_connection_alone(daemon: Daemon) -> None:
    """A message is delivered when its last frame is there; until then it is ZeroMQ's."""
    with daemon.still_serves(100), contextlib.closing(daemon.client()) as endless:
        for _ in range(1_000):
            endless.socket.send(b"x" * 10_000, zmq.SNDMORE)


def test_a_message_of_a_million_frames_does_not_stop_the_service_nor_cost_a_worker_its_life(start: Start) -> None:
    daemon = start(workers={"max": 1, "hang_timeout_s": 1.0})
    client = daemon.client()
    before = daemon.workers()[0]["pid"]
    job = client.send("synthesize", text="meanwhile", options={"fault": "sleep", "seconds": 3.0})
    client.until(job, "started")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.settimeout(20)
        raw.connect(str(daemon.runtime / "glmtts.sock"))
        # ZMTP 3.0 (rfc.zeromq.org/spec/23): greeting, READY of a DEALER, then empty frames with MORE.
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        greeting = b""
        while len(greeting) < 64:
            greeting += raw.recv(64 - len(greeting))
        ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
        assert b"READY" in raw.recv(4_096)
        for _ in range(10):
            raw.sendall(b"\x01\x00" * 100_000)
        raw.sendall(b"\x00\x00")
        daemon.until(lambda: daemon.status()["floods_ended"] == 1, "the sender is found out", 10)
    assert client.until(job, "done", patience_s=10)["attempts"] == 1
    assert daemon.workers()[0]["pid"] == before


def test_every_stream_of_a_late_reader_has_an_end_when_buffers_are_full(start: Start) -> None:
    """With more unread than the daemon keeps, streams end in ``slow_consumer``; none just falls silent."""
    daemon = start(limits={"send_buffer_mib": 16}, queue={"keep_results_mib": 0})
    late = [daemon.client(RCVHWM=1, RCVBUF=4_096) for _ in range(5)]
    ids = [peer.send("synthesize", text="late", stream=True, options={"seconds": 140.0}) for peer in late]
    client = daemon.client()
    daemon.until(lambda: sum(daemon.status()["counts"]["ended"].values()) == len(late), "all have ended")
    ends = [peer.all(id)[0][-1] for peer, id in zip(late, ids, strict=True)]
    assert {end["event"] for end in ends} <= {"done", "error"}
    assert {end["code"] for end in ends if end["event"] == "error"} <= {"slow_consumer"}
    assert any(end["event"] == "error" for end in ends)
    client.speak()
