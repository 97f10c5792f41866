"""A connection that waits for its answers: the base of the blocking clients."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

from . import forks
from .connection import DaemonConnection, extended
from .curve import Key
from .errors import GlmttsError
from .exchange import Exchange, deadline_after, timed_out

T = TypeVar("T")

#: Messages received at a time. All others of an unread stream stay with the daemon.
_MESSAGES_A_STEP = 32


class BlockingConnection:
    """The base of :class:`~.sync.Client` and :class:`~.control.Control`: a connection, and waiting for its answers."""

    def __init__(
        self,
        endpoint: str,
        timeout: float | None,
        reconnect_s: float,
        *,
        server_key: Key | None = None,
        secret_key: Key | None = None,
    ) -> None:
        self._timeout = timeout
        # Held by one thread at a time, which may call again from a callback. A second thread gets an error: it would
        # have to wait for as long as the speech of the first takes.
        self._user = threading.RLock()
        self._connect = partial(
            DaemonConnection, endpoint, reconnect_s=reconnect_s, server_key=server_key, secret_key=secret_key
        )
        self._connection = self._connect()
        self._core = self._connection.core
        self._closed = False
        forks.renew_lock_of(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The endpoint of this connection."""
        return self._connection.endpoint

    def close(self) -> None:
        """Close the connection. The daemon cancels its streams and finishes its other jobs. Closing twice is fine."""
        if self._closed:
            return
        if self._connection.inherited:  # it is the parent's, which closes it
            self._closed = True
            return
        with self._in_use():
            self._closed = True
            self._connection.close()

    def after_fork(self) -> None:
        """In a forked process: no thread uses this client here, whichever did at the fork."""
        self._user = threading.RLock()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        user = self._user
        if not user.acquire(blocking=False):
            raise GlmttsError(
                "This client is in use by another thread. A client is for one thread at a time: make one for each."
            )
        try:
            if self._closed:
                raise GlmttsError("This client is closed.")
            if self._connection.inherited:
                self._connection = self._connect()
                self._core = self._connection.core
            yield
        finally:
            user.release()

    def _deadline(self, timeout: float | None) -> float:
        return deadline_after(self._timeout if timeout is None else timeout)

    def _until(
        self, ready: Callable[[], object], deadline: float, exchange: Exchange, *, wakes: int | None = None
    ) -> None:
        """Serve the connection until ``ready()``, which is asked again when ``wakes`` can be read.

        Raises Timeout at ``deadline``.
        """
        connection, core = self._connection, self._core
        with uninterrupted():
            connection.flush()
        while not ready():
            wait = min(deadline, core.give_up_at or math.inf) - time.monotonic()
            connection.poll(wait, wakes)
            with uninterrupted():
                connection.step(_MESSAGES_A_STEP)
            deadline = extended(deadline)
            if time.monotonic() >= deadline and not ready():
                raise timed_out(exchange)

    def _ask(self, op: str, timeout: float | None, kind: type[T], body: bytes | None = None, **keys: Any) -> T:
        """A request with one answer."""
        return self._asked(op, timeout, body, **keys).result(kind)

    def _asked(self, op: str, timeout: float | None, body: bytes | None = None, **keys: Any) -> Exchange:
        """A request that has its one answer."""
        with self._in_use():
            self._connection.check()
            deadline = self._deadline(timeout)
            exchange = self._core.call(op, body, **keys)
            try:
                self._until(lambda: exchange.finished, deadline, exchange)
            except BaseException:
                self._core.abandon(exchange, GlmttsError("given up"))
                raise
            return exchange


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C for some microseconds: a message that is half sent, or received and not read, would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets Ctrl-C
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
