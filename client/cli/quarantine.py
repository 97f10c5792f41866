"""`glmttsctl quarantine`: jobs that are not run any more because workers died of them, seen and set free."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .failures import USAGE, Failure
from .session import session, shared_options
from .ui.humanize import age
from .ui.output import clean, humanise, plain, print_json
from .ui.table import Column, echo, lay_out

#: Digits of a content that are shown; more where that many are not unique.
_SHORT = 12


@click.group()
def quarantine() -> None:
    """Jobs that are refused because workers died of them."""


@quarantine.command("list")
@shared_options
def list_() -> None:
    """What is in quarantine: of what workers died, whose it was, and until when."""
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("quarantine"))
    if run.json:
        print_json(answer)
        return
    found: Sequence[Mapping[str, Any]] = answer.get("quarantined") or []
    if not found:
        click.echo("Nothing is in quarantine.")
        return
    digits = _digits([str(entry.get("content", "")) for entry in found])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    table = [
        Column("content", [str(entry.get("content", ""))[:digits] for entry in found]),
        Column("deaths", [humanise("", entry.get("deaths")) for entry in found], rank=2, right=True),
        Column("cause", [_cause(entry) for entry in found], rank=5),
        Column("client", [humanise("", entry.get("client")) for entry in found], rank=3),
        Column("job", [humanise("", entry.get("job")) for entry in found], rank=4),
        Column("expires in", [age(entry.get("expires_in_s")) for entry in found], rank=1, right=True),
    ]
    for line in lay_out(table, width):
        echo(line)


def _cause(entry: Mapping[str, Any]) -> str:
    cause, detail = str(entry.get("cause") or "-"), clean(str(entry.get("detail") or ""))
    return f"{cause} ({detail})" if detail else cause


def _digits(contents: Sequence[str]) -> int:
    """How many digits tell all contents apart."""
    longest = max((len(content) for content in contents), default=_SHORT)
    return next((n for n in range(_SHORT, longest) if len({c[:n] for c in contents}) == len(set(contents))), longest)


@quarantine.command()
@click.argument("content", required=False)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@shared_options
def clear(content: str | None, everything: bool) -> None:
    """Let CONTENT, or as many of its first digits as make it unique, run again."""
    if (content is None) != everything:
        raise click.UsageError("Name the CONTENT to clear, as `glmttsctl quarantine list` shows it, or --all.")
    run = session()
    with run.control() as control:
        chosen = "all" if content is None else _resolve(content, plain(control.call("quarantine")))
        answer: dict[str, Any] = plain(control.call("quarantine", clear=chosen))
    if run.json:
        print_json(answer)
        return
    cleared = answer.get("cleared", 0)
    click.echo(
        f"{cleared} cleared: the job may run again." if cleared == 1 else f"{cleared} cleared: they may run again."
    )


def _resolve(prefix: str, answer: Mapping[str, Any]) -> str:
    contents = [str(entry.get("content", "")) for entry in answer.get("quarantined") or []]
    found = [content for content in contents if content.startswith(prefix.lower())] if prefix else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise Failure(
            f"Nothing in quarantine begins with {prefix!r}: `glmttsctl quarantine list` shows what is there. It may "
            "have expired."
        )
    raise Failure(f"{len(found)} contents begin with {prefix!r}; give more digits.", status=USAGE)
