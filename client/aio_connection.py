"""A connection for asyncio, on which any number of calls wait at once: the base of :class:`~.aio.AsyncClient`.

It reads only while a call waits, and then for all calls; and until it could cancel a job that was abandoned before its
acceptance. An unread stream thus stays with the daemon.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from .connection import DaemonConnection, check_listening, extended
from .curve import Key
from .errors import Cancelled, GlmttsError
from .exchange import Exchange, JobExchange, deadline_after, timed_out

T = TypeVar("T")

#: Messages received before other tasks of the event loop run.
_MESSAGES_A_STEP = 32


class AsyncConnection:
    """A connection that belongs to one event loop, and is made at its first use."""

    def __init__(
        self,
        endpoint: str,
        timeout: float | None,
        reconnect_s: float,
        *,
        server_key: Key | None = None,
        secret_key: Key | None = None,
    ) -> None:
        self._keys = server_key, secret_key
        self.endpoint = endpoint
        self._timeout = timeout
        self._reconnect_s = reconnect_s
        self._pid = os.getpid()
        self._made: DaemonConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._watching = False
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. The daemon cancels its streams and finishes its other jobs. Closing twice is fine."""
        self._closed = True
        made, self._made = self._made, None
        if made is not None and not made.inherited:
            for exchange in made.core.in_flight():
                made.core.abandon(exchange, GlmttsError("This client was closed."), cancel=False)
            self._watching = False
            self._watch(made, False)
            await asyncio.to_thread(made.close)  # it may linger over a cancel

    async def _ask(self, op: str, timeout: float | None, kind: type[T], **keys: Any) -> T:
        return (await self._asked(op, timeout, **keys)).result(kind)

    async def _asked(self, op: str, timeout: float | None, **keys: Any) -> Exchange:
        deadline = self._deadline(timeout)
        exchange = (await self._connection()).core.call(op, **keys)
        with self._given_up_on_error(exchange):
            await self._until(lambda: exchange.finished, deadline, exchange)
        return exchange

    @contextmanager
    def _given_up_on_error(self, exchange: Exchange, *, cancel: bool = True) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._give_up(exchange, cancel=cancel)
            raise

    def _give_up(self, exchange: Exchange, *, cancel: bool = True) -> None:
        if self._made is not None:
            job = exchange.job if isinstance(exchange, JobExchange) else None
            self._made.core.abandon(exchange, Cancelled("cancelled by this client", job=job), cancel=cancel)
            self._flush()

    def _flush(self) -> None:
        if self._made is not None:
            self._made.flush()
            self._attend(self._made)  # sending may consume the signal of a received message

    async def _connection(self) -> DaemonConnection:
        """The connection, made or checked again if needed. Raises DaemonNotRunning."""
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._pid, self._made, self._loop, self._waiting = os.getpid(), None, None, 0
            self._watching = False
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise GlmttsError("This client belongs to another event loop. Make one for each.")
        reached = None
        if (self._made is None or self._made.core.gave_up) and self.endpoint.startswith("tcp://"):
            reached = await asyncio.to_thread(check_listening, self.endpoint)  # a far host may not answer at once
        if self._closed:
            raise GlmttsError("This client is closed.")
        if self._made is None:
            server_key, secret_key = self._keys
            self._made = DaemonConnection(
                self.endpoint,
                reconnect_s=self._reconnect_s,
                server_key=server_key,
                secret_key=secret_key,
                reached=reached,
            )
        self._made.check(reached)
        return self._made

    def _deadline(self, timeout: float | None) -> float:
        return deadline_after(self._timeout if timeout is None else timeout)

    async def _until(self, ready: Callable[[], object], deadline: float, exchange: Exchange) -> None:
        """Wait for ``ready()``, which only a change of ``exchange`` can make true. Raises Timeout at ``deadline``."""
        news = asyncio.Event()
        exchange.watchers.append(news.set)
        try:
            with self._reading():
                while not ready():
                    made = self._made
                    if made is None:
                        raise GlmttsError("This client was closed.")
                    wait = min(deadline, made.core.give_up_at or math.inf) - time.monotonic()
                    news.clear()
                    try:
                        async with asyncio.timeout(None if wait == math.inf else max(0.0, wait)):
                            await news.wait()
                    except TimeoutError:
                        self._pump()
                    deadline = extended(deadline)
                    if time.monotonic() >= deadline and not ready():
                        raise timed_out(exchange)
        finally:
            exchange.watchers.remove(news.set)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Read from the connection during the block."""
        made = self._made
        self._waiting += 1
        if made is not None:
            self._attend(made)
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0 and made is self._made and made is not None:
                self._attend(made)

    def _attend(self, made: DaemonConnection) -> None:
        """Read from now on, or no more."""
        needed = self._is_needed(made)
        if needed != self._watching:
            self._watching = needed
            self._watch(made, needed)
        if needed:
            asyncio.get_running_loop().call_soon(self._pump)

    def _is_needed(self, made: DaemonConnection) -> bool:
        """Whether a call waits, or the daemon has to be told of an abandoned one."""
        core = made.core
        return bool(self._waiting or core.awaits_name or (core.connected and core.outgoing))

    def _watch(self, made: DaemonConnection, on: bool) -> None:
        if made.inherited:  # a forked process shares the selector of its parent's loop too
            return
        loop = asyncio.get_running_loop()
        for socket in (made.socket, made.monitor):
            if on:
                loop.add_reader(socket, self._pump)
            else:
                loop.remove_reader(socket)

    def _pump(self) -> None:
        """Send and receive. ZeroMQ's descriptors signal only changes, so all messages are read."""
        made = self._made
        if made is not None and self._watching:
            made.flush()
            if made.step(_MESSAGES_A_STEP):
                asyncio.get_running_loop().call_soon(self._pump)
            elif not self._is_needed(made):
                self._attend(made)
