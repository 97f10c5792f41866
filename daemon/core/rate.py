"""Rates as people write them (``"10/minute"``), and limits by them: a token bucket for each client, full at first."""

from __future__ import annotations

import math
import re
from collections import OrderedDict

#: Clients whose bucket is remembered at most. A bucket that is dropped was the one used longest ago.
_MAX_CLIENTS = 10_000
#: Of a token: who comes back at the time that was named must not be sent away by a rounding error.
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
            f'expected a count and a unit such as "10/minute" (second, minute, hour or day), or "" for no limit, '
            f"got {text[:60]!r}"
        )
    return int(match[1]), _UNITS_S[match[2]]


class RateLimiter:
    """So many jobs in so many seconds, each client by itself; bursts up to the whole count."""

    def __init__(self, rate: tuple[int, float] | None) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def set_rate(self, rate: tuple[int, float] | None) -> None:
        """Go by this rate from now on; None for none."""
        if rate != self._rate:
            self._rate = rate
            self._buckets.clear()

    def take(self, client: str, now: float) -> float | None:
        """Take a token. None when there was one, else the seconds until there will be, and nothing is taken."""
        if self._rate is None:
            return None
        count, seconds = self._rate
        tokens, since = self._buckets.pop(client, (float(count), now))
        tokens = min(float(count), tokens + (now - since) * count / seconds)
        allowed = tokens >= 1 - _ROUNDING
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if allowed:
            return None
        return math.ceil((1 - tokens) * seconds / count * 1000) / 1000
