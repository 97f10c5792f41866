"""The journal's own time, which no one can set: all that the journal keeps is dated and judged by it.

It begins as the wall clock's time and goes on with the machine's own count of seconds, over restarts of the daemon too.
Only over a restart of the machine does it have nothing but the wall clock, which may not be set yet. So what the clock
says of that gap holds at once for deadlines, but nothing is removed because of it for an hour; when the clock is set
back within that hour, the gap was shorter.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from ..clock import boot_id, boot_time

#: For how long nothing is removed because of a gap that the wall clock alone has measured, in seconds.
GRACE_S = 3_600.0
#: Gaps up to this length need no grace, in seconds.
_SHORT_S = 60.0
#: A wall clock that is off by less, in seconds, was not set.
_SAME_S = 1.0


class Mark(Struct, frozen=True):
    """A moment: the start of the machine (``boot``), and by three clocks the seconds of it."""

    boot: str
    boot_s: float
    wall: float
    time: float


class Timeline:
    """Owns the journal's time. Invariant: while a daemon runs it never goes faster than the machine counts seconds."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        boot_s: Callable[[], float] = boot_time,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._wall, self._boot_s, self._boot = wall, boot_s, boot()
        #: The last mark that is known to be right, and where this daemon goes on from it.
        self._known: Mark | None = None
        self._began_s = self._began = 0.0
        #: The part of ``_began`` that the wall clock alone has measured, and until when it may prove too long.
        self._gap_s = 0.0
        self._grace_until = 0.0
        #: The wall clock less this time, as of the last :meth:`look`.
        self.skew = 0.0
        #: What an operator may want to know, for the log.
        self.notes: list[str] = []

    def open(self, known: Mark | None) -> None:
        """Go on from the mark that an earlier daemon has left, or begin with the wall clock."""
        wall, now_s = self._wall(), self._boot_s()
        known = known or Mark(self._boot, now_s, wall, wall)
        self._known, self._began_s, self._gap_s = known, now_s, 0.0
        if self._boot and known.boot == self._boot and now_s >= known.boot_s:
            self._began = known.time + now_s - known.boot_s
        else:
            self._gap_s = max(0.0, wall - known.wall)
            self._began = known.time + self._gap_s
        self._grace_until = now_s + GRACE_S if self._gap_s > _SHORT_S else now_s
        self.skew = known.wall - known.time
        before = self.skew
        self.look()
        if abs(self.skew - before) > _SHORT_S:
            self.notes.append(
                f"the machine's clock was set by {self.skew - before:+.0f} s while no daemon ran: deadlines and the "
                "age of results and keys do not follow it"
            )
        if not self.settled:
            self.notes.append(
                f"the machine was off for {self._gap_s:.0f} s, as its clock says: results that are too old because of "
                f"that are removed in {GRACE_S / 60:.0f} minutes, unless the clock is set back before"
            )

    def now(self) -> float:
        """Seconds since 1970, as this journal counts them."""
        return self._began + self._boot_s() - self._began_s

    def sure(self) -> float:
        """The earliest that it can be now: what has expired by this time may be removed."""
        return self.now() - (0.0 if self.settled else self._gap_s)

    @property
    def settled(self) -> bool:
        """Whether the time is certain."""
        return self._boot_s() >= self._grace_until

    @property
    def settles_in_s(self) -> float:
        """Seconds until :attr:`settled`."""
        return max(0.0, self._grace_until - self._boot_s())

    def look(self) -> bool:
        """Look at the wall clock; returns whether it was set since the last look."""
        skew = self._wall() - self.now()
        if abs(skew - self.skew) < _SAME_S:
            return False
        if not self.settled and skew < self.skew and self._gap_s:
            # The clock had been ahead when the machine started: the gap was shorter.
            shorter_s = min(self._gap_s, self.skew - skew)
            self._gap_s -= shorter_s
            self._began -= shorter_s
            skew += shorter_s
        changed = abs(skew - self.skew) >= _SAME_S
        self.skew = skew
        return changed

    def mark(self) -> Mark | None:
        """A mark from which a later daemon can go on; None as long as the present time may prove wrong."""
        if not self.settled:
            return None
        return Mark(self._boot, self._boot_s(), self._wall(), self.now())

    # --- dates

    def of_date(self, date: float) -> float:
        """A date of a moment ago, by the wall clock, on this timeline."""
        now, then = self.now(), date - self.skew
        # The clock may have been set in between.
        return then if now - _SHORT_S <= then <= now + _SAME_S else now

    def date(self, time: float) -> float:
        """A time of this timeline as a date of the wall clock."""
        return round(time + self.skew, 3)
