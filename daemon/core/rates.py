"""Rates as people write them in the configuration: ``"10/minute"``."""

from __future__ import annotations

import re

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
