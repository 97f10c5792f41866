"""The events socket: publishes what happens in the daemon to those who subscribe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq

from glmtts.protocol import codec, endpoints

from ..core import effects
from ..loop import Loop
from .client_connection import shut_down
from .connection_shares import ConnectionShares
from .listeners import LOCAL_THREAD, RuntimeDir
from .monitor import monitored, read_events
from .peers import local_holder

#: Connections of watching operators at a time.
_MOST_CONNECTIONS = 64


class EventPublisher:
    """Owns an XPUB socket. A subscriber that does not read misses events; the daemon never waits for it.

    When there are too many connections, the user with most of them loses its oldest.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: Loop,
        runtime: RuntimeDir,
        admin_group: str,
        on_watched: Callable[[bool], None],
    ) -> None:
        """Open the socket; raises RuntimeDirError. ``on_watched`` hears whether there is any subscription."""
        self._on_watched = on_watched
        self._topics: set[bytes] = set()
        self.socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        mode = 0o660 if admin_group else 0o600
        self.socket.setsockopt(zmq.USE_FD, runtime.listen(endpoints.EVENTS, mode, admin_group))
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.AFFINITY, LOCAL_THREAD)
        self._shares = ConnectionShares(_MOST_CONNECTIONS)
        self._monitor = monitored(self.socket)
        self.socket.bind(runtime.endpoint(endpoints.EVENTS))
        loop.watch(self.socket, self._receive)
        loop.watch(self._monitor, self._count)

    def publish(self, effect: effects.Publish) -> None:
        """Send an event to its subscribers."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart([effect.topic.encode(), codec.encode_map(effect.values)], zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)

    def _count(self) -> None:
        for event, fd in read_events(self._monitor):
            if event == zmq.EVENT_ACCEPTED:
                if (gives_way := self._shares.opened(fd, local_holder(fd))) is not None:
                    shut_down(gives_way)
            elif event == zmq.EVENT_DISCONNECTED:
                self._shares.ended(fd)

    def _receive(self) -> None:
        """Take in subscriptions: a byte, 1 or 0, and the topic."""
        while True:
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            change = self._topics.add if message[:1] == b"\1" else self._topics.discard
            change(message[1:])
        self._on_watched(bool(self._topics))
