"""`glmttsctl logs`: the last lines of the daemon's log, which the daemon keeps, and new ones as they come."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any, get_args

import click

from glmtts.protocol.control import LogLevel

from .session import Session, session, shared_options
from .ui.wrap import clean, hanging, terminal_width

#: The pause between two questions of --follow. The daemon keeps the lines in between.
_EVERY_S = 0.3
_MOST = 500
_STYLES = {"error": "red", "warning": "yellow", "debug": "bright_black"}


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they come, until Ctrl-C.")
@click.option("-n", "--lines", "count", type=click.IntRange(0, _MOST), default=50, show_default=True, help="How many.")
@click.option("--worker", metavar="W", help="Only lines about this worker, such as w0.")
@click.option("--job", metavar="J", help="Only lines about this job.")
@click.option("--level", type=click.Choice(get_args(LogLevel)), help="Only lines of this level and above.")
@shared_options
def logs(follow: bool, count: int, worker: str | None, job: str | None, level: str | None) -> None:
    """The last lines of the daemon's log.

    The daemon keeps 2,000 of them, with and without systemd. Older lines are where its stderr goes: under systemd,
    `journalctl -u glmtts` has them. Spoken texts are logged only at level debug (`glmttsctl log-level debug`).
    """
    run = session()
    options = {"worker": worker, "job": job, "level": level}
    asked: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    answer = run.ask("logs", limit=count, **asked)
    lines = answer.get("lines") or []
    for line in lines:
        _print(run, line)
    if asked and count and not lines:
        run.note(_none_in_words(run, asked))
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(run, answer, asked)
    elif lines and len(lines) < count and not asked and answer.get("journal"):
        run.note(f"Older lines are in the journal: journalctl _PID={answer.get('pid')}")


def _none_in_words(run: Session, asked: dict[str, Any]) -> str:
    """Why nothing is printed; for a worker with the names that there are, since this one may be wrong."""
    about = " and ".join(f"{kind} {clean(asked[kind])}" for kind in ("worker", "job") if kind in asked)
    level = f" of level {asked['level']} or above" if "level" in asked else ""
    words = f"The daemon keeps no line{level}{f' about {about}' if about else ''}."
    if "worker" not in asked:
        return words
    names = [clean(str(worker.get("name"))) for worker in run.ask("workers").get("workers") or []]
    return f"{words} There are these workers: {', '.join(names)}." if names else f"{words} There is no worker now."


def _follow(run: Session, answer: dict[str, Any], asked: dict[str, Any]) -> None:
    from glmtts.client import ConnectionLost, DaemonNotRunning, Timeout

    gone = False
    while True:
        time.sleep(_EVERY_S)
        pid, newest = answer.get("pid"), answer.get("newest") or 0
        try:
            answer = run.ask("logs", limit=_MOST, after=newest, **asked)
            if answer.get("pid") != pid:
                # Another daemon numbers its lines from 1.
                answer = run.ask("logs", limit=_MOST, after=0, **asked)
        except (ConnectionLost, DaemonNotRunning, Timeout):
            if not gone:
                run.note("The daemon is gone; waiting for it.")
            gone = True
            continue
        gone = False
        if lost := answer.get("lost"):
            run.note(f"{lost} lines are missing: they came faster than they could be fetched.")
        for line in answer.get("lines") or []:
            _print(run, line)


def _print(run: Session, line: dict[str, Any]) -> None:
    fields = line.get("fields") or {}
    if run.json:
        shown = {key: line.get(key) for key in ("time", "level", "message")}
        click.echo(json.dumps(shown | fields, ensure_ascii=False))
        return
    at, level = float(line.get("time") or 0.0), str(line.get("level") or "")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1_000):03}"
    pairs = [f"{clean(str(key))}={_value(value)}" for key, value in fields.items()]
    words = " ".join([level.upper(), clean(str(line.get("message"))), *pairs])
    click.secho("\n".join(hanging(f"{stamp} ", words, terminal_width())), fg=_STYLES.get(level))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1_000 else f"{value:.1f}"
    text = clean(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text
