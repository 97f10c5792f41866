"""Answers on standard output: JSON for programs, aligned pairs for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from .humanize import humanise, label_of
from .wrap import cells

#: Keys of every event, which belong to the connection and not to the answer.
_ENVELOPE = frozenset({"v", "id", "event"})


def plain(value: Any) -> Any:
    """``value`` as maps, lists, strings and numbers; an event loses its envelope."""
    import msgspec

    made = msgspec.to_builtins(value)
    if isinstance(made, dict):
        return {k: v for k, v in made.items() if k not in _ENVELOPE}
    return made


def print_json(value: Any) -> None:
    """One line for programs, indented on a terminal."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def print_pairs(values: Mapping[str, Any], indent: str = "") -> None:
    """One line for each key, values aligned; the keys of a map are indented below its name."""
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
