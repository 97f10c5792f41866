"""Retrying a request that the daemon refuses for now (rate limit, full queue), at the time that it names."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from glmtts.client import RequestFailed, Timeout

T = TypeVar("T")

#: Codes with which the daemon refuses a request for now, although nothing is wrong with it.
TRY_LATER = frozenset({"rate_limited", "queue_full"})

_SHORTEST_WAIT_S = 0.05
_DEFAULT_WAIT_S = 1.0


def with_retries(
    call: Callable[[float | None], T], *, timeout: float | None, wait: bool, note: Callable[[str], None]
) -> T:
    """Call ``call`` until the daemon does not put it off, for ``timeout`` seconds in all.

    Args:
        call: gets the seconds that are left, None for no limit.
        timeout: seconds; None for no limit.
        wait: whether to retry at all.
        note: called with a remark before each retry.

    Raises:
        Timeout: the next try would come after the timeout.
        GlmttsError: raised by ``call``.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return call(None if ends is None else max(ends - time.monotonic(), 0.001))
        except RequestFailed as error:
            if error.code not in TRY_LATER or not wait:
                raise
            pause = retry_delay(error)
            if ends is not None and time.monotonic() + pause > ends:
                raise Timeout(f"{error.message}; the next try in {pause:.1f} s would be after the timeout") from error
            note(f"{error.message} ({error.code}); trying again in {pause:.1f} s.")
            time.sleep(pause)


def retry_delay(error: RequestFailed, otherwise: float = _DEFAULT_WAIT_S) -> float:
    """Seconds until a retry makes sense: the daemon's own figure, else ``otherwise``."""
    return max(otherwise if error.retry_after_s is None else error.retry_after_s, _SHORTEST_WAIT_S)
