"""`glmttsctl recycle`, `scale`, `pause` and the like: an operator's requests to the running daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from glmtts.protocol.control import MAX_WORKERS, LogLevel

from .failures import FAILED, TIMED_OUT, Finished
from .session import MOST_SECONDS, session, shared_options, timeout_option
from .ui.humanize import humanise


def _operate(op: str, in_words: Callable[[dict[str, Any]], str], *, timeout: float = 10.0, **keys: Any) -> None:
    """An operation whose answer is a sentence."""
    run = session()
    run.show(run.ask(op, timeout=timeout, **keys), in_words)


@click.command()
@shared_options
def metrics() -> None:
    """The metrics, in the format of Prometheus."""
    run = session()
    run.show(run.ask("metrics"), lambda answer: click.echo(answer.get("text", ""), nl=False))


@click.command()
@click.argument("worker")
@shared_options
def recycle(worker: str) -> None:
    """Replace WORKER, or `all`, after its current job."""
    _operate("recycle", lambda a: f"To be replaced: {humanise('', a.get('recycled'))}", worker=worker)


@click.command()
@click.option("--min", "fewest", type=click.IntRange(0, MAX_WORKERS), metavar="N", help="At least N workers.")
@click.option("--max", "most", type=click.IntRange(1, MAX_WORKERS), metavar="N", help="At most N workers.")
@shared_options
def scale(fewest: int | None, most: int | None) -> None:
    """Show or change the number of workers.

    New bounds hold until the daemon ends or reads a configuration with other bounds.
    """
    if fewest is not None and most is not None and fewest > most:
        raise click.UsageError(f"--min {fewest} is more than --max {most}.")
    _operate("scale", _bounds_in_words, min=fewest, max=most)


def _bounds_in_words(answer: dict[str, Any]) -> str:
    low, high, there = answer.get("min"), answer.get("max"), answer.get("workers")
    now = f"there {'is' if there == 1 else 'are'} {there} now"
    if low == high:
        return f"Always {low} worker{'' if low == 1 else 's'}; {now}."
    return f"Between {low} and {high} workers, depending on the load; {now}."


@click.command()
@shared_options
def pause() -> None:
    """Accept jobs, but start none until `resume`, also after a restart of the daemon."""
    _operate("pause", lambda _: "Paused: accepted jobs wait until `glmttsctl resume`.")


@click.command()
@shared_options
def resume() -> None:
    """Start jobs again, after `pause` or `drain`."""
    _operate("resume", lambda _: "Resumed: jobs start again.")


@click.command()
@timeout_option("Wait at most this long for the jobs to end.")
@shared_options
def drain(timeout: float | None) -> None:
    """Accept no more jobs, and finish the accepted ones.

    Returns when they are done; `resume` accepts jobs again.
    """
    run = session()
    with run.control(timeout=None) as control:
        # The daemon takes no longer time; without one it waits as long as it takes.
        answer = control.drain(None if timeout is None or timeout > MOST_SECONDS else timeout)
    drained = answer.get("drained", True)
    left = answer.get("left", 0)
    words = "Drained: no job is left." if drained else f"Not drained in time: {left} jobs are left."
    if resumed := bool(answer.get("resumed")):
        words = f"The drain was ended by `glmttsctl resume`: jobs are accepted again, and {left} are left."
    run.show(answer, lambda _: words)
    if resumed or not drained:
        raise Finished(FAILED if resumed else TIMED_OUT)


@click.command()
@shared_options
def reload() -> None:
    """Read the configuration again.

    Changes that need a restart of the daemon are named, and have to wait for it.
    """
    _operate("reload", _changes_in_words, timeout=30.0)


def _changes_in_words(answer: dict[str, Any]) -> str:
    applied, rolling, restart, workers = (
        humanise("", answer[key]) if answer.get(key) else ""
        for key in ("applied", "rolling", "restart_needed", "workers")
    )
    lines = [f"Applied: {applied}"] if applied else []
    lines += [f"Applied as workers are replaced, one after the other: {rolling} ({workers})"] if rolling else []
    lines += [f"Waiting for a restart of the daemon: {restart}"] if restart else []
    return "\n".join(lines) or "Nothing has changed."


@click.command()
@click.option("--now", is_flag=True, help="Don't finish the running jobs.")
@shared_options
def stop(now: bool) -> None:
    """Finish the running jobs and end the daemon."""
    from glmtts.client import ConnectionLost, DaemonNotRunning, Timeout

    run = session()
    with run.control(timeout=5.0) as control:
        try:
            answer = control.call("stop")
        except Timeout:
            raise Timeout(
                "The daemon does not answer: it hangs, or it is stopped by a signal (SIGSTOP). To end it: "
                f"kill -9 {_pid(control.endpoint)}. Durable jobs continue when it is started again."
            ) from None
        if now:
            # The second request ends the daemon at once, perhaps before its answer is sent.
            with contextlib.suppress(ConnectionLost, DaemonNotRunning, Timeout):
                control.call("stop", timeout=2.0)
    words = "The daemon is ending." if now else "The daemon ends after its running jobs; `stop --now` doesn't wait."
    run.show(answer, lambda _: words)


def _pid(endpoint: str) -> str:
    """The daemon's pid from its runtime folder; a hint where it can't be read."""
    try:
        return str(int(Path(endpoint.removeprefix("ipc://")).with_name("lock").read_text()))
    except (OSError, ValueError):
        return "and its pid (ps -C glmttsd)"


@click.command("log-level")
@click.argument("level", type=click.Choice(get_args(LogLevel)))
@shared_options
def log_level(level: str) -> None:
    """Log lines of LEVEL and above, until the next reload."""
    _operate("log_level", lambda _: f"The daemon logs lines of level {level} and above.", level=level)
