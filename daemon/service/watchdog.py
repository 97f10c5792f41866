"""Whether this daemon does its work, found out from inside, for a watchdog that may end it.

A loop that turns is not enough: it may turn and no message reach it. So the daemon is a client of itself, and asks for
an answer through a socket of its own: ZeroMQ's thread, the loop, the codec and the core all have to work for it to
come. And the threads that others wait for have to be alive. What a new process could not mend, such as a full disk, a
lost GPU or a worker that can't be loaded, does not count here: that is what alerts are for.
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

#: Threads that live as long as the daemon does, once they are there.
_NEEDED = frozenset({"background", "journal", "log", "sampler"})


class SelfCheck:
    """A client of this daemon in this daemon, connected to ``endpoint``; used from the loop's thread alone."""

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
        #: What does not work, as of the last look; empty when all does.
        self.problem = ""

    def receive(self) -> None:
        """Take in what has come; to be called when there is something."""
        while True:
            try:
                event = codec.decode_event(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            # The answer that the core itself could not be asked is an answer too, but not this one.
            if isinstance(event, events.Pong) and event.id == self._id:
                self._answered = True

    def well(self) -> bool:
        """Whether everything has worked since the last look; asks again for the next one."""
        self.receive()
        self.problem = self._look()
        if self._answered:
            self._ask()
        return not self.problem

    def _look(self) -> str:
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
            # Not even the one before has left: it is looked at, and tried, again.
            pass

    def close(self) -> None:
        self.socket.close(0)
