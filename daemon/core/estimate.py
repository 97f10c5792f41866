"""How long a job will take and wait, from what earlier ones took."""

from __future__ import annotations

import math

#: Weight of the newest job in the moving averages: about the last ten count.
_NEWEST = 0.2
#: A job that takes longer hides the time between two jobs, some tenths of a millisecond, well enough.
_BRIEF_S = 0.005


class Estimator:
    """A moving average of synthesis time by character of text."""

    def __init__(self) -> None:
        self._seconds_per_character: float | None = None
        self._seconds_per_job: float | None = None

    def learn(self, characters: int, seconds: float) -> None:
        """A job of so many characters took so long."""
        if not 0.0 <= seconds < math.inf:
            return  # a number from a worker, whose memory may be damaged, would stay in the averages for ever
        per_character = seconds / max(1, characters)
        if self._seconds_per_character is None or self._seconds_per_job is None:
            self._seconds_per_character, self._seconds_per_job = per_character, seconds
            return
        self._seconds_per_character += _NEWEST * (per_character - self._seconds_per_character)
        self._seconds_per_job += _NEWEST * (seconds - self._seconds_per_job)

    @property
    def brief(self) -> bool:
        """Whether jobs take about as long as handing one over does, so that a worker would mostly wait for the next."""
        return self._seconds_per_job is not None and self._seconds_per_job < _BRIEF_S

    def wait_s(self, characters_ahead: int, workers: int) -> float | None:
        """Until so much text ahead is spoken by so many workers; None before anything was measured."""
        if self._seconds_per_character is None or not workers:
            return None
        return round(self._seconds_per_character * characters_ahead / workers, 3)

    def retry_after_s(self, workers: int) -> float:
        """When one more job will have left a full queue; a second where nothing was measured yet."""
        if self._seconds_per_job is None or not workers:
            return 1.0
        return round(max(0.1, self._seconds_per_job / workers), 3)
