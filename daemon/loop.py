"""The daemon's one loop: its poller, the wakeup pipe, and the background threads that report back to it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from .clock import RunningClock
from .log.logger import Logger

_Task = tuple[Callable[[], Any], Callable[[Any], None]]


class Loop:
    """Owns the poller and the handler of each source that it polls.

    Invariant: an exception in a handler is logged and counted, and stops no other handler.
    """

    def __init__(self, log: Logger) -> None:
        self.running = RunningClock()
        #: The time of all that waits for the loop, and in it.
        self.clock = self.running.now
        #: Exceptions that reached the loop; each is a bug.
        self.internal_errors = 0
        self._log = log
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}
        #: A byte in this pipe wakes the loop: a signal's number, or zero for the result of a thread.
        self._wakeup_read, self.wakeup_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, source: Any, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever ``source``, a ZeroMQ socket or a descriptor, is readable."""
        self._handlers[source] = handler
        self._poller.register(source, zmq.POLLIN)

    def unwatch(self, source: Any) -> None:
        """Stop watching ``source``; does nothing if it is not watched."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def on_wakeup(self, signals: Iterable[int], handler: Callable[[bytes], None]) -> None:
        """Call ``handler`` with the bytes of the wakeup pipe, and have these signals written to it."""

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                handler(os.read(self._wakeup_read, 512))

        self.watch(self._wakeup_read, read)
        signal.set_wakeup_fd(self.wakeup_fd, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, _wake_up)

    def wait(self, until: float) -> float:
        """Wait for a source or for the time ``until``, and run the handlers of all that is readable.

        Returns when the wait was over, by time.monotonic.
        """
        # Rounded up: a poll that ends a moment too early is followed by many more.
        timeout_ms = int(max(0.0, until - self.running.turn()) * 1000) + 1
        self.running.wait(timeout_ms / 1000)
        ready = [source for source, _ in self._poller.poll(timeout_ms)]
        began = time.monotonic()
        self.running.turn()
        if len(ready) > 1:
            # Descriptors first: a process that has ended is not given a job that came at the same time.
            ready.sort(key=_is_socket)
        for source in ready:
            if (handler := self._handlers.get(source)) is not None:
                self.guarded(handler)
        return began

    def guarded(self, handler: Callable[[], None]) -> None:
        """Run ``handler``; report an exception instead of raising it."""
        try:
            handler()
        except Exception as error:
            self.report(error)

    def report(self, error: Exception) -> None:
        """Log and count an exception that is a bug."""
        self.internal_errors += 1
        self._log.exception("internal error", error)


class Background:
    """A thread that runs tasks one after the other, for what the loop must not wait for: files and subprocesses.

    Results come back in the loop, which a byte written to ``wakeup_fd`` wakes. At most ``max_waiting`` tasks wait.
    """

    def __init__(self, wakeup_fd: int, max_waiting: int) -> None:
        self._wakeup_fd = wakeup_fd
        self._tasks: queue.Queue[_Task | None] = queue.Queue(max_waiting)
        self._results: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        # Made now: later there may be no room for it. And a growing number of threads is always a leak.
        threading.Thread(target=self._work, name="background", daemon=True).start()

    def run(self, task: Callable[[], Any], then: Callable[[Any], None]) -> bool:
        """Run ``task`` in the thread, then ``then`` in the loop with its result or the exception that it raised.

        Returns False, and runs nothing, if too many tasks wait already.
        """
        try:
            self._tasks.put_nowait((task, then))
        except queue.Full:
            return False
        return True

    def collect(self) -> None:
        """Hand over the results so far. Called in the loop."""
        while True:
            try:
                then, result = self._results.get_nowait()
            except queue.Empty:
                return
            try:
                then(result)
            except Exception:
                # The results behind it are handed over in the next turn, which comes at once.
                os.write(self._wakeup_fd, b"\0")
                raise

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, then = item
            try:
                result = task()
            except Exception as error:
                result = error
            self._results.put((then, result))
            os.write(self._wakeup_fd, b"\0")


def _is_socket(source: object) -> bool:
    return not isinstance(source, int)


def _wake_up(_signal: int, _frame: object) -> None:
    """Do nothing: the wakeup pipe has the signal's number, and the loop reads it there."""
