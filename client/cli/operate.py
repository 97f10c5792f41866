"""`glmttsctl status`, `workers`, `recycle`, `pause` and the like: what an operator asks of a running daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from glmtts.protocol.control import LogLevel

from .failures import FAILED, NOT_READY, TIMED_OUT, Failure, Finished
from .output import duration, humanise, plain, print_json, print_pairs, print_table
from .session import session, shared_options, timeout_option

_WORKER_COLUMNS = (
    "name",
    "state",
    "pid",
    "gpu",
    "job",
    "jobs",
    "jobs_done",
    "restarts",
    "age_s",
    "rss",
    "backoff_s",
    "last_death",
)


@click.command()
@shared_options
def status() -> None:
    """The daemon at a glance; exits with 3 while it can't start jobs."""
    run = session()
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("status"))
    if run.json:
        print_json(answer)
    else:
        alerts = answer.pop("alerts", None) or []
        print_pairs(answer)
        for alert in alerts:
            click.secho(f"! {humanise('', alert)}", fg="red")
        answer["alerts"] = alerts
    if answer.get("state") in ("draining", "drained", "stopping"):
        raise Finished(NOT_READY)


@click.command()
@shared_options
def workers() -> None:
    """Every worker: what it does, and how the last one died."""
    run = session()
    with run.control() as control:
        found = plain(control.call("workers").get("workers") or [])
    if run.json:
        print_json({"workers": found})
        return
    for worker in found:
        if worker.get("last_death"):
            worker["last_death"] = _death_in_words(worker["last_death"])
    print_table(found, _WORKER_COLUMNS, none="No workers: none is configured, or all are unloaded.")


def _death_in_words(death: Any) -> str:
    if not isinstance(death, dict):
        return str(death)
    words = str(death.get("cause", "?"))
    if death.get("detail"):
        words += f" ({death['detail']})"
    if isinstance(death.get("ago_s"), (int, float)):
        words += f", {duration(death['ago_s'])} ago"
    return words


@click.command()
@click.argument("worker")
@shared_options
def recycle(worker: str) -> None:
    """Replace the process of WORKER, or of `all`, after the job that it is at."""
    _operate("recycle", lambda a: f"To be replaced: {humanise('', a.get('recycled') or [])}", worker=worker)


@click.command()
@shared_options
def pause() -> None:
    """Accept jobs, but start none until `resume`."""
    _operate("pause", lambda _: "Paused: jobs are accepted and wait until `glmttsctl resume`.")


@click.command()
@shared_options
def resume() -> None:
    """Start jobs again, after `pause` or `drain`."""
    _operate("resume", lambda _: "Jobs are started again.")


@click.command()
@timeout_option("Wait no longer than this for the jobs to end.")
@shared_options
def drain(timeout: float | None) -> None:
    """Accept no more jobs and wait until those accepted are done; `resume` undoes it."""
    run = session()
    with run.control(timeout=None) as control:
        answer = plain(control.drain(timeout))
    if run.json:
        print_json(answer)
    drained, left = answer.get("drained", True), answer.get("left", 0)
    if not run.json:
        click.echo("Drained: no job is left." if drained else f"Not drained in time: {left} jobs are left.")
    if not drained:
        raise Finished(TIMED_OUT)


@click.command()
@shared_options
def reload() -> None:
    """Read the configuration again and apply what can be applied now."""
    run = session()
    with run.control(timeout=30.0) as control:
        answer = plain(control.call("reload"))
    if run.json:
        print_json(answer)
        return
    applied, restart = answer.get("applied") or [], answer.get("restart_needed") or []
    click.echo(
        f"Applied: {humanise('', applied)}" if applied else "Nothing to apply: no key has changed that could be."
    )
    if restart:
        click.echo(f"After a restart: {humanise('', restart)}")


@click.command()
@click.option("--now", is_flag=True, help="Without finishing the jobs that run.")
@shared_options
def stop(now: bool) -> None:
    """Finish the jobs that run and end the daemon."""
    run = session()
    with run.control() as control:
        answer = plain(control.call("stop"))
        if now:
            _stop_again(control)
    if run.json:
        print_json(answer)
    else:
        click.echo("The daemon ends." if now else "The daemon finishes its jobs and ends; `stop --now` doesn't wait.")


def _stop_again(control: Any) -> None:
    """The second request ends it at once, and its answer may not make it out any more."""
    from glmtts.client import ConnectionLost, DaemonNotRunning, Timeout

    try:
        control.call("stop", timeout=2.0)
    except (ConnectionLost, DaemonNotRunning, Timeout):
        pass


@click.command("log-level")
@click.argument("level", type=click.Choice(get_args(LogLevel)))
@shared_options
def log_level(level: str) -> None:
    """Log from LEVEL on, until the next reload."""
    _operate("log_level", lambda _: f"Logs from {level} on.", level=level)


def _operate(op: str, in_words: Callable[[dict[str, Any]], str], **keys: Any) -> None:
    """An operation whose answer is a sentence."""
    run = session()
    with run.control() as control:
        answer = plain(control.call(op, **keys))
    if not isinstance(answer, dict):
        raise Failure(f"The daemon's answer to {op} is no map.", status=FAILED)
    if run.json:
        print_json(answer)
    else:
        click.echo(in_words(answer))
