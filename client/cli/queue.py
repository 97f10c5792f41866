"""`glmttsctl queue`: who fills it, how long until a sentence is spoken, and whether it moves at all."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .session import Session, session, shared_options
from .ui.humanize import Piece, age
from .ui.output import duration, humanise, plain, print_json, shorten
from .ui.screen import QUIT, Ended, ended_by_signals, keys_at_once, pressed, text_of
from .ui.table import Column, echo, lay_out

Line = list[Piece]
Row = Mapping[str, Any]

_LISTED = 20
#: The most that the daemon lists.
_MOST = 1_000
_INTERVAL_S = 1.0
#: Names of people and clients are cut to so many cells on a terminal: customers of gateways have what name they like.
_NAME = 24
_BAR = 10


@click.command()
@click.option(
    "--limit", type=click.IntRange(0, _MOST), default=_LISTED, show_default=True, metavar="N", help="List N jobs."
)
@click.option("--client", metavar="CLIENT", help="That user's, or that client's as `uid:1000`, alone.")
@click.option("-f", "--watch", is_flag=True, help="Show it anew every second, until q or Ctrl-C.")
@shared_options
def queue(limit: int, client: str | None, watch: bool) -> None:
    """What waits, for operators: by class, by client, and the next jobs in the order in which they will start.

    STARTS IN is the daemon's estimate, WORK how long it takes to speak all that waits. Jobs that were put aside for
    more urgent ones go on by themselves. With --json --watch each line is an object.
    """
    run = session()
    if not watch:
        with run.control() as control:
            answer = _ask(control, limit, client)
        if run.json:
            print_json(answer)
            return
        # What goes into a pipe is cut by nobody.
        for line in lines_of(answer, shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
            echo(line)
    elif run.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        _follow(run, limit, client)
    else:
        _live(run, limit, client)


def _ask(control: Any, limit: int, client: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = plain(control.call("queue", limit=_MOST if client else limit))
    if client is None:
        return answer
    jobs = [job for job in _rows(answer, "jobs") if is_of(job, client)]
    clients = [row for row in _rows(answer, "clients") if is_of(row, client)]
    waiting = sum(row.get("waiting") or 0 for row in clients)
    listed = jobs[:limit]
    return {**answer, "clients": clients, "jobs": listed, "more": max(0, waiting - len(listed))}


def is_of(row: Row, client: str) -> bool:
    """Whether a job or a client is the one that an operator means: by its key, or by its user."""
    return client in (row.get("client"), row.get("user"))


def _rows(answer: Row, key: str) -> list[Row]:
    return [row for row in answer.get(key) or [] if isinstance(row, Mapping)]


# --- following it


def _follow(run: Session, limit: int, client: str | None) -> None:
    """One picture after another, for a pipe or a file."""
    try:
        with run.control() as control:
            while True:
                answer = _ask(control, limit, client)
                if run.json:
                    click.echo(json.dumps(answer, ensure_ascii=False))
                else:
                    for line in [[(time.strftime("%H:%M:%S"), "")], *lines_of(answer, None), []]:
                        echo(line)
                sys.stdout.flush()
                time.sleep(_INTERVAL_S)
    except KeyboardInterrupt:
        return


def _live(run: Session, limit: int, client: str | None) -> None:
    """On the whole screen, through restarts of the daemon."""
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False)
    lines: list[Line] = []
    try:
        with keys_at_once(), ended_by_signals(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                console.size = shutil.get_terminal_size()
                width, height = console.size
                trouble, lines = _look(run, limit, client, width, lines)
                foot: Line = [(f"q quit    {time.strftime('%H:%M:%S')}", "bright_black")]
                shown = [*trouble, *lines][: height - 1]
                shown += [[] for _ in range(height - 1 - len(shown))]
                live.update(Group(*(text_of(line, width) for line in [*shown, foot])), refresh=True)
                if pressed(_INTERVAL_S) & QUIT:
                    return
    except (KeyboardInterrupt, Ended):
        return


def _look(
    run: Session, limit: int, client: str | None, width: int, before: list[Line]
) -> tuple[list[Line], list[Line]]:
    """What is wrong, and the picture: the last one where there is no newer."""
    from glmtts.client import Forbidden, GlmttsError

    try:
        with run.control(timeout=3.0) as control:
            return [], lines_of(_ask(control, limit, client), width)
    except Forbidden:
        raise
    except GlmttsError as error:
        words = "waiting for the daemon; what follows is the last that was known: " if before else ""
        return [[(f"{words}{error}", "yellow")], []], before


# --- the picture


def lines_of(answer: Row, width: int | None) -> list[Line]:
    """The queue as lines of at most ``width`` cells; None: as wide as it gets."""
    paused = bool(answer.get("paused"))
    lines: list[Line] = [*_summary(answer, paused=paused), []]
    lines += lay_out(_classes(answer), width)
    if clients := _rows(answer, "clients"):
        clients = sorted(clients, key=lambda row: -(row.get("waiting") or 0))
        lines += [[], *lay_out(_clients(clients, answer, width), width)]
    if jobs := _rows(answer, "jobs"):
        lines += [[], *lay_out(_jobs(jobs, width, paused=paused), width)]
    if more := answer.get("more"):
        lines.append([(f"... and {more:,} more: --limit lists up to {_MOST:,}", "bright_black")])
    return lines


def _summary(answer: Row, *, paused: bool) -> list[Line]:
    """The answer to what a person comes with: does it move, and when is a sentence spoken?"""
    classes = _classes_of(answer)
    waiting = sum(of.get("waiting") or 0 for of in classes.values())
    running = sum(of.get("running") or 0 for of in classes.values())
    counts = f"{waiting:,} {_wait(waiting)}, {running:,} {_run(running)}"
    if paused:
        return [[("PAUSED", "yellow"), (f": nothing is started until `glmttsctl resume`; {counts}.", "")]]
    return [[(f"{counts[0].upper()}{counts[1:]}. ", ""), (_next_sentence(answer, classes), "")]]


def _wait(count: int) -> str:
    return "job waits" if count == 1 else "jobs wait"


def _run(count: int) -> str:
    return "runs" if count == 1 else "run"


def _next_sentence(answer: Row, classes: Mapping[str, Row]) -> str:
    """When a sentence that somebody wants now is begun, as far as the list of jobs tells."""
    urgent = [job for job in _rows(answer, "jobs") if job.get("priority") != "batch"]
    waiting = sum(of.get("waiting") or 0 for name, of in classes.items() if name != "batch")
    if not waiting:
        return "An interactive job that comes now is the next to start."
    waits = [job["estimated_wait_s"] for job in urgent if isinstance(job.get("estimated_wait_s"), (int, float))]
    if not waits:
        return ""
    which = "The interactive job that waits" if waiting == 1 else f"The last of {waiting:,} interactive jobs"
    return f"{which} starts in about {duration(round(max(waits)))}."


def _classes_of(answer: Row) -> dict[str, Row]:
    classes = answer.get("classes")
    found = classes.items() if isinstance(classes, Mapping) else []
    return {str(name): of for name, of in found if isinstance(of, Mapping)}


def _classes(answer: Row) -> list[Column]:
    classes = _classes_of(answer)
    return [
        Column("class", list(classes)),
        *_counts(list(classes.values())),
        Column("put aside", [_number(of, "suspended") for of in classes.values()], rank=3, right=True),
        Column("work", [age(of.get("work_s")) for of in classes.values()], rank=1, right=True),
        Column("weight", [_number(of, "weight") for of in classes.values()], rank=4, right=True),
    ]


def _counts(rows: Sequence[Row]) -> list[Column]:
    waiting = [_number(row, "waiting") for row in rows]
    return [
        Column("waiting", waiting, right=True, styles=["yellow" if row.get("waiting") else "" for row in rows]),
        Column("running", [_number(row, "running") for row in rows], rank=2, right=True),
    ]


def _number(row: Row, key: str) -> str:
    value = row.get(key)
    return f"{value:,}" if isinstance(value, int) else humanise(key, value)


def _clients(clients: Sequence[Row], answer: Row, width: int | None) -> list[Column]:
    total = sum(of.get("waiting") or 0 for of in _classes_of(answer).values())
    shares = [(row.get("waiting") or 0) / total if total else 0.0 for row in clients]
    return [
        *who(clients, width),
        *_counts(clients),
        Column("work", [age(row.get("work_s")) for row in clients], rank=1, right=True),
        Column("of the queue", [_bar(share) for share in shares], rank=3, styles=["cyan"] * len(clients)),
    ]


def who(rows: Sequence[Row], width: int | None, rank: int = 5) -> list[Column]:
    """Whose it is: the user, and the client as the daemon tells clients apart, which goes by ``rank`` if users do."""
    most = _NAME if width is not None else None
    users = [shorten(str(row.get("user") or ""), most) for row in rows]
    clients = [shorten(humanise("", row.get("client")), most) for row in rows]
    told_apart = len(set(zip(users, clients, strict=True))) == len(set(users))
    return [Column("user", users), Column("client", clients, rank=rank if told_apart else 0)]


def _bar(share: float) -> str:
    filled = max(1, round(share * _BAR)) if share > 0 else 0
    percent = f"{share * 100:3.0f} %" if share >= 0.01 else " <1 %"
    return f"{'█' * filled}{' ' * (_BAR - filled)} {percent}" if share > 0 else ""


def _jobs(jobs: Sequence[Row], width: int | None, *, paused: bool) -> list[Column]:
    now = time.time()
    created = [job.get("created") for job in jobs]
    waits = ["-" if paused else age(job.get("estimated_wait_s")) for job in jobs]
    deadlines = [age(job.get("deadline_in_s")) for job in jobs]
    user, client = who(jobs, width, rank=8)
    return [
        Column("pos", [humanise("", job.get("position")) for job in jobs], rank=3, right=True),
        Column("starts in", waits, right=True),
        Column("class", [humanise("", job.get("priority")) for job in jobs], rank=2),
        user,
        client,
        Column("text", [_number(job, "text_length") for job in jobs], rank=5, right=True),
        Column("since", [age(now - at) if isinstance(at, (int, float)) else "-" for at in created], rank=4, right=True),
        Column("due in", deadlines, rank=6, right=True, styles=["" if d == "-" else "yellow" for d in deadlines]),
        Column("durable", ["yes" if job.get("durable") else "" for job in jobs], rank=7),
        Column("job", [humanise("", job.get("job")) for job in jobs], rank=1),
    ]
