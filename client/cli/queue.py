"""`glmttsctl queue`: who fills the queue, when the next sentence is spoken, and whether the queue moves at all."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from .session import Session, session, shared_options
from .ui.humanize import age, duration, humanise
from .ui.table import Column, lay_out, print_lines
from .ui.wrap import shorten, terminal_width

Row = Mapping[str, Any]

_LISTED = 20
#: The daemon lists at most this many.
_MOST = 1_000
_INTERVAL_S = 1.0
#: The longest name on a terminal, in cells: customers of gateways choose their own names.
_NAME = 24
_BAR = 10


@click.command()
@click.option(
    "--limit", type=click.IntRange(0, _MOST), default=_LISTED, show_default=True, metavar="N", help="List N jobs."
)
@click.option("--client", metavar="CLIENT", help="Only the jobs of a user, or of a client such as `uid:1000`.")
@click.option("-f", "--watch", is_flag=True, help="Refresh every second until q or Ctrl-C.")
@shared_options
def queue(limit: int, client: str | None, watch: bool) -> None:
    """The waiting jobs, for operators.

    Counts by class and by client, and the next jobs in the order of their start. STARTS IN is the daemon's
    estimate; WORK is the time that all waiting jobs take to speak. Suspended jobs resume by themselves. With --json
    --watch each line is an object.
    """
    run = session()
    if not watch:
        run.show(_ask(run.ask, limit, client), lambda answer: print_lines(lines_of(answer, terminal_width())))
    elif run.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        _follow(run, limit, client)
    else:
        _live(run, limit, client)


def _ask(call: Callable[..., dict[str, Any]], limit: int, client: str | None) -> dict[str, Any]:
    answer = call("queue", limit=_MOST if client else limit)
    if client is None:
        return answer
    jobs = [job for job in answer.get("jobs") or [] if is_of(job, client)]
    clients = [row for row in answer.get("clients") or [] if is_of(row, client)]
    listed = jobs[:limit]
    more = max(0, sum(row["waiting"] for row in clients) - len(listed))
    return {**answer, "clients": clients, "jobs": listed, "more": more}


def is_of(row: Row, client: str) -> bool:
    """Whether a job or a client is the one that an operator names, by its key or by its user."""
    return client in (row.get("client"), row.get("user"))


def _follow(run: Session, limit: int, client: str | None) -> None:
    """One picture after another, for a pipe or a file."""
    with contextlib.suppress(KeyboardInterrupt), run.control() as control:
        while True:
            answer = _ask(control.call, limit, client)
            if run.json:
                click.echo(json.dumps(answer, ensure_ascii=False))
            else:
                print_lines([Text(time.strftime("%H:%M:%S")), *lines_of(answer, None), Text()])
            sys.stdout.flush()
            time.sleep(_INTERVAL_S)


def _live(run: Session, limit: int, client: str | None) -> None:
    """On the whole screen, through restarts of the daemon."""
    from glmtts.client import Forbidden, GlmttsError

    from .ui.screen import cut, show_live

    lines: list[Text] = []

    def draw(width: int, height: int) -> list[Text]:
        nonlocal lines
        trouble = []
        try:
            lines = lines_of(_ask(functools.partial(run.ask, timeout=3.0), limit, client), width)
        except Forbidden:
            raise
        except GlmttsError as error:
            words = "Waiting for the daemon; the last known queue follows. " if lines else ""
            trouble = [Text(f"{words}{error}", "yellow"), Text()]
        shown = [*trouble, *lines][: height - 1]
        shown += [Text()] * (height - 1 - len(shown))
        foot = Text(f"q quit    {time.strftime('%H:%M:%S')}", "bright_black")
        return [cut(line.copy(), width) for line in [*shown, foot]]

    show_live(draw, _INTERVAL_S)


# --- the picture


def lines_of(answer: Row, width: int | None) -> list[Text]:
    """The queue as lines of at most ``width`` cells. None: of any width."""
    classes = answer.get("classes") or {}
    jobs = answer.get("jobs") or []
    lines = [_summary(answer, classes, jobs), Text(), *lay_out(_class_columns(classes), width)]
    if clients := sorted(answer.get("clients") or [], key=lambda row: -row["waiting"]):
        lines += [Text(), *lay_out(_client_columns(clients, classes, width), width)]
    if jobs:
        lines += [Text(), *lay_out(_job_columns(jobs, width, paused=bool(answer.get("paused"))), width)]
    if more := answer.get("more"):
        lines.append(Text(f"... and {more:,} more: --limit lists up to {_MOST:,}", "bright_black"))
    return lines


def _summary(answer: Row, classes: Mapping[str, Row], jobs: Sequence[Row]) -> Text:
    """The first two questions: does the queue move, and when is a sentence spoken?"""
    waiting, running = (sum(of[key] for of in classes.values()) for key in ("waiting", "running"))
    counts = (
        f"{waiting:,} {'job waits' if waiting == 1 else 'jobs wait'}, {running:,} {'runs' if running == 1 else 'run'}"
    )
    if answer.get("paused"):
        return Text.assemble(("PAUSED", "yellow"), f": no job starts until `glmttsctl resume`; {counts}.")
    urgent = sum(of["waiting"] for name, of in classes.items() if name != "batch")
    if not urgent:
        return Text(f"{counts}. An interactive job that comes now is the next to start.")
    urgent_jobs = [job for job in jobs if job.get("priority") != "batch"]
    waits = [job["estimated_wait_s"] for job in urgent_jobs if job.get("estimated_wait_s") is not None]
    if not waits:
        return Text(f"{counts}.")
    which = "The waiting interactive job" if urgent == 1 else f"The last of {urgent:,} interactive jobs"
    return Text(f"{counts}. {which} starts in about {duration(round(max(waits)))}.")


def _class_columns(classes: Mapping[str, Row]) -> list[Column]:
    rows = list(classes.values())
    return [
        Column("class", list(classes)),
        *_counts(rows),
        Column("suspended", [_number(of, "suspended") for of in rows], rank=3, right=True),
        Column("work", [age(of.get("work_s")) for of in rows], rank=1, right=True),
        Column("weight", [_number(of, "weight") for of in rows], rank=4, right=True),
    ]


def _counts(rows: Sequence[Row]) -> list[Column]:
    waiting = [_number(row, "waiting") for row in rows]
    return [
        Column("waiting", waiting, right=True, styles=["yellow" if row.get("waiting") else "" for row in rows]),
        Column("running", [_number(row, "running") for row in rows], rank=2, right=True),
    ]


def _number(row: Row, key: str) -> str:
    value = row.get(key)
    return "-" if value is None else f"{value:,}"


def _client_columns(clients: Sequence[Row], classes: Mapping[str, Row], width: int | None) -> list[Column]:
    total = sum(of["waiting"] for of in classes.values())
    return [
        *who(clients, width),
        *_counts(clients),
        Column("work", [age(row.get("work_s")) for row in clients], rank=1, right=True),
        Column(
            "of the queue", [_bar(row["waiting"], total) for row in clients], rank=3, styles=["cyan"] * len(clients)
        ),
    ]


def who(rows: Sequence[Row], width: int | None, rank: int = 5) -> list[Column]:
    """The user and the client of each row. The client may be left out, by ``rank``, where the user says enough."""
    most = _NAME if width is not None else None
    users = [shorten(str(row.get("user") or ""), most) for row in rows]
    clients = [shorten(humanise("", row.get("client")), most) for row in rows]
    told_apart = len(set(zip(users, clients, strict=True))) == len(set(users))
    return [Column("user", users), Column("client", clients, rank=rank if told_apart else 0)]


def _bar(waiting: int, total: int) -> str:
    if not waiting or not total:
        return ""
    share = waiting / total
    percent = f"{share * 100:3.0f} %" if share >= 0.01 else " <1 %"
    return f"{'█' * max(1, round(share * _BAR)):<{_BAR}} {percent}"


def _waited_s(job: Row) -> float:
    """The daemon's own figure; an earlier daemon has none, and its clock, or this machine's, may have been set."""
    return float(job["waited_s"] if "waited_s" in job else max(0.0, time.time() - job["created"]))


def _job_columns(jobs: Sequence[Row], width: int | None, *, paused: bool) -> list[Column]:
    deadlines = [age(job.get("deadline_in_s")) for job in jobs]
    user, client = who(jobs, width, rank=8)
    most = _NAME if width is not None else None
    return [
        Column("pos", [humanise("", job.get("position")) for job in jobs], rank=3, right=True),
        Column("starts in", ["-" if paused else age(job.get("estimated_wait_s")) for job in jobs], right=True),
        Column("class", [humanise("", job.get("priority")) for job in jobs], rank=2),
        user,
        client,
        Column("label", [shorten(str(job.get("label") or ""), most) for job in jobs], rank=4),
        Column("text", [_number(job, "text_length") for job in jobs], rank=5, right=True),
        Column("since", [age(_waited_s(job)) for job in jobs], rank=4, right=True),
        Column("due in", deadlines, rank=6, right=True, styles=["" if d == "-" else "yellow" for d in deadlines]),
        Column("durable", ["yes" if job.get("durable") else "" for job in jobs], rank=7),
        Column("job", [humanise("", job.get("job")) for job in jobs], rank=1),
    ]
