"""A live picture on the whole terminal, which is left as it was however the command ends."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

#: Keys that end it, Ctrl-C and Ctrl-D among them.
_QUIT = frozenset("qQ\x03\x04")


class _Ended(Exception):
    """A signal asks the command to end."""


def show_live(draw: Callable[[int, int], Sequence[Text] | None], every_s: float) -> None:
    """Draw every ``every_s`` seconds until q, Ctrl-C, SIGTERM or the end of the terminal.

    Args:
        draw: gets the width and the height of the terminal; returns its lines, or None to leave it as it is.
    """
    console = Console(highlight=False)
    try:
        with _keys_at_once(), _ended_by_signals(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                console.size = shutil.get_terminal_size()
                lines = draw(*console.size)
                if lines is not None:
                    live.update(Group(*lines), refresh=True)
                if _pressed(every_s) & _QUIT:
                    return
    except (KeyboardInterrupt, _Ended):
        return


def cut(line: Text, width: int) -> Text:
    """The line in at most ``width`` cells, with an ellipsis where it is cut."""
    line.rstrip()
    line.truncate(width, overflow="ellipsis")
    return line


def _pressed(wait_s: float) -> set[str]:
    """The keys that were pressed within ``wait_s``; the end of the input counts as Ctrl-D."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    if not ready:
        return set()
    return set(os.read(sys.stdin.fileno(), 1_024).decode(errors="replace")) or {"\x04"}


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys arrive without Enter and without an echo. Ctrl-Z, which would leave the screen as it is, does nothing."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    changed[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the command as a key does."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
