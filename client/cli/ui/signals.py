"""Signals that end a long command as Ctrl-C does, with its clean-up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class Signalled(Exception):
    """SIGHUP or SIGTERM has ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``; SIGHUP, from a closed terminal, and SIGTERM cancel it. Raises Signalled."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    got: list[int] = []
    on_terminal = _on_terminal()

    def end(number: int) -> None:
        got.append(number)
        if number == signal.SIGHUP:
            _leave(on_terminal)
        if task is not None:
            task.cancel()

    for number in (signal.SIGHUP, signal.SIGTERM):
        # nohup(1) makes its command ignore SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, end, number)
    try:
        await work
    except asyncio.CancelledError:
        if got:
            raise Signalled(got[0]) from None
        raise


class EndingSignals:
    """Within the block the first of SIGINT, SIGHUP and SIGTERM raises Signalled; later ones are ignored until armed."""

    def __enter__(self) -> EndingSignals:
        self._on_terminal = _on_terminal()
        numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
        # nohup(1) makes its command ignore SIGHUP.
        self._before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
        self.arm()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Have the next signal raise Signalled."""
        for number in self._before:
            signal.signal(number, self._raise)

    def disarm(self) -> None:
        """Ignore signals."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _raise(self, number: int, _: object) -> None:
        self.disarm()
        if number == signal.SIGHUP:
            _leave(self._on_terminal)
        raise Signalled(number)


def _on_terminal() -> list[int]:
    return [fd for fd in (1, 2) if os.isatty(fd)]


def _leave(descriptors: list[int]) -> None:
    """The terminal is closed, and writing to it would fail."""
    for fd in descriptors:
        os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
