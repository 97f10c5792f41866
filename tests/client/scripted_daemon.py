"""A daemon that answers as a test scripts it: real ROUTER and XPUB sockets, which can die and come back."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import zmq

from glmtts.protocol import codec, control, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, ListJobs, Ping, Request, Synthesize, Voices

DEADLINE_S = 10.0

R = TypeVar("R", bound=Request)


class Asked(NamedTuple):
    """One request: from whom, and the bytes that came with it."""

    peer: bytes
    request: Request
    body: bytes


#: Answers one request, by the daemon's ``send``.
Script = Callable[["ScriptedDaemon", bytes, Request, bytes], None]

#: What the control socket answers by op: a map, or a function of the request that makes one.
Answers = dict[str, Any]


def done(job: str, id: str, audio: bytes = b"", **changes: object) -> events.Done:
    values: dict[str, Any] = {
        "job": job, "id": id, "format": "wav", "sample_rate": 24_000, "audio_s": 1.0, "waited_s": 0.1,
        "synthesis_s": 0.2, "first_audio_s": 0.05, "rtf": 0.2, "attempts": 1, "engine": "scripted", "voice": "zh",
        "sha256": hashlib.sha256(audio).hexdigest(),
    }  # fmt: skip
    return events.Done(**(values | changes))


def accepted(job: str, id: str, position: int = 0) -> events.Accepted:
    return events.Accepted(id=id, job=job, position=position, queue_size=position, estimated_wait_s=0.0)


def audio(job: str, id: str, seq: int) -> events.Audio:
    return events.Audio(id=id, job=job, seq=seq, format="pcm_s16le", sample_rate=24_000, channels=1)


def op_of(request: Request) -> str:
    return str(request.__struct_config__.tag)


def speak_at_once(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
    """A healthy daemon's answers: a file is the text's own bytes, a stream one chunk for each of its characters."""
    match request:
        case Synthesize():
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
        case Ping():
            daemon.send(peer, events.Pong(id=request.id, version="0", protocol=1, uptime_s=1.0))
        case Voices():
            daemon.send(peer, events.VoicesAnswer(id=request.id, voices=[events.Voice(name="zh", language="zh")]))
        case ListJobs():
            daemon.send(peer, events.JobsAnswer(id=request.id, jobs=[]))
        case Cancel() | control.Cancel():
            daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))
        case _:
            daemon.send(peer, events.Result(id=request.id, values={"op": op_of(request)}))


def accept_only(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
    """Accepts jobs and never ends them, but answers the rest."""
    if isinstance(request, Synthesize):
        daemon.send(peer, accepted(daemon.new_job(), request.id))
    elif isinstance(request, Cancel):
        speak_at_once(daemon, peer, request, body)


def always(event: Callable[[str], msgspec.Struct], body: bytes | None = None) -> Script:
    """Answers every request with the event that is made of its id."""
    return lambda daemon, peer, request, _: daemon.send(peer, event(request.id), body)


def refusing(code: ErrorCode, message: str = "it says why", **more: Any) -> Script:
    """Refuses everything."""
    return always(lambda id: events.Error.of(id, code, message, **more))


def answering(values: Mapping[str, Any]) -> Script:
    """Answers every operation with the same map."""
    return always(lambda id: events.Result(id=id, values=dict(values)))


class ScriptedDaemon:
    """``requests`` has every request in order of arrival."""

    def __init__(self, path: Path, decode: Callable[[list[bytes], codec.CodecLimits], Request]) -> None:
        self.path = path
        self.endpoint = f"ipc://{path}"
        self.script: Script = speak_at_once
        self.requests: queue.Queue[Asked] = queue.Queue()
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
        with contextlib.suppress(BlockingIOError):  # full: the thread wakes anyhow
            self._wake_write.send(b"x")

    def next(self) -> Asked:
        """The next request; fails when none comes in time."""
        return self.requests.get(timeout=DEADLINE_S)

    def next_of(self, kind: type[R]) -> R:
        """The next request of one kind."""
        while True:
            request = self.next().request
            if isinstance(request, kind):
                return request

    def asked(self) -> list[Request]:
        """The requests that have come since the last time."""
        found = []
        while not self.requests.empty():
            found.append(self.requests.get().request)
        return found

    def spoken(self) -> list[str]:
        """The texts to speak among them."""
        return sorted(request.text for request in self.asked() if isinstance(request, Synthesize))

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
                    self.requests.put(Asked(peer, request, body))
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


class Publisher:
    """An events socket."""

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
        """The topic of the next subscription."""
        assert self._socket is not None and self._socket.poll(int(DEADLINE_S * 1e3)), "no client subscribes"
        return self._socket.recv()[1:]

    def say(self, topic: str, /, **values: object) -> None:
        self.send(topic.encode(), codec.encode_map(values))

    def send(self, *frames: bytes) -> None:
        assert self._socket is not None
        self._socket.send_multipart(frames)
