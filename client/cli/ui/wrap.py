"""Text on a terminal: its width in cells, without control sequences, shortened, and wrapped with a hanging indent."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TextIO

#: Control sequences of terminals (ECMA-48), such as colours.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")

#: A word, or one character of a script without blanks, with the blanks before it.
_PART = re.compile(r"\s*(?:[⺀-鿿가-힯豈-﫿＀-｠]|[^\s⺀-鿿가-힯豈-﫿＀-｠]+)")


def terminal_width(stream: TextIO | None = None) -> int | None:
    """The columns of the terminal on standard output or ``stream``; None if there is none."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def terminal_height() -> int | None:
    """Its lines."""
    return shutil.get_terminal_size().lines if sys.stdout.isatty() else None


def hanging(head: str, text: str, width: int | None) -> list[str]:
    """``head`` and ``text`` in lines of ``width`` columns, the second and later ones indented as far as ``head``.

    A word that is longer than a line, such as a path, stays whole, so that it can be copied. None: one line.
    """
    if width is None:
        return [f"{head}{text}".rstrip()]
    indent = " " * cells(head)
    lines, line = [], head
    for part in _PART.findall(text):
        if cells(line + part) > width and line.strip() and line != head:
            lines.append(line.rstrip())
            line = indent
        line += part.lstrip() if line in (indent, head) else part
    return [*lines, line.rstrip()]


def fold(text: str, width: int | None) -> str:
    """Lines of text, wrapped."""
    return "\n".join(part for line in text.split("\n") for part in hanging("", line, width))


def clean(text: str) -> str:
    """``text`` without control characters and sequences: the output of a crashed worker may contain any."""
    return "".join(c if c.isprintable() else " " for c in ESCAPES.sub("", text))


def cells(text: str) -> int:
    """The columns that ``text`` takes on a terminal: a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def shorten(text: str, most: int | None) -> str:
    """``text`` in at most ``most`` cells, with an ellipsis in its middle, since names differ at their ends.

    None: uncut.
    """
    text = clean(text)
    if most is None or cells(text) <= most:
        return text
    head, tail = "", ""
    for character in text:
        if cells(head + character) > most // 2:
            break
        head += character
    for character in reversed(text):
        if cells(head + character + tail) > most - 1:
            break
        tail = character + tail
    return f"{head}…{tail}"
