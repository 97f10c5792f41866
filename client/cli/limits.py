"""`glmttsctl limits`: what clients may ask for, and how far each has come with it."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .queue import who
from .session import session, shared_options
from .ui.humanize import age
from .ui.output import clean, plain, print_json
from .ui.table import Column, echo, lay_out

Row = Mapping[str, Any]

#: What stands for a rate where there is none.
_ANY = "any"


@click.command()
@click.argument("client", required=False)
@shared_options
def limits(client: str | None) -> None:
    """The limits in force, for operators, and how far each client has used them; CLIENT: that one alone.

    CLIENT is a user, or a client as `glmttsctl queue` shows it, such as uid:1000. NEXT JOB is when its rate lets it
    send the next one, and how many at once. Limits of its own come from [limits.clients] in the configuration.
    """
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("limits", client=client))
    if run.json:
        print_json(answer)
        return
    general = answer.get("limits")
    for words in general_in_words(general if isinstance(general, Mapping) else {}):
        click.echo(words)
    found = [row for row in answer.get("clients") or [] if isinstance(row, Mapping)]
    click.echo()
    if not found:
        click.echo("No client has asked for anything yet." if client is None else f"Nothing is known of {client}.")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lay_out(_columns(found, width), width):
        echo(line)


def general_in_words(general: Row) -> list[str]:
    """The limits of everybody who has none of his own."""
    share = general.get("max_share")
    taken = f"; {share * 100:.0f} % of them for one client" if isinstance(share, (int, float)) else ""
    return [
        f"new jobs  {_rate(general.get('rate'))} (vip, interactive), {_rate(general.get('rate_batch'))} (batch)",
        f"waiting   {_count(general.get('max_waiting'))} (vip, interactive), "
        f"{_count(general.get('max_waiting_batch'))} (batch){taken}",
        f"live      {_count(general.get('max_jobs'))} of one client",
    ]


def _rate(rate: Any) -> str:
    return clean(str(rate)) if rate else "any number"


def _count(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else "-"


def _columns(found: Sequence[Row], width: int | None) -> list[Column]:
    return [
        *who(found, width, rank=6),
        _new_jobs("next job", found, "rate", "tokens", "next_token_in_s"),
        _new_jobs("next batch", found, "rate_batch", "tokens_batch", "next_batch_token_in_s"),
        _used("waiting", found, "waiting", "share"),
        _used("batch", found, "waiting_batch", "share_batch"),
        _used("live", found, "jobs", "max_jobs", rank=3),
        Column("note", [_note(row) for row in found], rank=2),
    ]


def _new_jobs(heading: str, found: Sequence[Row], *keys: str) -> Column:
    texts = [_next_job(*(row.get(key) for key in keys)) for row in found]
    if set(texts) == {_ANY}:
        texts = [""] * len(found)  # what nobody is kept from needs no column
    return Column(heading, texts, rank=1, styles=["yellow" if text.startswith("in ") else "" for text in texts])


def _next_job(rate: Any, tokens: Any, after_s: Any) -> str:
    """``any``, ``now, 3 of 60/minute``, ``in 5s, 10/minute``: rounded so that who goes by it is not refused."""
    if not rate:
        return _ANY
    words = clean(str(rate))
    if isinstance(after_s, (int, float)) and after_s > 0:
        return f"in {age(math.ceil(after_s))}, {words}"
    return f"now, {int(tokens)} of {words}" if isinstance(tokens, (int, float)) else f"now, {words}"


def _used(heading: str, found: Sequence[Row], used: str, most: str, *, rank: int = 0) -> Column:
    texts = [f"{_count(row.get(used))}/{_count(row.get(most))}" for row in found]
    full = [isinstance(row.get(most), int) and (row.get(used) or 0) >= row[most] for row in found]
    return Column(heading, texts, rank=rank, right=True, styles=["red" if is_full else "" for is_full in full])


def _note(row: Row) -> str:
    return ", ".join(word for key, word in (("own", "own limits"), ("gateway", "gateway")) if row.get(key))
