"""Jobs as a table: on a terminal what fits and matters most, in a pipe everything that the daemon says of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .humanize import age
from .output import clean, humanise, print_table, shorten
from .table import Column, echo, lay_out

Row = Mapping[str, Any]

_COLUMNS = (
    *("job", "user", "client", "state", "suspended", "priority", "position", "estimated_wait_s", "created"),
    *("text_length", "worker", "attempts", "segment", "segments", "waited_s", "synthesis_s", "audio_s", "durable"),
    *("output", "key", "code", "message"),
)

_STYLES = {"done": "green", "running": "cyan", "failed": "red", "put aside": "yellow", "waiting": "yellow"}
_NONE = "No jobs."
#: Cells of a name on a terminal.
_NAME = 20


def print_jobs(found: Sequence[Row]) -> None:
    """Print jobs in the order given."""
    if not sys.stdout.isatty():
        print_table(found, _COLUMNS, none=_NONE)
        return
    if not found:
        click.echo(_NONE)
    width = shutil.get_terminal_size().columns
    for line in lay_out(columns_of(found), width) if found else []:
        echo(line)


def columns_of(found: Sequence[Row]) -> list[Column]:
    """The table for a terminal."""
    states = [state_of(job) for job in found]
    return [
        Column("job", [humanise("", job.get("job")) for job in found]),
        Column("user", [shorten(str(job.get("user") or ""), _NAME) for job in found], rank=3),
        Column("client", [shorten(str(job.get("client") or ""), _NAME) for job in found], rank=8),
        Column("state", states, styles=[_STYLES.get(state.split(" (")[0], "") for state in states]),
        Column("class", [humanise("", job.get("priority")) for job in found], rank=2),
        Column("pos", [_position(job) for job in found], rank=5, right=True),
        Column("starts in", [age(job.get("estimated_wait_s")) for job in found], rank=1, right=True),
        Column("created", [humanise("created", job.get("created")) for job in found], rank=9),
        Column("text", [humanise("", job.get("text_length")) for job in found], rank=6, right=True),
        Column("worker", [humanise("", job.get("worker")) for job in found], rank=10),
        Column("spoken", [_spoken(job) for job in found], rank=4, right=True),
        Column("waited", [age(job.get("waited_s")) for job in found], rank=7, right=True),
        Column("durable", ["yes" if job.get("durable") else "" for job in found], rank=11),
        Column("output", [shorten(str(job.get("output") or ""), _NAME * 2) for job in found], rank=12),
    ]


def state_of(job: Row) -> str:
    """Its state, with the error that it ended in; a job that was put aside for a more urgent one is said to be."""
    if job.get("suspended"):
        return "put aside"
    state = humanise("", job.get("state"))
    code = job.get("code")
    return f"{state} ({clean(str(code))})" if code and code != state else state


def _position(job: Row) -> str:
    return humanise("", job.get("position")) if job.get("state") == "waiting" else "-"


def _spoken(job: Row) -> str:
    """``3/7`` segments of one that is spoken, ``12s`` of audio of one that is done."""
    if job.get("segments") and job.get("state") != "done":
        return f"{job.get('segment', 0)}/{job['segments']}"
    return age(job["audio_s"]) if isinstance(job.get("audio_s"), (int, float)) and job["audio_s"] else "-"
