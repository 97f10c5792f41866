"""Waiting for one's turn: a request that the daemon puts off (rate limit, full queue) is sent again when it says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from glmtts.client import RequestFailed, Timeout

T = TypeVar("T")

#: The daemon refuses for now, and nothing is wrong with the request.
PUT_OFF = frozenset({"rate_limited", "queue_full"})

_SHORTEST_WAIT_S = 0.05
_DEFAULT_WAIT_S = 1.0


def patiently(
    call: Callable[[float | None], T], *, timeout: float | None, wait: bool, note: Callable[[str], None]
) -> T:
    """What ``call`` returns, called again as long as it is put off, until ``timeout`` seconds have passed in all.

    ``call`` gets the seconds that are left, None for no limit. With ``wait`` false it is called once. Raises what
    ``call`` raises, and Timeout where the next try would come too late.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return call(None if ends is None else max(ends - time.monotonic(), 0.001))
        except RequestFailed as error:
            if error.code not in PUT_OFF or not wait:
                raise
            pause = retry_delay(error)
            if ends is not None and time.monotonic() + pause > ends:
                raise Timeout(f"{error.message}; the next try in {pause:.1f} s would be after the timeout") from error
            note(f"{error.message} ({error.code}); trying again in {pause:.1f} s.")
            time.sleep(pause)


def retry_delay(error: RequestFailed, otherwise: float = _DEFAULT_WAIT_S) -> float:
    """Seconds until a retry makes sense: what the daemon said, else ``otherwise``."""
    return max(otherwise if error.retry_after_s is None else error.retry_after_s, _SHORTEST_WAIT_S)
