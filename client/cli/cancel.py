"""`glmttsctl cancel`: some jobs, or after a question all jobs of a client."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from .failures import USAGE, Failure, Finished, exit_code
from .queue import is_of
from .session import Session, report, session, shared_options
from .ui.output import print_json
from .ui.wrap import clean


@click.command()
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@click.option("--any", "anyones", is_flag=True, help="Also jobs of other users, for operators.")
@click.option(
    "--client", metavar="CLIENT", help="All jobs of a user, or of a client such as `uid:1000`; for operators."
)
@click.option("-y", "--yes", is_flag=True, help="With --client: don't ask.")
@shared_options
def cancel(jobs: tuple[str, ...], anyones: bool, client: str | None, yes: bool) -> None:
    """Cancel each JOB, or all jobs of a client."""
    if bool(jobs) == (client is not None):
        raise click.UsageError("Name the jobs to cancel, or a client by --client, but not both.")
    run = session()
    if client is not None:
        _cancel_client(run, client, yes=yes)
        return
    with run.control() if anyones else run.client() as connection:
        _cancel_jobs(run, jobs, connection.cancel)


def _cancel_jobs(run: Session, jobs: Sequence[str], end: Callable[[str], str]) -> None:
    """One after the other; the others are cancelled even if one can't be."""
    from glmtts.client import RequestFailed

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
    else:
        for state in states:
            if "state" in state:
                click.echo(f"{clean(state['job'])}: {state['state']}")
        for failure in failures:
            report(failure, as_json=False)
    if failures:
        raise Finished(exit_code(failures[0]))


def _cancel_client(run: Session, client: str, *, yes: bool) -> None:
    if not yes:
        mine = [row for row in run.ask("queue", limit=0).get("clients") or [] if is_of(row, client)]
        count = sum(row["waiting"] + row["running"] for row in mine)
        if count > 1 and (run.json or not sys.stdin.isatty()):
            words = (
                f"{count:,} jobs of {client} would be cancelled, and there is no terminal to ask; --yes cancels them"
            )
            raise Failure(words, code="usage", status=USAGE, jobs=count)
        if count > 1:
            click.confirm(f"Cancel {count:,} jobs of {clean(client)}?", abort=True, err=True)
    answer = run.ask("cancel", client=client)
    cancelled = answer.get("cancelled", 0)
    words = f"{cancelled:,} {'job' if cancelled == 1 else 'jobs'} of {clean(client)} cancelled."
    none = f"{clean(client)} has no waiting or running job; `glmttsctl queue` lists the clients with jobs."
    run.show(answer, lambda _: words if cancelled else none)
