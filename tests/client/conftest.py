"""A scripted daemon: a real ROUTER in a thread that speaks the protocol, and can die and come back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from glmtts.protocol import codec, events
from glmtts.protocol.requests import Synthesize

DEADLINE_S = 10.0

Request = Any
Script = Callable[["ScriptedDaemon", bytes, Request, bytes], None]


def done(job: str, id: str, audio: bytes = b"", **changes: Any) -> events.Done:
    values: dict[str, Any] = {
        "job": job,
        "id": id,
        "format": "wav",
        "sample_rate": 24_000,
        "audio_s": 1.0,
        "waited_s": 0.1,
        "synthesis_s": 0.2,
        "first_audio_s": 0.05,
        "rtf": 0.2,
        "attempts": 1,
        "engine": "scripted",
        "voice": "zh",
        "sha256": hashlib.sha256(audio).hexdigest(),
    }
    return events.Done(**(values | changes))


def accepted(job: str, id: str, position: int = 0) -> events.Accepted:
    return events.Accepted(id=id, job=job, position=position, queue_size=position, estimated_wait_s=0.0)


def audio(job: str, id: str, seq: int) -> events.Audio:
    return events.Audio(id=id, job=job, seq=seq, format="pcm_s16le", sample_rate=24_000, channels=1)


def speak_at_once(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
    """What a healthy daemon does; a file is the text's own bytes, a stream one chunk for each of its characters."""
    match request.__struct_config__.tag:
        case "synthesize":
            job = daemon.new_job()
            daemon.send(peer, accepted(job, request.id))
            daemon.send(peer, events.Started(id=request.id, job=job, worker="w0", gpu=None, attempt=1, waited_s=0.0))
            if request.stream:
                for seq, character in enumerate(request.text):
                    daemon.send(peer, audio(job, request.id, seq), character.encode("utf-16-le"))
                daemon.send(peer, done(job, request.id, chunks=len(request.text)))
            else:
                speech = body + request.text.encode()
                daemon.send(peer, done(job, request.id, speech), speech)
        case "ping":
            daemon.send(peer, events.Pong(id=request.id, version="0", protocol=1, uptime_s=1.0))
        case "voices":
            daemon.send(peer, events.VoicesAnswer(id=request.id, voices=[events.Voice(name="zh", language="zh")]))
        case "jobs":
            daemon.send(peer, events.JobsAnswer(id=request.id, jobs=[]))
        case "cancel":
            daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))
        case tag:
            daemon.send(peer, events.Result(id=request.id, values={"op": tag}))


class ScriptedDaemon:
    """``requests`` has every request in order of arrival, as (peer, request, body)."""

    def __init__(self, path: Path, decode: Callable[..., Request]) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}"
        self.script: Script = speak_at_once
        self.requests: queue.Queue[tuple[bytes, Request, bytes]] = queue.Queue()
        self._decode = decode
        self._jobs = 0
        self._to_send: queue.Queue[list[bytes] | None] = queue.Queue()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        bound = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bound,), daemon=True)
        self._thread.start()
        assert bound.wait(DEADLINE_S)

    def stop(self) -> None:
        """Die: the connections break and the socket's file goes."""
        if self._thread is not None:
            self._to_send.put(None)
            self._wake()
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive()
            self._thread = None

    def close(self) -> None:
        self.stop()
        self._wake_read.close()
        self._wake_write.close()

    def new_job(self) -> str:
        self._jobs += 1
        return f"j{self._jobs}"

    def send(self, peer: bytes, event: msgspec.Struct, body: bytes | None = None) -> None:
        frames = [peer, codec.encode(event)]
        self._to_send.put(frames if body is None else [*frames, body])
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake
            self._wake_write.send(b"x")

    def next_request(self, op: str | None = None) -> tuple[bytes, Request, bytes]:
        """The next request, or the next of one op; fails when none comes in time."""
        while True:
            entry = self.requests.get(timeout=DEADLINE_S)
            if op is None or entry[1].__struct_config__.tag == op:
                return entry

    def _run(self, bound: threading.Event) -> None:
        context = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        router.router_mandatory = True
        router.sndhwm = 0  # never waits for a client that does not read
        router.bind(self.endpoint)
        bound.set()
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        running = True
        while running:
            poller.poll()
            with contextlib.suppress(zmq.Again):
                while True:
                    peer, *frames = router.recv_multipart(zmq.NOBLOCK)
                    request = self._decode(frames, codec.CodecLimits())
                    body = frames[1] if len(frames) > 1 else b""
                    self.requests.put((peer, request, body))
                    self.script(self, peer, request, body)
            with contextlib.suppress(BlockingIOError):
                self._wake_read.recv(4_096)
            while not self._to_send.empty():
                message = self._to_send.get()
                if message is None:
                    running = False
                    break
                with contextlib.suppress(zmq.ZMQError):  # the client is gone
                    router.send_multipart(message)
        router.close()
        context.term()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    peer = ScriptedDaemon(tmp_path / "glmtts.sock", codec.decode_request)
    yield peer
    peer.close()


@pytest.fixture
def control_daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    peer = ScriptedDaemon(tmp_path / "control.sock", codec.decode_control)
    yield peer
    peer.close()


class Publisher:
    """An events socket, in the place of a daemon's, that can die and come back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.bind(f"ipc://{self.path}")

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._context.term()

    def wait_for_listener(self) -> bytes:
        """The topic that somebody has subscribed to."""
        assert self._socket is not None and self._socket.poll(DEADLINE_S * 1e3), "nobody listens"
        return self._socket.recv()[1:]

    def say(self, topic: str, /, **values: Any) -> None:
        self.send(topic.encode(), codec.encode_map(values))

    def send(self, *frames: bytes) -> None:
        assert self._socket is not None
        self._socket.send_multipart(frames)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """The events socket beside the scripted daemon's."""
    made = Publisher(tmp_path / "events.sock")
    yield made
    made.close()


@pytest.fixture
def answers(control_daemon: ScriptedDaemon) -> dict[str, Any]:
    """What the control socket answers, by op: a map, or a function of the request that makes one."""
    by_op: dict[str, Any] = {}

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        answer = by_op.get(request.__struct_config__.tag, {})
        values = answer(request) if callable(answer) else answer
        daemon.send(peer, events.Result(id=request.id, values=values))

    control_daemon.script = script
    return by_op


@pytest.fixture
def accept_only() -> Script:
    """A daemon that accepts jobs and never ends them, but answers the rest."""

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
        if isinstance(request, Synthesize):
            daemon.send(peer, accepted(daemon.new_job(), request.id))
        elif request.__struct_config__.tag == "cancel":
            speak_at_once(daemon, peer, request, body)

    return script


@pytest.fixture
def say() -> Any:
    """The makers of events, for tests that script a daemon themselves."""

    class Say:
        accepted = staticmethod(accepted)
        audio = staticmethod(audio)
        done = staticmethod(done)
        speak_at_once = staticmethod(speak_at_once)

    return Say


@pytest.fixture
def no_daemon(tmp_path: Path) -> str:
    """An endpoint whose socket was left behind by a daemon that is no more."""
    path = tmp_path / "gone.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    return f"ipc://{path}"
