"""A thread for what the loop must not wait for: files, and checks in subprocesses. Results come back in the loop."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

_Task = tuple[Callable[[], Any], Callable[[Any], None]]


class Background:
    """Runs one task after the other; ``wakeup_fd`` is written to when a result is there to be collected.

    At most ``max_waiting`` tasks wait; one more is not taken.
    """

    def __init__(self, wakeup_fd: int, max_waiting: int) -> None:
        self._wakeup_fd = wakeup_fd
        self._tasks: queue.Queue[_Task | None] = queue.Queue(max_waiting)
        self._results: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, task: Callable[[], Any], then: Callable[[Any], None]) -> bool:
        """Run ``task`` in the thread, and in the loop ``then`` with what it returned or the exception that it raised.

        Returns False, and runs nothing, when too many wait already.
        """
        if self._thread is None:
            # Started when it is first needed: most daemons never need it.
            self._thread = threading.Thread(target=self._work, name="background", daemon=True)
            self._thread.start()
        try:
            self._tasks.put_nowait((task, then))
        except queue.Full:
            return False
        return True

    def collect(self) -> None:
        """Hand back the results that are there; called in the loop."""
        while True:
            try:
                then, result = self._results.get_nowait()
            except queue.Empty:
                return
            then(result)

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, then = item
            try:
                result = task()
            except Exception as error:
                result = error
            self._results.put((then, result))
            os.write(self._wakeup_fd, b"\0")
