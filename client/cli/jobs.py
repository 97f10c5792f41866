"""`glmttsctl jobs`, `job` and `wait`: the state and the speech of submitted jobs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import click
from msgspec import UNSET

from glmtts.protocol.events import JobInfo
from glmtts.protocol.requests import JobState

from .queue import is_of
from .say import facts_of, summary, write_speech
from .session import QUICK_TIMEOUT_S, session, shared_options, timeout_option
from .ui.humanize import age, humanise
from .ui.output import plain, print_json, print_pairs
from .ui.table import Column, lay_out, print_lines, print_table
from .ui.wrap import clean, shorten, terminal_width

Row = Mapping[str, Any]

#: The daemon lists at most this many.
_MOST = 1_000
_LISTED = 100

#: The first columns in a pipe, which gets every key.
_COLUMNS = (
    *("job", "user", "client", "state", "suspended", "priority", "position", "estimated_wait_s", "created"),
    *("text_length", "worker", "attempts", "segment", "segments", "waited_s", "synthesis_s", "audio_s", "durable"),
    *("label", "output", "key", "code", "message"),
)
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "suspended": "yellow", "waiting": "yellow"}
#: The longest name on a terminal, in cells.
_NAME = 20


@click.command()
@click.option("--state", type=click.Choice(get_args(JobState)), help="Only jobs in this state.")
@click.option(
    "--limit", type=click.IntRange(1, _MOST), default=_LISTED, show_default=True, metavar="N", help="The newest N."
)
@click.option("--all", "everyones", is_flag=True, help="The jobs of all users, for operators.")
@click.option("--client", metavar="CLIENT", help="Those of a user, or of a client such as `uid:1000`; for operators.")
@shared_options
def jobs(state: str | None, limit: int, everyones: bool, client: str | None) -> None:
    """Your jobs, the newest first."""
    run = session()
    if client is not None:
        all_jobs = run.ask("jobs", state=state, limit=_MOST).get("jobs") or []
        found = [job for job in all_jobs if is_of(job, client)][:limit]
        if len(all_jobs) >= _MOST and len(found) < limit:
            run.note(f"Only the newest {_MOST:,} jobs of all clients were searched.")
    elif everyones:
        found = run.ask("jobs", state=state, limit=limit).get("jobs") or []
    else:
        with run.client() as connection:
            found = plain(connection.jobs(state=state, limit=limit))
    run.show({"jobs": found}, lambda answer: _print(answer["jobs"]))


def _print(found: Sequence[Row]) -> None:
    width = terminal_width()
    if width is None or not found:
        print_table(found, _COLUMNS, none="No jobs.")
    else:
        print_lines(lay_out(columns_of(found), width))


def columns_of(found: Sequence[Row]) -> list[Column]:
    """The table for a terminal."""
    states = [state_of(job) for job in found]
    positions = [humanise("", job.get("position")) if job["state"] == "waiting" else "-" for job in found]
    return [
        Column("job", [humanise("", job.get("job")) for job in found]),
        Column("user", [shorten(str(job.get("user") or ""), _NAME) for job in found], rank=3),
        Column("client", [shorten(str(job.get("client") or ""), _NAME) for job in found], rank=8),
        Column("label", [shorten(str(job.get("label") or ""), _NAME) for job in found], rank=4),
        Column("state", states, styles=[_STYLES.get(state.split(" (")[0], "") for state in states]),
        Column("class", [humanise("", job.get("priority")) for job in found], rank=2),
        Column("pos", positions, rank=5, right=True),
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
    """Its state, or ``suspended``; with the error that it ended in, or ``alone`` if it gets a worker to itself."""
    if job.get("suspended"):
        return "suspended"
    state, code = humanise("", job.get("state")), job.get("code")
    if job.get("alone"):
        return f"{state} (alone)"
    return f"{state} ({clean(str(code))})" if code and code != state else state


def _spoken(job: Row) -> str:
    """``3/7`` segments of a running job, ``12s`` of audio of one that is done."""
    if job.get("segments") and job["state"] != "done":
        return f"{job.get('segment', 0)}/{job['segments']}"
    return age(job["audio_s"]) if job.get("audio_s") else "-"


@click.command()
@click.argument("id")
@click.option("--any", "anyones", is_flag=True, help="Also a job of another user, for operators.")
@shared_options
def job(id: str, anyones: bool) -> None:
    """The state of the job ID."""
    run = session()
    if anyones:
        found: Any = run.ask("job", job=id)
    else:
        with run.client() as client:
            found = plain(client.job(id))
    run.show(found, print_pairs)


@click.command()
@click.argument("id")
@click.option(
    "-o",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the speech to FILE; `-` is standard output.",
)
@timeout_option("Give up after this many seconds; the job continues.")
@shared_options
def wait(id: str, file: str | None, timeout: float | None) -> None:
    """Wait for the end of the job ID, and fetch its speech.

    Without -o the speech goes to standard output, unless that is a terminal. For a job that was submitted with an
    output the name of its file is printed instead.
    """
    run = session()
    if file == "-" and run.json:
        raise click.UsageError("--json and the speech can't both go to standard output; give -o FILE.")
    with run.client(timeout=None) as client:
        if file is None and (run.json or sys.stdout.isatty()):
            _refuse_speech_without_place(client.job(id, timeout=timeout or QUICK_TIMEOUT_S))
        speech = client.wait(id, timeout=timeout)
    place = file or "-"
    if speech.audio:
        write_speech(place, speech.audio)
    elif file is not None:
        why = f"the daemon keeps the speech in {speech.path}" if speech.path else "the speech was sent as a stream"
        run.note(f"Nothing was written to {file}: {why}.")
    facts = facts_of(speech, place if speech.audio else speech.path)
    if run.json:
        print_json(facts)
    else:
        run.note(summary(facts))
        if speech.path:
            click.echo(speech.path)  # as `say --output` does, for a script that reads the file


def _refuse_speech_without_place(job: JobInfo) -> None:
    """Refuse, before it is waited for and fetched, a job whose speech would have nowhere to go."""
    if job.output is UNSET and job.state not in ("failed", "cancelled"):
        raise click.UsageError("Where should the speech go? Give -o FILE, or a pipe.")
