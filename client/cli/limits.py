"""`glmttsctl limits`: the limits of clients, and how much of them each has used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .queue import who
from .session import session, shared_options
from .ui.humanize import age, size
from .ui.table import Column, lay_out, print_lines
from .ui.wrap import clean, terminal_width

Row = Mapping[str, Any]

_UNLIMITED = "any"


@click.command()
@click.argument("client", required=False)
@shared_options
def limits(client: str | None) -> None:
    """The limits of clients, for operators.

    The limits in force, and how much of them each client, or CLIENT alone, has used. CLIENT is a user, or a client
    as `glmttsctl queue` shows it, such as uid:1000. NEXT JOB says when its rate lets it send the next job, and how many
    at once. A client may have limits of its own: [limits.clients] in the configuration. For CLIENT alone, what it holds
    of the tables that all clients share is shown too: of a full one, the client that holds most loses its oldest rows.
    """
    run = session()
    run.show(run.ask("limits", client=client), lambda answer: _print(answer, client))


def _print(answer: Mapping[str, Any], client: str | None) -> None:
    general = answer.get("limits") or {}
    share = general.get("max_share")
    taken = f"; {share * 100:.0f} % of them for one client" if share is not None else ""
    click.echo(f"new jobs  {_rate(general, 'rate')} (vip, interactive), {_rate(general, 'rate_batch')} (batch)")
    click.echo(
        f"waiting   {_count(general, 'max_waiting')} (vip, interactive), {_count(general, 'max_waiting_batch')} "
        f"(batch){taken}"
    )
    click.echo(f"live      {_count(general, 'max_jobs')} of one client\n")
    if found := answer.get("clients"):
        width = terminal_width()
        print_lines(lay_out(_columns(found, width), width))
        if client is not None and len(found) == 1:
            click.echo()
            _print_tables(answer.get("tables") or {}, found[0])
    else:
        click.echo("No client has sent a request yet." if client is None else f"The client {client} is unknown.")


def _rate(general: Row, key: str) -> str:
    return clean(str(general.get(key) or "any number"))


def _count(row: Row, key: str) -> str:
    return "-" if row.get(key) is None else f"{row[key]:,}"


def _columns(found: Sequence[Row], width: int | None) -> list[Column]:
    return [
        *who(found, width, rank=6),
        _new_jobs("next job", found, "rate", "tokens", "next_token_in_s"),
        _new_jobs("next batch", found, "rate_batch", "tokens_batch", "next_batch_token_in_s"),
        _used("waiting", found, "waiting", "share"),
        _used("batch", found, "waiting_batch", "share_batch"),
        *([_used("voices", found, "voices", "max_voices", rank=4)] if any(row.get("voices") for row in found) else []),
        _used("live", found, "jobs", "max_jobs", rank=3),
        _held("connections", found, rank=4),
        _held("outputs", found, rank=5),
        Column("note", [_note(row) for row in found], rank=2),
    ]


def _new_jobs(heading: str, found: Sequence[Row], *keys: str) -> Column:
    texts = [_next_job(*(row.get(key) for key in keys)) for row in found]
    if set(texts) == {_UNLIMITED}:
        texts = [""] * len(found)  # without any limit the column is left out
    return Column(heading, texts, rank=1, styles=["yellow" if text.startswith("in ") else "" for text in texts])


def _next_job(rate: str | None, tokens: float | None, after_s: float | None) -> str:
    """``any``, ``now, 3 of 60/minute``, ``in 5s, 10/minute``: rounded so that a job at that time is accepted."""
    if not rate:
        return _UNLIMITED
    if after_s:
        return f"in {age(math.ceil(after_s))}, {clean(rate)}"
    return f"now, {int(tokens or 0)} of {clean(rate)}"


def _used(heading: str, found: Sequence[Row], used: str, most: str, *, rank: int = 0) -> Column:
    texts = [f"{_count(row, used)}/{_count(row, most)}" for row in found]
    full = [row.get(most) is not None and (row.get(used) or 0) >= row[most] for row in found]
    return Column(heading, texts, rank=rank, right=True, styles=["red" if is_full else "" for is_full in full])


def _held(table: str, found: Sequence[Row], *, rank: int) -> Column:
    """What each client holds of a table; the column is left out where none holds anything."""
    held = [(row.get("held") or {}).get(table) or 0 for row in found]
    texts = [f"{value:,}" if table == "connections" else size(value) for value in held]
    return Column(table, texts if any(held) else [""] * len(found), rank=rank, right=True)


def _note(row: Row) -> str:
    notes = [word for key, word in (("own", "own limits"), ("gateway", "gateway")) if row.get(key)]
    if lost := sum((row.get("removed") or {}).values()):
        notes.append(f"lost {lost:,} rows early")
    return ", ".join(notes)


def _print_tables(tables: Mapping[str, Row], row: Row) -> None:
    """What one client holds of the tables that all share, and has lost."""
    held, removed = row.get("held") or {}, row.get("removed") or {}
    for name, table in tables.items():
        if held.get(name) or removed.get(name):
            shown = (
                size if name.endswith(("results", "recordings", "outputs", "unread", "own_voices")) else "{:,}".format
            )
            lost = f"; {removed[name]:,} rows lost early, as it held most" if removed.get(name) else ""
            of_all = f"{shown(table['held'])} of {shown(table['most'])} are taken by {_clients(table['clients'])}"
            click.echo(f"{clean(name):<16}  {shown(held.get(name, 0))}; {of_all}{lost}")


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count:,} clients"
