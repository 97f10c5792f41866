"""Jobs that killed workers, by the digest of their content: refused before they kill another."""

from __future__ import annotations

from collections import OrderedDict

#: How long a job stays refused, in seconds, and how many are remembered.
HOLDS_S = 3600.0
_MAX_ENTRIES = 1_000


class Quarantine:
    """Counts the workers that died of a content."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def blame(self, digest: str, now: float) -> int:
        """A worker died of this; returns how many have by now."""
        count = self.deaths(digest, now)
        self._deaths[digest] = (count + 1, now + HOLDS_S)
        self._deaths.move_to_end(digest)
        if len(self._deaths) > _MAX_ENTRIES:
            self._deaths.popitem(last=False)
        return count + 1

    def deaths(self, digest: str, now: float) -> int:
        """How many workers died of this lately."""
        while self._deaths and next(iter(self._deaths.values()))[1] <= now:
            self._deaths.popitem(last=False)
        return self._deaths.get(digest, (0, 0.0))[0]

    def clear(self, digest: str) -> None:
        """It was spoken after all: its workers died of something else."""
        self._deaths.pop(digest, None)
