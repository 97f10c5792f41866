"""Tables that fit the terminal by leaving out whole columns, the least important first: a number must not be cut."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .humanize import humanise, label_of
from .wrap import cells, clean

_GAP = Text("  ")


@dataclass
class Column:
    """A column; those of the highest ``rank`` are left out first. ``styles`` may give each cell a colour."""

    heading: str
    texts: Sequence[str]
    rank: int = 0
    right: bool = False
    styles: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        self.texts = [clean(text) for text in self.texts]
        self.width = max(cells(text) for text in (self.heading, *self.texts))

    def cell(self, row: int) -> Text:
        """The cell in a row, aligned; row -1 is the heading."""
        if row < 0:
            text = Text(self.heading.upper(), "bright_black")
        else:
            text = Text(self.texts[row], self.styles[row] if self.styles else "")
        text.align("right" if self.right else "left", self.width)
        return text


def lay_out(columns: Iterable[Column], width: int | None) -> list[Text]:
    """The lines of a table, its headings first. Columns without any value are left out. None: of any width."""
    kept = [column for column in columns if any(text not in ("", "-") for text in column.texts)]
    while width is not None and len(kept) > 1 and sum(column.width + 2 for column in kept) - 2 > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    rows = len(kept[0].texts) if kept else -1
    lines = [_GAP.join(column.cell(row) for column in kept) for row in range(-1, rows)]
    for line in lines:
        line.rstrip()
    return lines


def print_lines(lines: Iterable[Text]) -> None:
    """Print lines, in colour on a terminal, and never wrap one."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, none: str) -> None:
    """``rows`` with ``columns`` first and then any other key that they have; ``none`` in place of an empty table.

    On a terminal long cells are wrapped, in a pipe every row is one line.
    """
    if not rows:
        click.echo(none)
        return
    present = [c for c in columns if any(row.get(c) not in (None, "", []) for row in rows)]
    keys = [*present, *dict.fromkeys(key for row in rows for key in row if key not in columns)]
    if not sys.stdout.isatty():
        print_lines(
            lay_out((Column(label_of(key), [humanise(key, row.get(key)) for row in rows]) for key in keys), None)
        )
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for key in keys:
        table.add_column(label_of(key), overflow="fold")
    for row in rows:
        table.add_row(*(Text(humanise(key, row.get(key))) for key in keys))
    Console(highlight=False).print(table)
