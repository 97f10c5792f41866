"""Rates as people write them (``"10/minute"``), and limits by them: a token bucket for each client, full at first."""

from __future__ import annotations

import math
import re
from collections import OrderedDict

#: Clients whose bucket is remembered at most. A bucket that is dropped was the one used longest ago.
_MAX_CLIENTS = 10_000
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


class RateLimiter:
    """A token bucket for each client, filled by its own rate; a burst may take the whole count."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, rate: tuple[int, float] | None, now: float) -> float | None:
        """Take a token. None when there was one, else the seconds until there will be, and nothing is taken."""
        if rate is None:
            return None
        count, seconds = rate
        tokens = self._tokens(client, count, seconds, now)
        allowed = tokens >= 1 - _ROUNDING
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return None if allowed else _until(1, tokens, count, seconds)

    def _tokens(self, client: str, count: int, seconds: float, now: float) -> float:
        tokens, since = self._buckets.get(client, (float(count), now))
        return min(float(count), tokens + (now - since) * count / seconds)

    def left(self, client: str, rate: tuple[int, float] | None, now: float) -> tuple[float | None, float | None]:
        """How many tokens a client has, and the seconds until it has a whole one; None where there is no limit."""
        if rate is None:
            return None, None
        tokens = self._tokens(client, *rate, now)
        return round(tokens, 3), 0.0 if tokens >= 1 - _ROUNDING else _until(1, tokens, *rate)

    def age(self, seconds: float) -> None:
        """Fill the buckets for time that ``now`` does not count."""
        for client, (tokens, since) in self._buckets.items():
            self._buckets[client] = (tokens, since - seconds)

    def clients(self) -> list[str]:
        """Clients whose bucket is remembered."""
        return list(self._buckets)


def _until(wanted: float, tokens: float, count: int, seconds: float) -> float:
    """Seconds until there are ``wanted`` tokens, rounded up to milliseconds."""
    return math.ceil((wanted - tokens) * seconds / count * 1000) / 1000
