"""`glmttsctl health`: an exit code for whoever watches the daemon, and why, for the person who is called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import click

from .failures import NOT_READY, Failure, Finished
from .session import Session, session, shared_options
from .ui.humanize import Piece
from .ui.output import clean, duration, humanise, plain, print_json
from .ui.wrap import hung, terminal_width

#: How long the daemon may take to answer; a loop that is stuck for longer is not alive.
_TIMEOUT_S = {"live": 5.0, "ready": 5.0, "deep": 30.0}
#: What the answer may take on its way, beyond the time that the daemon has to find out.
_MARGIN_S = 2.0
_STYLES = {"down": "red", "bad": "red", "slow": "yellow", "note": ""}


@click.command()
@click.option("--live", "depth", flag_value="live", help="Does the daemon answer? If not, restart it.")
@click.option(
    "--ready", "depth", flag_value="ready", default=True, help="Would a job that came now be spoken?  [default]"
)
@click.option(
    "--deep", "depth", flag_value="deep", help="Can every worker speak a word? It is made to, between two jobs."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=600),
    metavar="SECONDS",
    help="Not well, if there is no answer by then.  [5; --deep 30]",
)
@shared_options
def health(depth: str, timeout: float | None) -> None:
    """Whether the daemon does what it is there for: exits with 0 if so, else with 3.

    A daemon whose last worker was unloaded because nobody needed it is ready: the next job starts one. One whose
    journal fails is ready too, since speech goes on; what is wrong is printed all the same.
    """
    run = session()
    answer = _ask(run, depth, timeout or _TIMEOUT_S[depth])
    if run.json:
        print_json(answer)
    else:
        _print(depth, answer)
    if not answer["healthy"]:
        raise Finished(NOT_READY)


def _ask(run: Session, depth: str, timeout_s: float) -> dict[str, Any]:
    from glmtts.client import Forbidden, GlmttsError, HandshakeFailed
    from glmtts.protocol.endpoints import requests_endpoint

    endpoint = run.endpoint or requests_endpoint()
    if depth != "live" and not endpoint.startswith("ipc://"):
        raise Failure(
            f"{endpoint}: whether the daemon is {'ready' if depth == 'ready' else 'able to speak'} is not known here; "
            "operators' questions are answered on its own machine alone (ipc://). "
            "glmttsctl health --live asks from here too whether it answers."
        )
    began = time.monotonic()
    questions: dict[str, Callable[[Session, float], Callable[[], dict[str, Any]]]] = {
        "live": _live,
        "ready": _ready,
        "deep": _deep,
    }
    question = questions[depth](run, timeout_s)
    try:
        return question() | {"checked": depth, "took_s": round(time.monotonic() - began, 3)}
    except GlmttsError as error:
        if isinstance(error, (Forbidden, HandshakeFailed)) or type(error) is GlmttsError:
            raise  # this client is turned away, or can't ask: that says nothing of how the daemon is
        # Whatever keeps it from answering, that is the answer.
        took_s = round(time.monotonic() - began, 3)
        return {"healthy": False, "live": False, "problem": str(error), "checked": depth, "took_s": took_s}


def _live(run: Session, timeout_s: float) -> Callable[[], dict[str, Any]]:
    def ask() -> dict[str, Any]:
        with run.client(timeout_s) as client:
            return {"healthy": True, "live": True, "uptime_s": client.ping().uptime_s}

    return ask


def _ready(run: Session, patience_s: float, **keys: Any) -> Callable[[], dict[str, Any]]:
    def ask() -> dict[str, Any]:
        from glmtts.client.connection import check_listening
        from glmtts.protocol.endpoints import requests_endpoint

        with run.control(patience_s) as control:
            answer: dict[str, Any] = plain(control.call("health", **keys))
            # Operators have a socket of their own: that of the clients may be gone.
            check_listening(run.endpoint or requests_endpoint())
            return {"healthy": bool(answer.get("healthy")), "live": True} | answer

    return ask


def _deep(run: Session, timeout_s: float) -> Callable[[], dict[str, Any]]:
    return _ready(run, timeout_s + _MARGIN_S, deep=True, timeout_s=timeout_s)


def _print(depth: str, answer: dict[str, Any]) -> None:
    well = "yes" if answer["healthy"] else "no"
    words = {"live": "alive", "ready": "ready", "deep": "every worker speaks"}[depth]
    click.secho(f"{words}: {well}", fg="green" if answer["healthy"] else "red")
    if problem := answer.get("problem"):
        click.echo(clean(str(problem)))
    for worker in answer.get("workers") or []:
        took = f" within {duration(worker['took_s'])}" if worker.get("took_s") is not None else ""
        why = f": {humanise('', worker['problem'])}" if worker.get("problem") else ""
        click.echo(f"  {clean(str(worker.get('name')))} {clean(str(worker.get('verdict')))}{took}{why}")
    if answer.get("asleep"):
        click.echo("No worker is loaded, since nobody needed one for long; the next job starts one.")
    print_problems(answer.get("problems"))


def print_problems(problems: Any) -> None:
    """What is wrong and what to do, the gravest first."""
    for problem in problems_in_lines(problems, terminal_width()):
        print_lines(problem)


def problems_in_lines(problems: Any, width: int | None) -> list[list[Piece]]:
    """The lines of each, with their colours, as ``status`` and ``health`` show them."""
    found = []
    for problem in problems or []:
        if isinstance(problem, dict):
            style = _STYLES.get(str(problem.get("severity")), "")
            what = hung("! ", clean(str(problem.get("what"))), width)
            do = hung("  -> ", clean(str(problem.get("do"))), width)
            found.append([*((line, style) for line in what), *((line, "") for line in do)])
    return found


def print_lines(lines: Iterable[Piece]) -> None:
    """Whole lines, each in its colour."""
    for text, style in lines:
        click.secho(text, fg=style or None)
