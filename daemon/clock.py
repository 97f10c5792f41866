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

#: A loop that turns so late, in seconds, had no processor for that time; from the second figure on, it stood still.
LATE_S, STANDSTILL_S = 0.2, 1.0
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
        self._lost_s = 0.0
        #: Seconds of standstills that were not taken yet.
        self.stood_still = 0.0
        self._last = read()
        self._waits_s = 0.0

    def now(self) -> float:
        """The time on this clock."""
        return self._read() - self._lost_s

    def start(self) -> None:
        """The loop begins: the time before was not its own."""
        self._last = self._read()
        self._waits_s = 0.0

    def wait(self, seconds: float) -> None:
        """The loop is going to wait for at most ``seconds``."""
        self._waits_s = seconds

    def turn(self) -> float:
        """The loop is running; returns the time. What it came too late since the last turn counts as no time."""
        now = self._read()
        gap_s = now - self._last
        late_s = gap_s - self._waits_s
        if late_s > LATE_S:
            # After a standstill the wait as well: how much of it was over before is unknown.
            lost_s = gap_s if late_s >= STANDSTILL_S else late_s
            self._lost_s += lost_s
            self.stood_still += lost_s
        self._last, self._waits_s = now, 0.0
        return now - self._lost_s

    def take_standstill(self) -> float:
        """Seconds for which the loop has stood still since the last call."""
        seconds, self.stood_still = self.stood_still, 0.0
        return seconds
