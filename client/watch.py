"""The daemon's events as they happen, from its events socket: jobs, workers and their memory, alerts.

A slow reader misses events, and so does one that is not connected yet. For a complete picture ask with
:class:`~.control.Control`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgpack
import zmq

from glmtts.protocol.endpoints import EVENTS, requests_endpoint, sibling_endpoint

from . import forks
from .connection import MONITOR_FRAME, RECONNECT_MS, check_listening, extended, untrusted
from .errors import ConnectionLost, DaemonNotRunning, GlmttsError, ProtocolError, UntrustedDaemon
from .room import check_room

_LONGEST_POLL_S = 3_600.0

#: The least time for the first connection, in seconds, however short ``reconnect_s`` is.
_CONNECT_S = 5.0


class News(NamedTuple):
    """One event: its topic, such as ``worker.failed``, and its values."""

    topic: str
    values: dict[str, Any]


class Watch:
    """The events of a daemon on this machine, as an iterator. In a forked process it makes a connection of its own.

        with Watch(["worker.", "alert."]) as watch:
            for topic, values in watch:
                print(topic, values)

    Args:
        topics: prefixes, such as ``worker.`` for every event of workers; none at all means all events.
        endpoint: the daemon's requests socket; the events socket is beside it.
        reconnect_s: seconds that a lost daemon has to come back; None for as long as it takes.

    Attributes:
        connected: whether the daemon is there.
        connections: how often it was connected.

    Raises:
        DaemonNotRunning: no daemon answers.
        UntrustedDaemon: another user could listen there; raised by the iteration too.
        Forbidden: this user is no operator.
        ConnectionLost: the daemon went away and did not come back; raised by the iteration.
        ProtocolError: a message is no event; later ones can still be read.
        GlmttsError: the endpoint is not ``ipc://``.
    """

    def __init__(
        self, topics: Iterable[str] = (), endpoint: str | None = None, *, reconnect_s: float | None = 30.0
    ) -> None:
        try:
            self.endpoint = sibling_endpoint(endpoint or requests_endpoint(), EVENTS)
        except ValueError as error:
            raise GlmttsError(f"{error}.") from None
        self._topics = list(topics) or [""]
        self._reconnect_s = math.inf if reconnect_s is None else reconnect_s
        self._closed = False
        self._connect()

    def _connect(self) -> None:
        check_room()
        check_listening(self.endpoint)
        self._pid = os.getpid()
        self.connected = False
        self.connections = 0
        self._untrusted: UntrustedDaemon | None = None
        self._give_up_at = time.monotonic() + max(self._reconnect_s, _CONNECT_S)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = RECONNECT_MS
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        for topic in self._topics:
            self._socket.subscribe(topic)
        self._socket.connect(self.endpoint)
        forks.follow(self, self.endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def next(self, timeout: float | None = None) -> News | None:
        """The next event; None without one within ``timeout`` seconds (None: wait as long as it takes)."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if self._closed:
            raise GlmttsError("This watch is closed.")
        if self._pid != os.getpid():  # the connection is the parent's (forks.py)
            self._connect()
        while True:
            self._check_connection()
            if self._untrusted is not None:
                raise self._untrusted
            try:
                return _news(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                pass
            self._give_up_at = extended(self._give_up_at)
            now = time.monotonic()
            if not self.connected and now >= self._give_up_at:
                raise self._gone()
            if now >= deadline:
                return None
            until = deadline if self.connected else min(deadline, self._give_up_at)
            self._poller.poll(math.ceil(min(until - now, _LONGEST_POLL_S) * 1_000))

    def _check_connection(self) -> None:
        while True:
            try:
                event, value = MONITOR_FRAME.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_CONNECTED:
                self._untrusted = self._untrusted or untrusted(self.endpoint, value)
                continue
            self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.connected:
                self.connections += 1
            else:
                self._give_up_at = time.monotonic() + self._reconnect_s

    def _gone(self) -> GlmttsError:
        limit_s = self._reconnect_s if self.connections else max(self._reconnect_s, _CONNECT_S)
        self._give_up_at = time.monotonic() + limit_s  # for the next call
        if not self.connections:
            return DaemonNotRunning(self.endpoint, f"no connection within {limit_s:g} s")
        waited = f" and did not come back within {limit_s:g} s" if limit_s else ""
        return ConnectionLost(f"The daemon behind {self.endpoint} went away{waited}.")

    def __iter__(self) -> Iterator[News]:
        while (news := self.next()) is not None:
            yield news

    def close(self) -> None:
        """Close the connection. Closing twice is fine."""
        if not self._closed and self._pid == os.getpid():
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
            self._context.term()
        self._closed = True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _news(frames: list[bytes]) -> News:
    try:
        topic, values = frames[0].decode(), msgpack.unpackb(frames[1], raw=False)
    except (ValueError, TypeError, LookupError, RecursionError, MemoryError, OverflowError) as error:
        raise ProtocolError(f"A message of the events socket is no event: {error}.") from None
    if not isinstance(values, dict):
        raise ProtocolError(f"The values of the event {topic} are no map, but a {type(values).__name__}.")
    return News(topic, values)
