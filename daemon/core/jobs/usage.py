"""What each client had spoken on each day (UTC): jobs, characters, seconds of speech.

The journal keeps it over restarts. Days are dates, which the machine's clock says: a clock that is set puts jobs on
another day, and removes nothing, since days go when there are too many of them and not when they are old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta

from ..inputs import Client, Spoken, UsageRow
from ..shares import owner_of

#: Rows of all days together, while no more owners than rows of a day use the daemon.
MAX_ROWS = 60_000
_DAY_S = 86_400
_EPOCH = date(1970, 1, 1)


class _Day:
    """The rows of one day by client, in the order in which they began, and how many of them each owner has."""

    def __init__(self) -> None:
        self.rows: dict[str, Spoken] = {}
        self.owners: Counter[str] = Counter()


class Usage:
    """Owns the rows of all days.

    Invariant: on each day an owner has no more rows of its own customers than its share, a day's rows by the owners
    that had anything spoken on it; what comes from more of them is counted together. So a gateway whose visitors choose
    a name for each request takes no other client's rows, nor those of earlier days.
    """

    def __init__(self) -> None:
        self._days: dict[int, _Day] = {}
        #: What was counted since it was last taken for the journal.
        self._fresh: dict[tuple[str, int], Spoken] = {}
        self._oldest = 0

    def count(self, client: Client, wall: float, spoken: Spoken, keep_days: int) -> None:
        """A client had something spoken. ``wall``: in seconds since 1970. ``keep_days``: 0 counts nothing."""
        if keep_days:
            day = int(wall // _DAY_S)
            key = self._add(UsageRow(client.key, day, spoken), MAX_ROWS // keep_days)
            self._fresh.setdefault((key, day), Spoken()).add(spoken)
        self.expire(keep_days)

    def restore(self, rows: list[UsageRow], keep_days: int) -> None:
        """Add what earlier daemons have counted."""
        for row in rows if keep_days else ():
            self._add(row, MAX_ROWS // keep_days)
        self.expire(keep_days)

    def _add(self, row: UsageRow, most: int) -> str:
        """Returns the key under which it is counted."""
        day = self._days.setdefault(row.day, _Day())
        key, owner = row.client, owner_of(row.client)
        if key not in day.rows and key not in ("/", f"{owner}/"):
            share = most // (len(day.owners) + (owner not in day.owners))
            if day.owners[owner] < share:
                day.owners[owner] += 1
            else:
                key = f"{owner}/" if owner in day.owners else "/"
        day.rows.setdefault(key, Spoken()).add(row.spoken)
        return key

    def expire(self, keep_days: int) -> None:
        """Forget the oldest days while there are more than ``keep_days``."""
        while len(self._days) > keep_days:
            day = min(self._days)
            del self._days[day]
            self._oldest = max(self._oldest, day + 1)

    def take_fresh(self) -> tuple[list[UsageRow], int]:
        """What was counted since the last call, and the first day that is kept: no older one is to come back."""
        fresh, self._fresh = self._fresh, {}
        rows = [UsageRow(client, day, spoken) for (client, day), spoken in fresh.items() if day in self._days]
        return rows, self._oldest

    def rows(self, since: int) -> Iterator[UsageRow]:
        """All rows from a day on, the newest day first."""
        for number in sorted((day for day in self._days if day >= since), reverse=True):
            for client, spoken in self._days[number].rows.items():
                yield UsageRow(client, number, spoken)

    def __len__(self) -> int:
        return sum(len(day.rows) for day in self._days.values())

    @property
    def most_of_a_day(self) -> int:
        """How many rows the fullest day has."""
        return max((len(day.rows) for day in self._days.values()), default=0)


def day_of(since: str | float) -> int:
    """The number of a day given as a date or in seconds since 1970. Raises ValueError for what is no date."""
    if isinstance(since, str):
        return (date.fromisoformat(since) - _EPOCH).days
    return int(since // _DAY_S)


def date_of(day: int) -> str:
    """A day as a date, ``2026-11-30``."""
    return (_EPOCH + timedelta(days=day)).isoformat()
