"""`glmttsctl jobs`, `job` and `wait`: what becomes of jobs that were submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from glmtts.protocol.requests import JobState

from .files import write_atomically
from .job_table import print_jobs
from .output import plain, print_json, print_pairs
from .queue import is_of
from .session import Session, session, shared_options, timeout_option

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
    "-o", "file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write its speech here."
)
@timeout_option("Give up after this many seconds; the job goes on.")
@shared_options
def wait(id: str, file: Path | None, timeout: float | None) -> None:
    """Wait until the job ID is done, and fetch its speech."""
    from .speak import facts_of, summary

    run = session()
    with run.client(timeout=None) as client:
        speech = client.wait(id, timeout=timeout)
    if file is not None and speech.audio:
        write_atomically(file, speech.audio)
    elif file is not None:
        run.note(f"Nothing was written to {file}: " + _why_no_audio(speech.path))
    facts = facts_of(speech, str(file) if file is not None and speech.audio else speech.path)
    if run.json:
        print_json(facts)
    else:
        click.echo(summary(facts))


def _why_no_audio(path: str | None) -> str:
    return f"the daemon keeps the speech in {path}." if path else "the speech was streamed while it was made."
