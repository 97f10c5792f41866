"""Data on stdout: JSON for programs, tables and aligned lines for people, whatever keys the daemon sends."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

#: Control sequences of terminals (ECMA-48), such as colours.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")

#: Keys of the envelope, which say nothing about what was asked.
_ENVELOPE = frozenset({"v", "id", "event"})


def plain(value: Any) -> Any:
    """``value`` as maps, lists, strings and numbers; an event loses its envelope."""
    import msgspec

    made = msgspec.to_builtins(value)
    if isinstance(made, dict):
        return {k: v for k, v in made.items() if k not in _ENVELOPE}
    return made


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_pairs(values: Mapping[str, Any], indent: str = "") -> None:
    """One line for each key, values aligned; maps inside are shown indented under their key."""
    for line in _pair_lines(values, indent):
        click.echo(line)


def _pair_lines(values: Mapping[str, Any], indent: str) -> Iterable[str]:
    width = max((cells(label_of(key)) for key in values), default=0)
    for key, value in values.items():
        label = label_of(key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{label}"
            yield from _pair_lines(value, indent + "  ")
        else:
            yield f"{indent}{label}{' ' * (width - cells(label))}  {humanise(key, value)}".rstrip()


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, none: str) -> None:
    """``rows`` with ``columns`` first and then any other key that they have; ``none`` is said when there are no rows.

    A terminal gets a table that fits it, a pipe gets aligned text that nothing is cut from.
    """
    if not rows:
        click.echo(none)
        return
    present = [c for c in columns if any(row.get(c) not in (None, "", []) for row in rows)]
    others = [k for row in rows for k in row if k not in columns]
    keys = [*present, *dict.fromkeys(others)]
    cells = [[humanise(key, row.get(key)) for key in keys] for row in rows]
    headings = [label_of(key) for key in keys]
    if sys.stdout.isatty():
        _print_rich(headings, cells)
    else:
        _print_aligned(headings, cells)


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(table)


#: States that deserve a second look, and those that don't.
_STYLES = {
    "ready": "green",
    "done": "green",
    "busy": "cyan",
    "running": "cyan",
    "starting": "yellow",
    "backoff": "yellow",
    "draining": "yellow",
    "failed": "red",
}


def _print_aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [[h.upper() for h in headings], *rows]
    widths = [max(cells(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        padded = (cell + " " * (width - cells(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def clean(text: str) -> str:
    """``text`` without what would move a terminal's cursor or change its colours: a worker's last words may have it."""
    return "".join(c if c.isprintable() else " " for c in ESCAPES.sub("", text))


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, most: int | None) -> str:
    """``text`` in at most ``most`` cells, with an ellipsis in its middle: names differ at their ends. None: uncut."""
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


#: Keys that are sizes and don't say so.
SIZES = frozenset({"rss", "vram", "torch_allocated", "torch_reserved"})


def humanise(key: str, value: Any) -> str:
    """A value in the form that a person reads, told from the unit in its key's name."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{label_of(k)} {humanise(k, v)}" for k, v in value.items() if v is not None) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(humanise("", item) for item in value) or "-"
    if isinstance(value, (int, float)):
        if key == "created":
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        if key.endswith("_s"):
            return duration(value)
        if key in SIZES or key.endswith("bytes"):
            return size(value)
        if key.endswith("_mib"):
            return f"{value:.0f} MiB"
        return str(value) if isinstance(value, int) else f"{value:.3g}"
    return clean(str(value))


def label_of(key: str) -> str:
    for unit in ("_s", "_mib"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def duration(seconds: float) -> str:
    """``4.1 ms``, ``240 ms``, ``2.50 s``, ``12.3 s``, ``5 min 07 s``, ``3 h 20 min``, ``2 d 4 h``."""
    if 0 < seconds < 0.1:
        return f"{seconds * 1_000:.1f} ms"
    if 0 < seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def size(count: float) -> str:
    """``512 bytes``, ``12.5 KiB``, ``3.1 MiB``, ``1.20 GiB``."""
    if count < 1024:
        return f"{count:.0f} bytes"
    if count < 1024**2:
        return f"{count / 1024:.1f} KiB"
    if count < 1024**3:
        return f"{count / 1024**2:.1f} MiB"
    return f"{count / 1024**3:.2f} GiB"
