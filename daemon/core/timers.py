"""Named timers without a clock: the caller passes the time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TypeAlias

#: The purpose of a timer, and the job or worker that it is about: ``("deadline", job)``, ``("backoff", worker)``.
TimerKey: TypeAlias = tuple[str, str]


class Timers:
    """A heap of due times, in which cancelled and moved timers leave no more garbage than there are live ones."""

    def __init__(self) -> None:
        self._due: dict[TimerKey, float] = {}
        self._heap: list[tuple[float, TimerKey]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: TimerKey) -> bool:
        return key in self._due

    def __iter__(self) -> Iterator[TimerKey]:
        return iter(self._due)

    def set(self, key: TimerKey, due: float) -> None:
        """Arm a timer, or move one that is armed."""
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(at, k) for k, at in self._due.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: TimerKey) -> None:
        """Disarm a timer; nothing happens if it is not armed."""
        self._due.pop(key, None)

    def due(self, key: TimerKey) -> float | None:
        """When this timer is due; None if it is not armed."""
        return self._due.get(key)

    def next_due(self) -> float | None:
        """When the earliest timer is due, or None."""
        while self._heap:
            due, key = self._heap[0]
            if self._due.get(key) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now: float) -> TimerKey | None:
        """Disarm and return the earliest timer that is due, or None."""
        due = self.next_due()
        if due is None or due > now:
            return None
        _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key
