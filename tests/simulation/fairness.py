"""Bounded waiting: how many jobs of other classes are started while one of a class waits.

With that, and with no worker idle while jobs wait, time is bounded too: every start is followed by an end within the
hang timeouts, and every end by a start.
"""

from __future__ import annotations

from typing import Any

from glmtts.daemon.core.workers import WorkerState
from glmtts.protocol.requests import PRIORITIES, Priority

from .rules import Rule, must


class Fairness:
    """Counts starts by class."""

    def __init__(self, machine: Any) -> None:
        self._queue = machine._queue
        self._pool = machine._pool
        self._live = machine._ledger.live
        self._weights: dict[str, int] = {}
        #: Jobs of other classes that were started since a class has had one, or none waits.
        self._passed: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)

    def started(self, job_id: str, spawn: int) -> None:
        """A job was handed to a worker."""
        job = self._live.get(job_id)
        if job is None or job.needs_fresh:
            return
        worker = self._pool._by_spawn.get(spawn)
        if worker is not None and worker.jobs_taken == 1 and worker.state is not WorkerState.FAILED:
            must(Rule.FAIR, not self._queue._for_fresh, job_id, "took a fresh worker from one that needs it more")
        weights = self._queue._weights
        if weights != self._weights:
            self._weights = dict(weights)
            self._passed = dict.fromkeys(PRIORITIES, 0)
        total = sum(weights.values())
        chosen = job.request.priority
        for priority in PRIORITIES:
            if priority == chosen or not self._queue._lanes[priority]:
                self._passed[priority] = 0
                continue
            self._passed[priority] += 1
            # Smooth weighted round robin: nobody's debt is more than all weights together, nor is his credit.
            bound = 3 * total / weights[priority] + 3
            must(
                Rule.FAIR,
                self._passed[priority] <= bound,
                f"{priority} waits while {self._passed[priority]} jobs of other classes are started ({bound:.0f} may)",
            )

    def after(self) -> None:
        """A class in which nobody waits is passed over by nobody."""
        for priority, lane in self._queue._lanes.items():
            if not lane:
                self._passed[priority] = 0
