"""The load: one lean process that speaks to all subjects in the same way, with requests that are encoded beforehand.

It must never be what is measured. So it decodes nothing: a job's last event is the one that has a body.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import zmq
from processes import NotMeasured

#: Answers take longer than this only when something is broken.
TIMEOUT_MS = 20_000

Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Jobs that were answered in ``seconds``."""

    jobs: int
    seconds: float


class Load(Protocol):
    """A way to put load on a subject."""

    def sequential(self, jobs: int) -> list[float]:
        """The round trips of ``jobs`` jobs, one after the other, in seconds."""

    def outstanding(self, seconds: float, each: int) -> Throughput:
        """Keep ``each`` jobs outstanding on every connection for ``seconds``."""

    def close(self) -> None:
        """Close the connections."""


class Template:
    """A request that is encoded once and given a new id of eight digits for every use."""

    def __init__(self, request: dict[str, Any]) -> None:
        encoded: bytes = msgpack.packb({"v": 1, "id": "@" * 8, **request})
        self._before, self._after = encoded.split(b"@" * 8)

    def __call__(self, number: int) -> bytes:
        return b"%b%08d%b" % (self._before, number, self._after)


class ZmqLoad:
    """Load on a ROUTER from ``connections`` DEALERs in one poller."""

    def __init__(self, endpoint: str, request: dict[str, Any], connections: int = 8) -> None:
        self._context = zmq.Context()
        self._request = Template(request)
        self._number = 0
        self._sockets = [connect(self._context, endpoint) for _ in range(connections)]

    def sequential(self, jobs: int) -> list[float]:
        """See Load."""
        socket, request, clock = self._sockets[0], self._request, time.perf_counter
        times: list[float] = []
        for number in range(self._number, self._number + jobs):
            header = request(number)
            begin = clock()
            socket.send(header)
            frames = _receive(socket)
            while len(frames) == 1:
                _refuse_errors(frames[0])
                frames = _receive(socket)
            times.append(clock() - begin)
        self._number += jobs
        return times

    def outstanding(self, seconds: float, each: int) -> Throughput:
        """See Load."""
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        number, request = self._number, self._request
        begin = time.perf_counter()
        end = begin + seconds
        for socket in self._sockets * each:
            socket.send(request(number))
            number += 1
        answered, left = 0, each * len(self._sockets)
        running = True
        while left:
            ready = poller.poll(TIMEOUT_MS)
            if not ready:
                raise NotMeasured(f"{left} jobs were not answered within {TIMEOUT_MS / 1000:g} s")
            if running and time.perf_counter() >= end:
                # What is outstanding now is received, so that the next round begins with none, and not counted.
                running = False
                elapsed, counted = time.perf_counter() - begin, answered
            for socket, _ in ready:
                try:
                    while True:
                        frames = socket.recv_multipart(zmq.NOBLOCK)
                        if len(frames) == 1:
                            _refuse_errors(frames[0])
                            continue
                        answered += 1
                        if running:
                            socket.send(request(number))
                            number += 1
                        else:
                            left -= 1
                except zmq.Again:
                    pass
        self._number = number
        return Throughput(counted, elapsed)

    def close(self) -> None:
        """See Load."""
        self._context.destroy(linger=0)


def connect(context: zmq.Context[Socket], endpoint: str) -> Socket:
    """A DEALER whose calls end after TIMEOUT_MS, and which tries again every millisecond while nothing listens."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDTIMEO, TIMEOUT_MS)
    socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 1)
    socket.connect(endpoint)
    return socket


#: Events of a job after which others follow.
_BEFORE_THE_END = {"accepted", "queued", "started", "progress", "audio"}


def ask(socket: Socket, request: dict[str, Any]) -> None:
    """Send a request."""
    socket.send(msgpack.packb({"v": 1, **request}))


def next_event(socket: Socket) -> dict[str, Any]:
    """The next event of any request. Raises NotMeasured when there is none for TIMEOUT_MS."""
    event: dict[str, Any] = msgpack.unpackb(_receive(socket)[0])
    return event


def call(socket: Socket, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and wait for its last event. Raises NotMeasured when it is an error."""
    ask(socket, request)
    while True:
        event = next_event(socket)
        if event["id"] == request["id"] and event["event"] not in _BEFORE_THE_END:
            return refuse_error(event)


def refuse_error(event: dict[str, Any]) -> dict[str, Any]:
    """Give the event back, unless it is an error."""
    if event["event"] == "error":
        raise NotMeasured(f"request {event['id']!r} was answered {event['code']}: {event['message']}")
    return event


def _receive(socket: Socket) -> list[bytes]:
    try:
        return socket.recv_multipart()
    except zmq.Again:
        raise NotMeasured(f"no answer within {TIMEOUT_MS / 1000:g} s") from None


def _refuse_errors(header: bytes) -> None:
    # Searching costs less than decoding; no id, text or name in these requests contains the word.
    if b"\xa5error" in header:
        refuse_error(msgpack.unpackb(header))
