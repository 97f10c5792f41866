"""`glmttsctl usage`: what was spoken, by day and by client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from .session import session, shared_options
from .ui.humanize import duration
from .ui.output import plain
from .ui.table import Column, lay_out, print_lines
from .ui.wrap import terminal_width

Row = Mapping[str, Any]


@click.command()
@click.option("--since", metavar="DATE", help="From this day on (UTC), such as 2026-11-30; all that is kept otherwise.")
@click.option("--all", "everyones", is_flag=True, help="The usage of all clients, for operators.")
@click.option(
    "--client", metavar="CLIENT", help="That of a client such as `uid:1000`, with its customers; for operators."
)
@shared_options
def usage(since: str | None, everyones: bool, client: str | None) -> None:
    """Your jobs, characters and seconds of speech on each day.

    A gateway sees each of its customers. A job that was cancelled counts with what was spoken of it, one that was
    repeated by its key counts once. Days are kept as [limits] usage_days says.
    """
    run = session()
    if everyones or client is not None:
        answer = run.ask("usage", since=since, client=client)
    else:
        with run.client() as connection:
            answer = {"days": plain(connection.usage(since=since))}
    run.show({key: answer[key] for key in ("days", "more") if key in answer}, _print)


def _print(answer: Row) -> None:
    days: Sequence[Row] = answer.get("days") or []
    if not days:
        click.echo("Nothing was spoken.")
        return
    total = {key: sum(row[key] for row in days) for key in ("jobs", "characters", "audio_s")}
    rows = [*days, {"day": "total", **total}]
    columns = [
        Column("day", [str(row["day"]) for row in rows]),
        Column("client", [str(row.get("client") or "") for row in rows]),
        Column("customer", [_customer(row) for row in rows], rank=1),
        Column("jobs", [f"{row['jobs']:,}" for row in rows], right=True),
        Column("characters", [f"{row['characters']:,}" for row in rows], rank=2, right=True),
        Column("speech", [duration(row["audio_s"]) for row in rows], right=True),
    ]
    print_lines(lay_out(columns, terminal_width()))
    if answer.get("more"):
        click.echo(f"The newest {len(days):,} rows; --client shows those of one client.")


def _customer(row: Row) -> str:
    if "on_behalf_of" not in row or row.get("client"):
        return ""
    return str(row["on_behalf_of"]) or "(others)"
