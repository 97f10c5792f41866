"""`glmttsctl events`: what happens in the daemon, one line for each event."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .failures import TIMED_OUT, Failure, Finished
from .session import Session, session, shared_options, timeout_option
from .ui.humanize import SIZES, humanise
from .ui.wrap import clean, hanging, terminal_width

if TYPE_CHECKING:
    from glmtts.client import News, Watch

#: The longest wait between two checks that the daemon is there.
_LISTEN_S = 0.5

_STYLES = {"failed": "red", "raised": "red", "backoff": "yellow", "draining": "yellow", "cleared": "green"}


@click.command()
@click.argument("topics", metavar="[TOPIC]...", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Continue after a restart of the daemon, until Ctrl-C.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@timeout_option("End after this many seconds; with 124 if --count was not reached.")
@shared_options
def events(topics: tuple[str, ...], follow: bool, count: int | None, timeout: float | None) -> None:
    """The daemon's events, as they happen.

    TOPIC is a prefix, such as `worker.` or `job.failed`; without one all events are printed. Topics: job.<state>,
    worker.<state>, worker.memory, queue, alert.<name>, daemon.<state>. With --json each line is an object.
    """
    from glmtts.client import Watch

    run = session()
    try:
        with Watch(topics, run.endpoint, reconnect_s=None if follow else 0.0) as watch:
            _print_all(watch, run, count, timeout)
    except KeyboardInterrupt:
        raise Finished(130) from None
    except BrokenPipeError:
        # The reader has closed the pipe. Python must not fail again on what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_all(watch: Watch, run: Session, count: int | None, timeout: float | None) -> None:
    ends = math.inf if timeout is None else time.monotonic() + timeout
    shown, connections, there = 0, 0, True
    while count is None or shown < count:
        left = ends - time.monotonic()
        if left <= 0:
            if count is None:
                return
            raise Failure(f"{shown} of {count} events within {timeout:g} s.", code="timeout", status=TIMED_OUT)
        news = watch.next(min(left, _LISTEN_S))
        if watch.connections > max(connections, 1):
            run.note("The daemon is back; events in between are missing.")
        elif there and not watch.connected and watch.connections:
            run.note("The daemon is gone; waiting for it.")
        connections, there = watch.connections, watch.connected
        if news is not None:
            click.echo(_json_line(news) if run.json else _line(news))
            shown += 1


def _json_line(news: News) -> str:
    line = {"time": round(time.time(), 3), "topic": news.topic, "values": news.values}
    return json.dumps(line, ensure_ascii=False, default=str)


def _line(news: News) -> str:
    now = time.time()
    head = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1_000):03}  "
    topic = clean(news.topic)
    pairs = " ".join(_pair(key, value) for key, value in news.values.items() if value not in (None, "", []))
    text = "\n".join(hanging(head, f"{topic:<16}  {pairs}", terminal_width()))
    style = _STYLES.get(str(news.values.get("state", ""))) or _STYLES.get(news.topic.partition(".")[2])
    return head + click.style(topic, fg=style) + text[len(head) + len(topic) :] if style else text


def _pair(key: str, value: Any) -> str:
    """``key=value``, quoted if there is a blank in it."""
    words = _in_words(key, value)
    return f"{clean(key)}={json.dumps(words, ensure_ascii=False) if ' ' in words else words}"


def _in_words(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(k))} {_in_words(str(k), v)}" for k, v in value.items() if v not in (None, ""))
    if isinstance(value, float) and not key.endswith("_s") and key not in SIZES:
        return f"{value:g}"
    return humanise(key, value)
