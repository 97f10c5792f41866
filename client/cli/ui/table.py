"""Tables that fit a width by leaving out whole columns, the least wanted first: a number that is cut is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import click

from .humanize import Piece
from .output import cells, clean

_GAP = "  "


@dataclass
class Column:
    """A column; the one with the highest ``rank`` is the first to go. ``styles`` may say how each cell looks."""

    heading: str
    texts: Sequence[str]
    rank: int = 0
    right: bool = False
    styles: Sequence[str] = field(default_factory=tuple)

    @property
    def width(self) -> int:
        return max(cells(text) for text in (self.heading, *self.texts))

    @property
    def empty(self) -> bool:
        return all(text in ("", "-") for text in self.texts)


def lay_out(columns: Iterable[Column], width: int | None) -> list[list[Piece]]:
    """The heading's line and then a line for each row; columns in which there is nothing are left out.

    ``width`` None: as wide as it gets.
    """
    kept = [column for column in columns if not column.empty]
    while width is not None and len(kept) > 1 and _width(kept) > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    rows = max((len(column.texts) for column in kept), default=0)
    lines = [[piece for column in kept for piece in _cell(column, column.heading.upper(), "bright_black")]]
    for row in range(rows):
        lines.append(
            [
                piece
                for column in kept
                for piece in _cell(column, clean(column.texts[row]), column.styles[row] if column.styles else "")
            ]
        )
    return lines


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _cell(column: Column, text: str, style: str) -> list[Piece]:
    padding = " " * (column.width - cells(text))
    if column.right:
        return [(padding, ""), (text, style), (_GAP, "")]
    return [(text, style), (padding + _GAP, "")]


def echo(pieces: Sequence[Piece]) -> None:
    """A line to stdout, with colours on a terminal."""
    last = max((i for i, (text, _) in enumerate(pieces) if text.strip()), default=-1)
    shown = [(text.rstrip() if i == last else text, style) for i, (text, style) in enumerate(pieces[: last + 1])]
    click.echo("".join(click.style(text, fg=style) if style else text for text, style in shown))
