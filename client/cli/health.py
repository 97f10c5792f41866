"""`glmttsctl health`: an exit code for a monitor, and the reason for the person who is called."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from .failures import NOT_READY, Failure, Finished
from .session import Seconds, Session, session, shared_options
from .ui.humanize import Piece, duration, humanise
from .ui.wrap import clean, hanging, terminal_width

#: The time for the answer, in seconds; a daemon that takes longer is not alive.
_TIMEOUT_S = {"live": 5.0, "ready": 5.0, "deep": 30.0}
#: The time for the transport, beyond the daemon's own.
_MARGIN_S = 2.0
_STYLES = {"down": "red", "bad": "red", "slow": "yellow", "note": ""}


@click.command()
@click.option("--live", "depth", flag_value="live", help="Does the daemon answer? If not, restart it.")
@click.option(
    "--ready", "depth", flag_value="ready", default=True, help="Would a job that comes now be spoken?  [default]"
)
@click.option("--deep", "depth", flag_value="deep", help="Can every worker speak? Each speaks a word between two jobs.")
@click.option(
    "--timeout",
    type=Seconds(min=0, min_open=True, max=600),
    metavar="SECONDS",
    help="Not healthy without an answer by then.  [5; --deep 30]",
)
@shared_options
def health(depth: str, timeout: float | None) -> None:
    """Does the daemon serve requests?

    Exits with 0 if so, else with 3. A daemon whose idle workers were unloaded is ready: the next job starts one. A
    daemon whose journal fails is ready too, because it still speaks; its problems are printed all the same.
    """
    run = session()
    answer = _ask(run, depth, timeout or _TIMEOUT_S[depth])
    run.show(answer, _print)
    if not answer["healthy"]:
        raise Finished(NOT_READY)


def _ask(run: Session, depth: str, timeout_s: float) -> dict[str, Any]:
    from glmtts.client import Forbidden, GlmttsError, HandshakeFailed, UntrustedDaemon
    from glmtts.client.connection import check_listening
    from glmtts.protocol.endpoints import requests_endpoint

    endpoint = run.endpoint or requests_endpoint()
    if depth != "live" and not endpoint.startswith("ipc://"):
        raise Failure(
            f"--{depth} asks the control socket, which is reached on the daemon's own machine only (ipc://), not by "
            f"{endpoint}. `glmttsctl health --live` works from here."
        )
    began = time.monotonic()
    try:
        if depth == "live":
            with run.client(timeout_s) as client:
                answer: dict[str, Any] = {"healthy": True, "live": True, "uptime_s": client.ping().uptime_s}
        else:
            deep = {"deep": True, "timeout_s": timeout_s} if depth == "deep" else {}
            found = run.ask("health", timeout=timeout_s + (_MARGIN_S if deep else 0), **deep)
            check_listening(endpoint)  # the clients' socket may be gone while the control socket is there
            answer = {"healthy": bool(found.get("healthy")), "live": True} | found
    except GlmttsError as error:
        if isinstance(error, (Forbidden, HandshakeFailed, UntrustedDaemon)) or type(error) is GlmttsError:
            raise  # this client can't ask: the daemon may be well
        answer = {"healthy": False, "live": False, "problem": str(error)}
    return answer | {"checked": depth, "took_s": round(time.monotonic() - began, 3)}


def _print(answer: Mapping[str, Any]) -> None:
    words = {"live": "alive", "ready": "ready", "deep": "every worker speaks"}[answer["checked"]]
    healthy = answer["healthy"]
    click.secho(f"{words}: {'yes' if healthy else 'no'}", fg="green" if healthy else "red")
    if problem := answer.get("problem"):
        click.echo(clean(str(problem)))
    for worker in answer.get("workers") or []:
        took = f" within {duration(worker['took_s'])}" if worker.get("took_s") is not None else ""
        why = f": {humanise('', worker['problem'])}" if worker.get("problem") else ""
        click.echo(f"  {clean(str(worker.get('name')))} {clean(str(worker.get('verdict')))}{took}{why}")
    if answer.get("asleep"):
        click.echo("No worker is loaded because all were idle; the next job starts one.")
    for problem in problem_lines(answer.get("problems"), terminal_width()):
        print_lines(problem)


def problem_lines(problems: Sequence[Mapping[str, Any]] | None, width: int | None) -> list[list[Piece]]:
    """The lines of each problem: what is wrong, in the colour of its severity, and what to do."""
    found = []
    for problem in problems or []:
        style = _STYLES.get(str(problem.get("severity")), "")
        what = hanging("! ", clean(str(problem.get("what"))), width)
        do = hanging("  -> ", clean(str(problem.get("do"))), width)
        found.append([*((line, style) for line in what), *((line, "") for line in do)])
    return found


def print_lines(lines: Iterable[Piece]) -> None:
    """Print whole lines, each in its colour."""
    for text, style in lines:
        click.secho(text, fg=style or None)
