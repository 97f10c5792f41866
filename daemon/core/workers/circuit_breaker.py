"""A circuit breaker over the starts of workers.

::

    closed --(faults in a window, nothing spoken between them)--> open --(its pause is over)--> half_open
       ^                                                           ^                               |
       |                                                           +------------(a fault)----------+
       +-------------------------(a job was spoken, or a worker lived for long)--------------------+

Open, no worker is started; half open, one is, as a probe. Each further opening lasts longer. (M. Nygard, Release It!,
ch. 5; the states' names are his.)

The window's time stands still while a process loads that is going to fail: a model that takes a minute to load would
else never fail often enough, and those who wait would never be told.
"""

from __future__ import annotations

import enum
from collections import deque


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Counts faults; times are the core's clock, in seconds."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        #: Times of the window's own clock, which does not go while processes load that fail.
        self._faults: deque[float] = deque(maxlen=1_000)
        self._clock = 0.0
        self._last_fault = 0.0
        #: How often it opened since it was closed.
        self.openings = 0
        #: Since when it is not closed.
        self.since = 0.0

    @property
    def faults(self) -> int:
        """How many faults it counts at present."""
        return len(self._faults)

    def fault(self, now: float, failures: int, window_s: float, loading: tuple[float, float] = (0.0, 0.0)) -> bool:
        """A process died of a fault; returns whether the breaker opens by that.

        ``loading``: from when until when that process loaded.
        """
        begun, ended = loading
        loaded_s = max(0.0, ended - max(begun, self._last_fault))
        self._clock += now - self._last_fault - loaded_s
        self._last_fault = now
        while self._faults and self._faults[0] < self._clock - window_s:
            self._faults.popleft()
        self._faults.append(self._clock)
        if self.state is BreakerState.OPEN or (self.state is BreakerState.CLOSED and len(self._faults) < failures):
            return False
        if self.state is BreakerState.CLOSED:
            self.since = now
        self.state = BreakerState.OPEN  # CLOSED or HALF_OPEN -> OPEN
        self.openings += 1
        return True

    def pause_over(self) -> None:
        """A probe may be started."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN  # OPEN -> HALF_OPEN

    def proof(self) -> bool:
        """A worker has shown that it works; returns whether the breaker closes by that."""
        if self._faults:
            self._faults.clear()
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.CLOSED  # OPEN or HALF_OPEN -> CLOSED
        self.openings = 0
        return True
