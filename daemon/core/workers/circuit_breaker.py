"""A circuit breaker over the starts of workers.

::

    closed --(faults in a window, nothing spoken between them)--> open --(its pause is over)--> half_open
       ^                                                           ^                               |
       |                                                           +------------(a fault)----------+
       +-------------------------(a job was spoken, or a worker lived for long)--------------------+

Open, no failed worker is started; half open, one is, as a probe. Each further opening lasts longer. (M. Nygard,
Release It!, ch. 5, has the names of the states.)

The window's time stands still while a process loads and then fails: otherwise a model that takes a minute to load would
never fail often enough, and waiting clients would never be answered.
"""

from __future__ import annotations

import enum
from collections import deque


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Owns the faults within the window. Times are the core's clock, in seconds."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        #: Times of the window's own clock, which stops while processes load that fail.
        self._faults: deque[float] = deque(maxlen=1_000)
        self._clock = 0.0
        self._last_fault = 0.0
        #: Number of openings since it was last closed.
        self.openings = 0
        #: When it last left CLOSED.
        self.since = 0.0

    @property
    def faults(self) -> int:
        """Number of faults within the window."""
        return len(self._faults)

    def fault(self, now: float, failures: int, window_s: float, loading: tuple[float, float] = (0.0, 0.0)) -> bool:
        """Count the fault of a process. Returns whether the breaker opens.

        ``loading``: when that process began and ended loading.
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
        """A worker has shown that it works. Returns whether the breaker closes."""
        if self._faults:
            self._faults.clear()
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.CLOSED  # OPEN or HALF_OPEN -> CLOSED
        self.openings = 0
        return True
