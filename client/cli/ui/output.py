"""Answers on standard output: JSON for programs, aligned pairs for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from .humanize import humanise, label_of
from .wrap import hanging, terminal_width

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
    wide = max((len(label_of(key)) for key in values), default=0)
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            click.echo(f"{indent}{label_of(key)}")
            print_pairs(value, indent + "  ")
        else:
            text = hanging(f"{indent}{label_of(key):<{wide}}  ", humanise(key, value), terminal_width())
            click.echo("\n".join(text))
