"""A command that has the whole terminal for a while: keys, signals and lines that never run over its edge."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from .humanize import Piece

if TYPE_CHECKING:
    from rich.text import Text

#: Keys that end it, Ctrl-C and Ctrl-D among them.
QUIT = frozenset("qQ\x03\x04")


class Ended(Exception):
    """A signal asks the command to end; the terminal is put back on the way."""


def text_of(line: Iterable[Piece], width: int) -> Text:
    """A line for rich, cut where it must be; then it ends in an ellipsis, so that nobody takes it for the whole."""
    from rich.text import Text

    text = Text(no_wrap=True)
    for piece, style in line:
        text.append(piece, style or None)
    text.rstrip()
    text.truncate(width, overflow="ellipsis")
    return text


def pressed(wait_s: float) -> set[str]:
    """The keys that were pressed within ``wait_s``; the end of the input counts as Ctrl-D."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], wait_s)
    if not ready:
        return set()
    return set(os.read(sys.stdin.fileno(), 1_024).decode(errors="replace")) or {"\x04"}


@contextlib.contextmanager
def keys_at_once() -> Iterator[None]:
    """Keys arrive without Enter and without an echo; Ctrl-Z, which would leave the screen as it is, does nothing."""
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
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end it by the same way as a key, with Ended."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
