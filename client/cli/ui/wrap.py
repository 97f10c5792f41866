"""Words that end where the terminal does: broken at blanks, and indented. What goes into a pipe is broken by nobody."""

from __future__ import annotations

import re
import shutil
import sys

from .output import cells

#: A word, or one character of those that stand without blanks, with the blanks before it.
_PART = re.compile(r"\s*(?:[⺀-鿿가-힯豈-﫿＀-｠]|[^\s⺀-鿿가-힯豈-﫿＀-｠]+)")


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is, None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def terminal_height() -> int | None:
    """Its lines."""
    return shutil.get_terminal_size().lines if sys.stdout.isatty() else None


def hung(head: str, text: str, width: int | None) -> list[str]:
    """``head`` and ``text``; what does not fit in ``width`` columns goes on in a line of its own, below the text.

    A word that is longer than that, such as a path, stays whole: who copies it gets all of it. None: one line.
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
