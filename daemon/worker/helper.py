"""A thread for work that would hold up the steps of other jobs: encoding, decoding, files."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Helper:
    """Does one piece of work after another, in the order in which they come. The thread begins with the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "helper")
        self._done: queue.SimpleQueue[tuple[Future[Any], Callable[[Future[Any]], None]]] = queue.SimpleQueue()
        #: Readable when work is done.
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, work: Callable[[], Any], then: Callable[[Future[Any]], None]) -> None:
        """Do ``work`` in the thread; :meth:`collect` calls ``then`` with the outcome."""

        def tell(future: Future[Any]) -> None:
            self._done.put((future, then))
            os.eventfd_write(self.fd, 1)

        self._thread.submit(work).add_done_callback(tell)

    def collect(self) -> None:
        """Hand on what is done."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while not self._done.empty():
            future, then = self._done.get()
            then(future)
