"""`glmttsctl top`: the daemon on one screen, live; or once, as text."""

from __future__ import annotations

import sys
import time

import click
from rich.text import Text

from ..session import Seconds, session, shared_options
from ..ui.screen import show_live
from ..ui.table import print_lines
from ..ui.wrap import terminal_width
from .feed import Feed, Snapshot
from .frame import frame

#: The longest wait for the effect of a key or of a new size of the window, in seconds.
_TICK_S = 0.1


@click.command()
@click.option(
    "--interval",
    type=Seconds(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Refresh rate.",
)
@click.option("--once", is_flag=True, help="Print one picture and end.")
@shared_options
def top(interval: float, once: bool) -> None:
    """The daemon live on a full screen; q ends it."""
    run = session()
    feed = Feed(run.endpoint, interval)
    try:
        if once or run.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
            shot = feed.look()
            answer = {"status": shot.status, "workers": shot.workers, **shot.gpus}
            run.show(answer, lambda _: print_lines(frame(shot, terminal_width() or 120, None)))
        else:
            feed.start()
            _live(feed)
    finally:
        feed.stop()


def _live(feed: Feed) -> None:
    shown: tuple[Snapshot, int, int, int] | None = None

    def draw(width: int, height: int) -> list[Text] | None:
        nonlocal shown
        snapshot = feed.latest()
        # The clock is redrawn also while the daemon is gone.
        wanted = (snapshot, width, height, int(time.time()) if snapshot.trouble else 0)
        if shown is not None and shown[0] is snapshot and shown[1:] == wanted[1:]:
            return None
        shown = wanted
        return frame(snapshot, width, height, "q quit")

    show_live(draw, _TICK_S)
