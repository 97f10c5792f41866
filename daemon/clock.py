"""The daemon's clocks, one for each question.

How long has it been: :func:`boot_time`, which no one can set and which goes on while the machine is suspended. How long
has the daemon been running: :class:`RunningClock`, by which workers are judged. Which date is it: ``time.time``, which
anyone may set; a date is shown, and never subtracted from a time of another clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

#: A loop that turns this much later than it meant to, in seconds, has stood still.
LATE_S = 0.2
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_time() -> float:
    """Seconds since the machine was started, those of its suspensions included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The name of this start of the machine, within which :func:`boot_time` can be compared; ``""``: unknown."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return ""


class RunningClock:
    """Seconds in which the loop was running: a standstill (suspend, SIGSTOP, ``docker pause``) counts as no time.

    A worker is given time to say something, and the daemon must be there to hear it. For the loop's thread: another
    may see it jump ahead before the loop has noticed a standstill.
    """

    def __init__(self, read: Callable[[], float] = boot_time) -> None:
        self._read = read
        self._stood_still_s = 0.0
        self._unreported_s = 0.0
        self._last = read()
        self._may_take_s = LATE_S

    def now(self) -> float:
        """The time on this clock."""
        return self._read() - self._stood_still_s

    def start(self) -> None:
        """The loop begins: the time before was not its own."""
        self._last = self._read()
        self._may_take_s = LATE_S

    def wait(self, seconds: float) -> None:
        """The loop is going to wait for at most ``seconds``."""
        self._may_take_s = seconds + LATE_S

    def turn(self) -> float:
        """The loop is running; returns the time. All time since the last turn counts as none if it was too long."""
        now = self._read()
        gap_s = now - self._last
        if gap_s > self._may_take_s:
            # The wait as well: how much of it was over at the standstill is unknown.
            self._stood_still_s += gap_s
            self._unreported_s += gap_s
        self._last = now
        self._may_take_s = LATE_S
        return now - self._stood_still_s

    def take_standstill(self) -> float:
        """Seconds for which the loop has stood still since the last call."""
        seconds, self._unreported_s = self._unreported_s, 0.0
        return seconds
