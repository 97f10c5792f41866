"""The daemon's check of itself, by which the service manager's watchdog may restart it.

A loop that turns is not enough, since messages may no longer reach it. So the daemon is its own client and sends itself
a ping: ZeroMQ's thread, the loop, the codec and the core all have to work for the answer to come. The threads that
others depend on have to be alive, too. A problem that a restart does not solve, such as a full disk, a lost GPU or a
worker that can't be loaded, is a matter for alerts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import zmq

from glmtts.protocol import codec, events
from glmtts.protocol.requests import VERSION, Ping

from ..transport.listeners import LOCAL_THREAD

#: Threads that, once started, live as long as the daemon.
_NEEDED = frozenset({"background", "journal", "log", "sampler"})


class SelfCheck:
    """Owns the daemon's client connection to itself. For the loop's thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.AFFINITY, LOCAL_THREAD)
        self.socket.setsockopt(zmq.SNDHWM, 1)
        self.socket.connect(endpoint)
        self._clock = clock
        self._ids = itertools.count(1)
        self._id = ""
        self._asked_at = clock()
        self._answered = True
        self._threads: dict[str, threading.Thread] = {}
        #: The problem that the last check found, or ``""``.
        self.problem = ""

    def receive(self) -> None:
        """Receive the answers; to be called when the socket is readable."""
        while True:
            try:
                event = codec.decode_event(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            # An error event, as when the core fails, is not this answer.
            if isinstance(event, events.Pong) and event.id == self._id:
                self._answered = True

    def well(self) -> bool:
        """Whether everything has worked since the last call; sends the next ping."""
        self.receive()
        self.problem = self._check()
        if self._answered:
            self._ask()
        return not self.problem

    def _check(self) -> str:
        if not self._answered:
            return f"a ping of its own has not been answered for {self._clock() - self._asked_at:.1f} s"
        for thread in threading.enumerate():
            if thread.name in _NEEDED and thread.is_alive():
                self._threads.setdefault(thread.name, thread)
        dead = [name for name, thread in self._threads.items() if not thread.is_alive()]
        return f"its thread {dead[0]!r} has ended" if dead else ""

    def _ask(self) -> None:
        self._id = f"self-{next(self._ids)}"
        self._asked_at = self._clock()
        self._answered = False
        try:
            self.socket.send(codec.encode(Ping(v=VERSION, id=self._id)), zmq.NOBLOCK)
        except zmq.Again:
            # The ping before has not left yet; the next call finds it unanswered.
            pass

    def close(self) -> None:
        self.socket.close(0)
