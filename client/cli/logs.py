"""`glmttsctl logs`: the daemon's last lines, kept by the daemon itself, and those that come."""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import click

from glmtts.protocol.control import LogLevel

from .session import Session, session, shared_options
from .ui.output import clean, plain

#: How often a follower asks. Lines are kept in between: none is missed by that.
_EVERY_S = 0.3
_MOST = 500
_STYLES = {"error": "red", "warning": "yellow", "debug": "bright_black"}


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines that come, until Ctrl-C.")
@click.option("-n", "--lines", "count", type=click.IntRange(0, _MOST), default=50, show_default=True, help="How many.")
@click.option("--worker", metavar="W", help="Only what is about this worker, such as w0.")
@click.option("--job", metavar="J", help="Only what is about this job.")
@click.option("--level", type=click.Choice(get_args(LogLevel)), help="Only lines of this level and graver ones.")
@shared_options
def logs(follow: bool, count: int, worker: str | None, job: str | None, level: str | None) -> None:
    """What the daemon has logged lately: it keeps its last 2,000 lines, with and without systemd.

    Older ones are where its stderr goes: under systemd, `journalctl -u glmtts` has them. What was spoken is in no line
    above debug level (`glmttsctl log-level debug`).
    """
    run = session()
    options = {"worker": worker, "job": job, "level": level}
    asked = {key: value for key, value in options.items() if value is not None}
    answer = _ask(run, limit=count, **asked)
    lines = answer.get("lines") or []
    for line in lines:
        _print(run, line)
    if asked and count and not lines:
        run.note(_nothing_in_words(run, asked))
    if not follow:
        if len(lines) < count and lines and not asked and answer.get("journal"):
            run.note(f"Older lines are in the journal: journalctl _PID={answer.get('pid')}")
        return
    try:
        _follow(run, answer, asked)
    except KeyboardInterrupt:
        return


def _ask(run: Session, **keys: Any) -> dict[str, Any]:
    with run.control() as control:
        answer: dict[str, Any] = plain(control.call("logs", **keys))
        return answer


def _nothing_in_words(run: Session, asked: dict[str, str]) -> str:
    """Why nothing is printed: a name that is wrong looks like one of which there is nothing to be said."""
    about = " and ".join(f"{kind} {clean(asked[kind])}" for kind in ("worker", "job") if kind in asked)
    graver = f" of level {asked['level']} or graver" if "level" in asked else ""
    words = f"The daemon keeps no line{graver}{f' about {about}' if about else ''}."
    if "worker" not in asked:
        return words
    with run.control() as control:
        names = [clean(str(worker.get("name"))) for worker in plain(control.workers()).get("workers") or []]
    return f"{words} There are these workers: {', '.join(names)}." if names else f"{words} There is no worker now."


def _follow(run: Session, answer: dict[str, Any], asked: dict[str, str]) -> None:
    from glmtts.client import ConnectionLost, DaemonNotRunning, Timeout

    gone = False
    pid, newest = answer.get("pid"), int(answer.get("newest") or 0)
    while True:
        time.sleep(_EVERY_S)
        try:
            answer = _ask(run, limit=_MOST, after=newest, **asked)
            if answer.get("pid") != pid:
                # Another daemon has begun to count anew.
                answer = _ask(run, limit=_MOST, after=0, **asked)
        except (ConnectionLost, DaemonNotRunning, Timeout):
            if not gone:
                run.note("The daemon went away; waiting for it.")
            gone = True
            continue
        gone = False
        pid, newest = answer.get("pid"), int(answer.get("newest") or 0)
        if lost := answer.get("lost"):
            run.note(f"{lost} lines came faster than they could be fetched, and are not shown.")
        for line in answer.get("lines") or []:
            _print(run, line)


def _print(run: Session, line: dict[str, Any]) -> None:
    if run.json:
        shown = {key: line.get(key) for key in ("time", "level", "message")}
        click.echo(json.dumps(shown | dict(line.get("fields") or {}), ensure_ascii=False))
        return
    at, level = float(line.get("time") or 0.0), str(line.get("level") or "")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1_000):03}"
    pairs = [f"{clean(str(key))}={_value(value)}" for key, value in (line.get("fields") or {}).items()]
    words = " ".join([stamp, level.upper(), clean(str(line.get("message") or "")), *pairs])
    click.secho(words, fg=_STYLES.get(level))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = clean(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text
