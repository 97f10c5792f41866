"""`glmttsctl jobs`, `job` and `wait`: what becomes of jobs that were submitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click
from msgspec import UNSET

from glmtts.protocol.events import JobInfo
from glmtts.protocol.requests import JobState

from .queue import is_of
from .session import QUICK_TIMEOUT_S, Session, session, shared_options, timeout_option
from .ui.files import write_atomically
from .ui.job_table import print_jobs
from .ui.output import plain, print_json, print_pairs

#: The most that the daemon lists.
_MOST = 1_000
_LISTED = 100


@click.command()
@click.option("--state", type=click.Choice(get_args(JobState)), help="Those in this state alone.")
@click.option("--limit", type=click.IntRange(1, _MOST), metavar="N", help=f"The newest N; {_LISTED} unless given.")
@click.option("--all", "everyones", is_flag=True, help="Everyone's jobs, for operators.")
@click.option("--client", metavar="CLIENT", help="Those of a user, or of a client as `uid:1000`; for operators.")
@shared_options
def jobs(state: str | None, limit: int | None, everyones: bool, client: str | None) -> None:
    """Your jobs, the newest first."""
    run = session()
    if client is not None:
        found = _of_client(run, state, limit or _LISTED, client)
    elif everyones:
        with run.control() as control:
            found = plain(control.call("jobs", state=state, limit=limit).get("jobs") or [])
    else:
        with run.client() as connection:
            found = plain(connection.jobs(state=state, limit=limit))
    if run.json:
        print_json({"jobs": found})
    else:
        print_jobs(found)


def _of_client(run: Session, state: str | None, limit: int, client: str) -> list[dict[str, Any]]:
    with run.control() as control:
        everyones: list[dict[str, Any]] = plain(control.call("jobs", state=state, limit=_MOST).get("jobs") or [])
    found = [job for job in everyones if is_of(job, client)]
    if len(everyones) >= _MOST and len(found) < limit:
        run.note(f"Among the newest {_MOST:,} jobs of everyone; older ones are not looked at.")
    return found[:limit]


@click.command()
@click.argument("id")
@click.option("--any", "anyones", is_flag=True, help="Someone else's job too, for operators.")
@shared_options
def job(id: str, anyones: bool) -> None:
    """How the job ID stands."""
    run = session()
    if anyones:
        with run.control() as control:
            found: dict[str, Any] = plain(control.call("job", job=id))
    else:
        with run.client() as client:
            found = plain(client.job(id))
    if run.json:
        print_json(found)
    else:
        print_pairs(found)


@click.command()
@click.argument("id")
@click.option(
    "-o",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write its speech to FILE; `-` is standard output.",
)
@timeout_option("Give up after this many seconds; the job goes on.")
@shared_options
def wait(id: str, file: str | None, timeout: float | None) -> None:
    """Wait until the job ID is done, and fetch its speech.

    Without -o the speech goes to standard output, if that is no terminal. A job whose speech the daemon keeps in a file
    needs no -o: the file is named.
    """
    from .say import facts_of, summary

    run = session()
    if file == "-" and run.json:
        raise click.UsageError("--json and the speech can't both go to standard output; give -o FILE.")
    with run.client(timeout=None) as client:
        if file is None and (run.json or sys.stdout.isatty()):
            _refuse_speech_without_place(client.job(id, timeout=timeout or QUICK_TIMEOUT_S))
        speech = client.wait(id, timeout=timeout)
    place = "-" if file is None else file
    if speech.audio and place == "-":
        sys.stdout.buffer.write(speech.audio)
        sys.stdout.buffer.flush()
    elif speech.audio:
        write_atomically(Path(place), speech.audio)
    elif file is not None:
        run.note(f"Nothing was written to {file}: " + _why_no_audio(speech.path))
    facts = facts_of(speech, place if speech.audio else speech.path)
    if run.json:
        print_json(facts)
    else:
        run.note(summary(facts))
        if speech.path:
            click.echo(speech.path)  # as `say --output` does, for whoever goes on with the file


def _refuse_speech_without_place(job: JobInfo) -> None:
    """Before it is waited for and fetched, a job whose speech would have nowhere to go."""
    if job.output is UNSET and job.state not in ("failed", "cancelled"):
        raise click.UsageError("Where should the speech go? Give -o FILE, or pipe it on.")


def _why_no_audio(path: str | None) -> str:
    return f"the daemon keeps the speech in {path}." if path else "the speech was streamed while it was made."
