"""`glmttsctl recycle`, `scale`, `pause` and the like: what an operator asks of a running daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from glmtts.protocol.control import MAX_WORKERS, LogLevel

from .failures import FAILED, TIMED_OUT, Failure, Finished
from .session import session, shared_options, timeout_option
from .ui.output import humanise, plain, print_json


@click.command()
@shared_options
def metrics() -> None:
    """The metrics, as Prometheus reads them."""
    run = session()
    with run.control() as control:
        answer = plain(control.call("metrics"))
    if run.json:
        print_json(answer)
    else:
        click.echo(str(answer.get("text", "")), nl=False)


@click.command()
@click.argument("worker")
@shared_options
def recycle(worker: str) -> None:
    """Replace the process of WORKER, or of `all`, after the job that it is at."""
    _operate("recycle", lambda a: f"To be replaced: {humanise('', a.get('recycled') or [])}", worker=worker)


@click.command()
@click.option("--min", "fewest", type=click.IntRange(0, MAX_WORKERS), metavar="N", help="No fewer workers than that.")
@click.option("--max", "most", type=click.IntRange(1, MAX_WORKERS), metavar="N", help="No more workers than that.")
@shared_options
def scale(fewest: int | None, most: int | None) -> None:
    """How many workers there may be; with an option, change it.

    It holds until the daemon ends, or reads a configuration with other bounds.
    """
    if fewest is not None and most is not None and fewest > most:
        raise click.UsageError(f"--min {fewest} is more than --max {most}.")
    _operate("scale", _bounds_in_words, min=fewest, max=most)


def _bounds_in_words(answer: dict[str, Any]) -> str:
    low, high, there = (humanise("", answer.get(key)) for key in ("min", "max", "workers"))
    if low == high:
        return f"{low} worker{'' if low == '1' else 's'}, no more and no fewer; there {_are(there)} now."
    return f"Between {low} and {high} workers, as the load asks for; there {_are(there)} now."


def _are(number: str) -> str:
    return f"is {number}" if number == "1" else f"are {number}"


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
    applied, rolling, restart = (answer.get(key) or [] for key in ("applied", "rolling", "restart_needed"))
    if not applied and not rolling and not restart:
        click.echo("Nothing has changed.")
    if applied:
        click.echo(f"Applied: {humanise('', applied)}")
    if rolling:
        workers = answer.get("workers") or []
        click.echo(f"Applied by fresh workers, one after the other: {humanise('', rolling)} ({humanise('', workers)})")
    if restart:
        click.echo(f"Held back until the daemon is restarted: {humanise('', restart)}")


@click.command()
@click.option("--now", is_flag=True, help="Without finishing the jobs that run.")
@shared_options
def stop(now: bool) -> None:
    """Finish the jobs that run and end the daemon."""
    from glmtts.client import Timeout

    run = session()
    with run.control(timeout=5.0) as control:
        try:
            answer = plain(control.call("stop"))
        except Timeout:
            raise Timeout(
                "The daemon does not answer: it hangs, or somebody has stopped it (SIGSTOP). This ends it, with its "
                f"workers: kill -9 {_pid(control.endpoint)}. Durable jobs go on when it is started again."
            ) from None
        if now:
            _stop_again(control)
    if run.json:
        print_json(answer)
    else:
        click.echo("The daemon ends." if now else "The daemon finishes its jobs and ends; `stop --now` doesn't wait.")


def _pid(endpoint: str) -> str:
    """The daemon's pid, as its runtime folder has it; words where that can't be read."""
    try:
        return str(int(Path(endpoint.removeprefix("ipc://")).with_name("lock").read_text()))
    except (OSError, ValueError):
        return "and its pid (ps -C glmttsd)"


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
