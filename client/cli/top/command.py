"""`glmttsctl top`: the daemon on one screen, live; without a terminal, or once, a picture of it as text."""

from __future__ import annotations

import shutil
import sys
import time

import click

from ..session import session, shared_options
from ..ui.output import print_json
from ..ui.screen import QUIT, Ended, ended_by_signals, keys_at_once, pressed
from .feed import Feed, Snapshot

#: How long a key, or a new size of the window, may wait for its effect, in seconds.
_TICK_S = 0.1

_KEYS = "q quit"


@click.command()
@click.option("--interval", type=click.FloatRange(0.2, 60), default=1.0, metavar="SECONDS", help="Ask so often; 1.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@shared_options
def top(interval: float, once: bool) -> None:
    """Workers, GPUs, queue and what happened of late, live on a full screen. q ends it."""
    run = session()
    feed = Feed(run.endpoint, interval)
    if once or run.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        try:
            snapshot = feed.look()
        finally:
            feed.stop()
        if run.json:
            print_json({"status": snapshot.status, "workers": snapshot.workers, **snapshot.gpus})
        else:
            _print_once(snapshot)
        return
    feed.start()
    try:
        _live(feed)
    finally:
        feed.stop()


def _print_once(snapshot: Snapshot) -> None:
    from .frame import frame

    # What goes into a pipe or a file is wide enough for everything.
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 120
    for line in frame(snapshot, width, None):
        click.echo(line.plain)


def _live(feed: Feed) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    from .frame import frame

    console = Console(highlight=False)
    shown: tuple[int, int, int, int] | None = None
    try:
        with keys_at_once(), ended_by_signals(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                snapshot = feed.latest()
                width, height = shutil.get_terminal_size()
                # The clock goes on while the daemon does not.
                wanted = (snapshot.number, width, height, int(time.time()) if snapshot.trouble else 0)
                if wanted != shown:
                    console.size = (width, height)
                    live.update(Group(*frame(snapshot, width, height, _KEYS)), refresh=True)
                    shown = wanted
                if pressed(_TICK_S) & QUIT:
                    return
    except (KeyboardInterrupt, Ended):
        return
