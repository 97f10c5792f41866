"""Threads for work that would hold up the steps of other jobs: encoding, decoding, files."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

#: One thread makes MP3 for 35 streams at most, and Opus for 20, on a slow core.
_THREADS = min(4, os.cpu_count() or 1)


class Helper:
    """Does the work of each job in its order, always in the same thread. Threads begin with their first work."""

    def __init__(self) -> None:
        self._threads = [ThreadPoolExecutor(1, "helper") for _ in range(_THREADS)]
        self._done: queue.SimpleQueue[tuple[Future[Any], Callable[[Future[Any]], None]]] = queue.SimpleQueue()
        #: Readable when work is done.
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, job: str, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Do ``work`` for a job in a thread; :meth:`collect` calls ``then`` with the outcome."""

        def tell(future: Future[Any]) -> None:
            self._done.put((future, then))
            os.eventfd_write(self.fd, 1)

        self._threads[hash(job) % _THREADS].submit(work).add_done_callback(tell)

    def collect(self) -> None:
        """Call ``then`` for the work that is done."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while not self._done.empty():
            future, then = self._done.get()
            then(future)
