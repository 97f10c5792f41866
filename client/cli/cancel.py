"""`glmttsctl cancel`: some jobs, or all that a client has, after a question to the person who asks for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from .failures import USAGE, Failure, Finished, exit_code, report
from .queue import is_of
from .session import session, shared_options
from .ui.output import clean, plain, print_json

if TYPE_CHECKING:
    from glmtts.client import Control


@click.command()
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--any", "anyones", is_flag=True, help="Someone else's jobs too, for operators.")
@click.option("--client", metavar="CLIENT", help="All jobs of a user, or of a client as `uid:1000`; for operators.")
@click.option("-y", "--yes", is_flag=True, help="With --client: do it without a question.")
@shared_options
def cancel(jobs: tuple[str, ...], anyones: bool, client: str | None, yes: bool) -> None:
    """End each JOB, or all jobs of a client."""
    if bool(jobs) == (client is not None):
        raise click.UsageError("Name the jobs to end, or a client by --client, and not both.")
    run = session()
    if client is not None:
        with run.control() as control:
            _cancel_client(control, client, yes=yes)
    elif anyones:
        with run.control() as control:
            _cancel_jobs(jobs, control.cancel)
    else:
        with run.client() as connection:
            _cancel_jobs(jobs, connection.cancel)


def _cancel_jobs(jobs: Sequence[str], end: Callable[[str], str]) -> None:
    """One after the other; one that can't be ended keeps none of the others."""
    from glmtts.client import RequestFailed

    run = session()
    states: list[dict[str, str]] = []
    failures: list[RequestFailed] = []
    for job in jobs:
        try:
            states.append({"job": job, "state": end(job)})
        except RequestFailed as error:
            if len(jobs) == 1:
                raise
            failures.append(error)
            states.append({"job": job, "error": str(error.code), "message": error.message})
    if run.json:
        print_json(states[0] if len(states) == 1 else {"jobs": states})
    for state in states if not run.json else []:
        if "state" in state:
            click.echo(f"{clean(state['job'])}: {state['state']}")
    for failure in failures if not run.json else []:
        report(failure, as_json=False)
    if failures:
        raise Finished(exit_code(failures[0]))


def _cancel_client(control: Control, client: str, *, yes: bool) -> None:
    run = session()
    if not yes and (count := _count(control, client)) > 1:
        if run.json or not sys.stdin.isatty():
            raise Failure(
                f"{count:,} jobs of {client} would be cancelled, and there is nobody to ask; give --yes to do it",
                code="usage",
                status=USAGE,
                jobs=count,
            )
        click.confirm(f"Cancel {count:,} jobs of {clean(client)}?", abort=True, err=True)
    answer: dict[str, Any] = plain(control.call("cancel", client=client))
    if run.json:
        print_json(answer)
        return
    cancelled = answer.get("cancelled", 0)
    if not cancelled:
        click.echo(f"{clean(client)} has no job that waits or runs: `glmttsctl queue` shows who has.")
    else:
        click.echo(f"{cancelled:,} {'job' if cancelled == 1 else 'jobs'} of {clean(client)} cancelled.")


def _count(control: Control, client: str) -> int:
    """How many jobs of the client wait or run now."""
    clients = plain(control.call("queue", limit=0)).get("clients") or []
    mine = [row for row in clients if isinstance(row, dict) and is_of(row, client)]
    return sum((row.get("waiting") or 0) + (row.get("running") or 0) for row in mine)
