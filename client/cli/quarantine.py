"""`glmttsctl quarantine`: jobs that are refused because they killed workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .failures import USAGE, Failure
from .session import session, shared_options
from .ui.humanize import age, humanise
from .ui.wrap import terminal_width

#: Digits of a content that are shown; more where that many are not unique.
_SHORT = 12


@click.group()
def quarantine() -> None:
    """Jobs that are refused because they killed workers."""


@quarantine.command("list")
@shared_options
def list_() -> None:
    """The jobs in quarantine: how many workers died and of what, the client, and until when."""
    run = session()
    run.show(run.ask("quarantine"), lambda answer: _print(answer.get("quarantined") or []))


def _print(found: Sequence[Mapping[str, Any]]) -> None:
    from .ui.table import Column, lay_out, print_lines

    if not found:
        click.echo("No job is in quarantine.")
        return
    digits = _digits([entry["content"] for entry in found])
    columns = [
        Column("content", [entry["content"][:digits] for entry in found]),
        Column("deaths", [humanise("", entry.get("deaths")) for entry in found], rank=2, right=True),
        Column("cause", [_cause(entry) for entry in found], rank=5),
        Column("client", [humanise("", entry.get("client")) for entry in found], rank=3),
        Column("job", [humanise("", entry.get("job")) for entry in found], rank=4),
        Column("expires in", [age(entry.get("expires_in_s")) for entry in found], rank=1, right=True),
    ]
    print_lines(lay_out(columns, terminal_width()))


def _cause(entry: Mapping[str, Any]) -> str:
    cause, detail = entry.get("cause") or "-", entry.get("detail")
    return f"{cause} ({detail})" if detail else cause


def _digits(contents: Sequence[str]) -> int:
    """How many digits tell all contents apart."""
    longest = max(map(len, contents))
    return next((n for n in range(_SHORT, longest) if len({c[:n] for c in contents}) == len(set(contents))), longest)


@quarantine.command()
@click.argument("content", required=False)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@shared_options
def clear(content: str | None, everything: bool) -> None:
    """Allow CONTENT to run again; its first digits are enough if they are unique."""
    if (content is None) != everything:
        raise click.UsageError("Name the CONTENT to clear, as `glmttsctl quarantine list` shows it, or --all.")
    run = session()
    chosen = "all" if content is None else _resolve(content, run.ask("quarantine").get("quarantined") or [])
    answer = run.ask("quarantine", clear=chosen)
    count = answer.get("cleared", 0)
    run.show(answer, lambda _: f"{count} cleared: {'it' if count == 1 else 'they'} may run again.")


def _resolve(prefix: str, entries: Sequence[Mapping[str, Any]]) -> str:
    found = [e["content"] for e in entries if prefix and e["content"].startswith(prefix.lower())]
    if len(found) == 1:
        return str(found[0])
    if not found:
        raise Failure(
            f"No content in quarantine begins with {prefix!r}; it may have expired. `glmttsctl quarantine list` shows "
            "what is there."
        )
    raise Failure(f"{len(found)} contents begin with {prefix!r}; give more digits.", status=USAGE)
