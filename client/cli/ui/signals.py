"""Signals that end a long command as Ctrl-C does, with its clean-up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
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
    on_terminal = [fd for fd in (1, 2) if os.isatty(fd)]

    def end(number: int) -> None:
        got.append(number)
        if number == signal.SIGHUP:
            # The terminal is closed, and writing to it would fail.
            for fd in on_terminal:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
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
