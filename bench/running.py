"""What every measurement does around itself: it ends in time, ends what it started, and writes what it found."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import report

Plot = Callable[[report.Results, Path], None]


def end_in_time(seconds: int) -> None:
    """Give up after so long, or when told to, in a way that every ExitStack hears of."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _give_up)
    signal.alarm(seconds)


def _give_up(number: int, _frame: FrameType | None) -> None:
    what = "the time limit was reached" if number == signal.SIGALRM else f"ended by {signal.Signals(number).name}"
    sys.exit(f"{Path(sys.argv[0]).name}: {what}; what was started has been ended")


def save(results: report.Results, name: str, folder: Path, plot: Plot | None = None) -> str:
    """Write the JSON and the plot; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    file = stem.with_suffix(".json")
    file.write_text(json.dumps(results) + "\n", encoding="utf-8")
    if plot is None:
        return f"{file}"
    try:
        plot(results, stem.with_suffix(".png"))
    except ImportError:
        return f"{file}; no plot: matplotlib is not installed (pip install 'glmtts-supervisor[bench]')"
    return f"{file}, {stem}.png"
