"""Rates as people write them (``"10/minute"``), and limits by them: a token bucket for each client, full at first.

To forget a bucket is to fill it, since a client without one begins with a full one. So a bucket is forgotten when it is
full, or when there are too many: then that of the owner with the most goes which is full soonest, and each client of
that owner without a bucket begins with one that is no fuller.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable

from ..shares import Removals, Shares, owner_of

#: Clients whose bucket is remembered at most.
MAX_CLIENTS = 10_000
#: Owners at most for which it is remembered that buckets of theirs were forgotten before they were full.
_MAX_FLOORS = 1_000
#: Heaps are cleared of entries of forgotten buckets when those are more than the others, and more than this.
_STALE = 64
#: Of a token: a client that comes back at the time that was named must not be refused for a rounding error.
_ROUNDING = 1e-6

_UNITS_S = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0}
_RATE = re.compile(r"([0-9]{1,9})\s*/\s*(second|minute|hour|day)")


def parse_rate(text: str) -> tuple[int, float] | None:
    """``"10/minute"`` as ``(10, 60.0)``: that many in that many seconds; ``""`` as None, for no limit.

    Raises ValueError saying what is expected.
    """
    if not text:
        return None
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or int(match[1]) < 1:
        raise ValueError(
            f'expected a count from 1 to 999999999 and a unit (second, minute, hour or day) such as "10/minute", or "" '
            "for no limit, "
            f"got {text[:60]!r}"
        )
    return int(match[1]), _UNITS_S[match[2]]


class _Soonest:
    """Clients by when their bucket is full, with an entry for each, which is put right when its turn comes."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def add(self, client: str, full_at: float, count: int, full: Callable[[str], float | None]) -> None:
        heapq.heappush(self._heap, (full_at, client))
        if len(self._heap) > _STALE + 2 * count:
            known = {client for _, client in self._heap}
            self._heap = [(at, client) for client in known if (at := full(client)) is not None]
            heapq.heapify(self._heap)

    def first(self, full: Callable[[str], float | None]) -> tuple[float, str] | None:
        heap = self._heap
        while heap:
            noted, client = heap[0]
            full_at = full(client)
            if full_at is None:
                heapq.heappop(heap)
            elif full_at > noted:
                heapq.heapreplace(heap, (full_at, client))
            else:
                return full_at, client
        return None


class RateLimiter:
    """A token bucket for each client, filled by its own rate; a burst may take the whole count."""

    def __init__(self, removals: Removals | None = None) -> None:
        #: Tokens, when that was so, and when it is full.
        self._buckets: dict[str, tuple[float, float, float]] = {}
        self.shares = Shares()
        self._soonest = _Soonest()
        self._soonest_of: dict[str, _Soonest] = {}
        #: When a bucket is full that is forgotten: of each owner the last, and the last of all other owners.
        self._floors: dict[str, float] = {}
        self._floor = -math.inf
        self._removals = removals or Removals()

    def take(self, client: str, rate: tuple[int, float] | None, now: float) -> float | None:
        """Take a token. None when there was one, else the seconds until there will be, and nothing is taken."""
        if rate is None:
            return None
        count, seconds = rate
        tokens = self._tokens(client, count, seconds, now)
        if tokens < 1 - _ROUNDING:
            return _until(1, tokens, count, seconds)
        tokens -= 1
        full_at = now + (count - tokens) * seconds / count
        known = client in self._buckets
        self._buckets[client] = (tokens, now, full_at)
        if not known:
            self._remember(client, full_at, now)
        return None

    def _remember(self, client: str, full_at: float, now: float) -> None:
        """A client has a bucket from now on; where there are too many, another one is forgotten."""
        owner = owner_of(client)
        of_owner = self._soonest_of.get(owner)
        if of_owner is None:
            of_owner = self._soonest_of[owner] = _Soonest()
        self.shares.add(client, 1)
        of_owner.add(client, full_at, self.shares.of_owner(owner), self._full_at)
        self._soonest.add(client, full_at, len(self._buckets), self._full_at)
        if len(self._buckets) <= MAX_CLIENTS:
            return
        first = self._soonest.first(self._full_at)
        if first is not None and first[0] > now:
            owner = owner_of(self.shares.greatest())
            first = self._soonest_of[owner].first(self._full_at)
        if first is not None:
            self._forget(*first, now)

    def _forget(self, full_at: float, client: str, now: float) -> None:
        owner = owner_of(client)
        if full_at > now:
            self._removals.note("rates", client, shared=len(self.shares) > 1)
            self._floors[owner] = max(full_at, self._floors.get(owner, full_at))
            if len(self._floors) > _MAX_FLOORS:
                self._floors = {of: at for of, at in self._floors.items() if at > now}
            if len(self._floors) > _MAX_FLOORS:
                self._floor = max(self._floor, *self._floors.values())
                self._floors.clear()
        del self._buckets[client]
        self.shares.add(client, -1)
        if not self.shares.of_owner(owner):
            del self._soonest_of[owner]

    def _full_at(self, client: str) -> float | None:
        bucket = self._buckets.get(client)
        return None if bucket is None else bucket[2]

    def _tokens(self, client: str, count: int, seconds: float, now: float) -> float:
        bucket = self._buckets.get(client)
        if bucket is not None:
            return min(float(count), bucket[0] + (now - bucket[1]) * count / seconds)
        floor = max(self._floor, self._floors.get(owner_of(client), self._floor)) if self._floors else self._floor
        return min(float(count), max(0.0, count - (floor - now) * count / seconds))

    def left(self, client: str, rate: tuple[int, float] | None, now: float) -> tuple[float | None, float | None]:
        """How many tokens a client has, and the seconds until it has a whole one; None where there is no limit."""
        if rate is None:
            return None, None
        tokens = self._tokens(client, *rate, now)
        return round(tokens, 3), 0.0 if tokens >= 1 - _ROUNDING else _until(1, tokens, *rate)

    def age(self, seconds: float) -> None:
        """Fill the buckets for time that ``now`` does not count."""
        for client, (tokens, since, full_at) in self._buckets.items():
            self._buckets[client] = (tokens, since - seconds, full_at - seconds)
        self._floors = {owner: full_at - seconds for owner, full_at in self._floors.items()}
        self._floor -= seconds

    def clients(self) -> list[str]:
        """Clients whose bucket is remembered."""
        return list(self._buckets)


def _until(wanted: float, tokens: float, count: int, seconds: float) -> float:
    """Seconds until there are ``wanted`` tokens, rounded up to milliseconds."""
    return math.ceil((wanted - tokens) * seconds / count * 1000) / 1000
