"""Hearing what happens in the daemon as it happens: jobs, workers, their memory, alerts, from its events socket.

Who listens slowly misses events, and so does who was not connected yet: what must not be missed is asked for with
:class:`~.control.Control`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import msgpack
import zmq

from glmtts.protocol.endpoints import EVENTS, requests_endpoint, sibling_endpoint

from .connection import MONITOR_FRAME, RECONNECT_MS, check_listening
from .errors import ConnectionLost, DaemonNotRunning, GlmttsError, ProtocolError

_LONGEST_POLL_S = 3_600.0

#: How long the first connection may take at least, in seconds, however short ``reconnect_s`` is.
_CONNECT_S = 5.0


class News(NamedTuple):
    """One event: its topic, such as ``worker.failed``, and what it says."""

    topic: str
    values: dict[str, Any]


class Watch:
    """The events of the daemon beside the requests socket ``endpoint`` (by default this machine's), as an iterator.

    ``topics`` are prefixes: ``worker.`` has every event of workers; none at all means all. When the daemon goes away,
    it has ``reconnect_s`` seconds to come back, None for as long as it takes; ``connected`` says whether it is there,
    ``connections`` how often it came. Raises DaemonNotRunning, Forbidden for who is no operator, ConnectionLost when it
    stays away, ProtocolError for what is no event, and GlmttsError for an endpoint that is not ``ipc://``.

        with Watch(["worker.", "alert."]) as watch:
            for topic, values in watch:
                print(topic, values)
    """

    def __init__(
        self, topics: Iterable[str] = (), endpoint: str | None = None, *, reconnect_s: float | None = 30.0
    ) -> None:
        try:
            self.endpoint = sibling_endpoint(endpoint or requests_endpoint(), EVENTS)
        except ValueError as error:
            raise GlmttsError(f"{error}.") from None
        check_listening(self.endpoint)
        self.connected = False
        self.connections = 0
        self._reconnect_s = math.inf if reconnect_s is None else reconnect_s
        self._give_up_at = time.monotonic() + max(self._reconnect_s, _CONNECT_S)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = RECONNECT_MS
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        for topic in list(topics) or [""]:
            self._socket.subscribe(topic)
        self._socket.connect(self.endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def next(self, timeout: float | None = None) -> News | None:
        """The next event; None when there is none within ``timeout`` seconds (None: as long as it takes)."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._hear_of_connection()
            try:
                return _news(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                pass
            now = time.monotonic()
            if not self.connected and now >= self._give_up_at:
                raise self._gone()
            if now >= deadline:
                return None
            until = deadline if self.connected else min(deadline, self._give_up_at)
            self._poller.poll(math.ceil(min(until - now, _LONGEST_POLL_S) * 1_000))

    def _hear_of_connection(self) -> None:
        while True:
            try:
                event, _ = MONITOR_FRAME.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.connected:
                self.connections += 1
            else:
                self._give_up_at = time.monotonic() + self._reconnect_s

    def _gone(self) -> GlmttsError:
        patience_s = self._reconnect_s if self.connections else max(self._reconnect_s, _CONNECT_S)
        # Asked again, it is given as much time again.
        self._give_up_at = time.monotonic() + patience_s
        if not self.connections:
            return DaemonNotRunning(self.endpoint, f"connections are not answered, for {patience_s:g} s now")
        waited = f" and did not come back within {patience_s:g} s" if patience_s else ""
        return ConnectionLost(f"The daemon behind {self.endpoint} went away{waited}.")

    def __iter__(self) -> Iterator[News]:
        while (news := self.next()) is not None:
            yield news

    def close(self) -> None:
        """Close the connection. Closing twice is fine."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _news(frames: list[bytes]) -> News:
    try:
        topic, values = frames[0].decode(), msgpack.unpackb(frames[1], raw=False)
    except (ValueError, TypeError, LookupError, RecursionError, MemoryError, OverflowError) as error:
        raise ProtocolError(f"What came from the events socket is no event: {error}.") from None
    if not isinstance(values, dict):
        raise ProtocolError(f"The event {topic} has no map, but a {type(values).__name__}.")
    return News(topic, values)
