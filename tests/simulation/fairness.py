"""Fair shares of time: what classes, and the clients of a class, are served while they wait, measured beside the core.

Of two that have jobs waiting all the time, each is served by its weight, but for a few of the longest jobs: start-time
fair queueing promises one of each (Goyal, Vin, Cheng 1996); each further worker and slot, and what is charged by an
estimate until it is done, adds as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtts.daemon.core.workers.worker import WorkerState
from glmtts.daemon.core.workers.worker_table import AHEAD

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: A class, or a client of a class.
_Flow = tuple[str, str]


#: While the same wait, they are compared every so many steps.
_EVERY = 8
#: So many jobs of each are remembered.
_RECENT = 4


@dataclass
class _Window:
    """Since when two have waited without a break: what each had been served then, and the longest job of each since."""

    first: float
    second: float
    longest: tuple[float, float] = (0.0, 0.0)
    workers: int = 0
    #: What the two had been served of jobs that run alone.
    alone: float = 0.0


class Fairness:
    """Measures who is served for how long."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._machine = machine
        self._queue = machine.state.queue
        self._pool = machine.state.pool
        self._live = machine.state.job_table.live
        self._weights: dict[str, float] = {}
        #: Seconds that workers have worked for each, and those at jobs that run alone, which come before all others.
        self._served: dict[_Flow, float] = {}
        self._alone: dict[_Flow, float] = {}
        self._windows: dict[tuple[_Flow, _Flow], _Window] = {}
        self._now = world.clocks.core_now
        #: Jobs at work, and how many share the time of their worker.
        self._running: list[tuple[Any, int]] = []
        #: The time that attempts at live jobs had, whatever their workers say: one that stands still says nothing.
        self._had: dict[tuple[str, int], float] = {}
        #: How long the last jobs of each took, by their ids: it may be ahead by them.
        self._recent: dict[_Flow, dict[str, float]] = {}
        self._waiting: list[_Flow] = []

    def started(self, job_id: str, incarnation: int) -> None:
        """A job was handed to a worker."""
        job = self._live.get(job_id)
        if job is None or job.needs_fresh:
            return
        worker = self._pool._by_incarnation.get(incarnation)
        if worker is not None and worker.process.jobs_taken == 1 and worker.state is not WorkerState.FAILED:
            must(Rule.FAIR, not self._queue._for_fresh, job_id, "took a fresh worker from one that needs it more")

    def after(self) -> None:
        """After every step: time has passed for those that were running until now."""
        now, served = self._world.clocks.core_now, self._served
        passed_s, self._now = now - self._now, now
        for job, load in self._running:
            attempt = (job.id, job.attempts)
            self._had[attempt] = had_s = self._had.get(attempt, 0.0) + passed_s / load
            long_s = max(job.account.cost_s, had_s, job.account.charged_s)
            for flow in ((job.request.priority, ""), (job.request.priority, job.client.key)):
                served[flow] = served.get(flow, 0.0) + passed_s / load
                if job.alone:
                    self._alone[flow] = self._alone.get(flow, 0.0) + passed_s / load
                recent = self._recent.setdefault(flow, {})
                recent[job.id] = max(recent.get(job.id, 0.0), long_s)
                if len(recent) > _RECENT:
                    del recent[next(iter(recent))]
        live = self._live
        if len(self._had) > 2 * len(live) + 64:
            self._had = {attempt: had_s for attempt, had_s in self._had.items() if attempt[0] in live}
        begun = [worker.process.begun for worker in self._pool.workers.values()]
        at_work = ((live.get(id), len(ids)) for ids in begun for id in ids)
        self._running = [(job, load) for job, load in at_work if job is not None and job.ending is None]
        class_queues = self._queue._class_queues
        weights = self._queue._classes._weights
        if weights != self._weights:
            self._weights = dict(weights)
            self._windows = {pair: window for pair, window in self._windows.items() if pair[0][1]}
        waiting = [
            (priority, client) for priority, class_queue in class_queues.items() for client in class_queue._flows
        ]
        if waiting == self._waiting and self._world.steps % _EVERY:
            return
        self._waiting = waiting
        backlogged = [(priority, "") for priority, class_queue in class_queues.items() if len(class_queue)]
        pairs = [] if self._batch_is_held_back() else self._pairs(backlogged)
        for priority, class_queue in class_queues.items():
            if len(class_queue._flows) > 1:
                pairs += self._pairs((priority, client) for client in class_queue._flows)
        if pairs or self._windows:
            self._look(pairs)

    @staticmethod
    def _pairs(flows: Iterable[_Flow]) -> list[tuple[_Flow, _Flow]]:
        return list(itertools.combinations(sorted(flows), 2))

    def _batch_is_held_back(self) -> bool:
        """Some slots take no batch jobs: weights are not what decides."""
        slots = sum(worker.process.slots for worker in self._pool.workers.values() if worker.serving)
        return bool(min(self._machine.settings.queue.interactive_workers, max(0, slots - 1)))

    def _look(self, pairs: list[tuple[_Flow, _Flow]]) -> None:
        before, self._windows = self._windows, {}
        if self._queue.wants_alone or any(job.alone for job, *_ in self._running):
            return  # those that run alone come before all others
        # Also where one has a job that runs alone: others of its client come behind it at once.
        processes = [worker.process for worker in self._pool.workers.values()]
        places = sum(process.ready.slots if process.ready else 1 for process in processes)
        for pair in pairs:
            first, second = (self._served.get(flow, 0.0) / self._weight(flow) for flow in pair)
            alone = sum(self._alone.get(flow, 0.0) / self._weight(flow) for flow in pair)
            window = before.get(pair)
            if window is None:
                window = _Window(first, second, alone=alone)
            self._windows[pair] = window
            lengths = zip(window.longest, pair, strict=True)
            window.longest = tuple(max(length, self._longest(flow)) for length, flow in lengths)  # type: ignore[assignment]
            window.workers = max(window.workers, places)
            apart = abs((first - window.first) - (second - window.second))
            each = window.workers + 1 + (AHEAD if self._world.scene.brief else 0)
            by_weight = (length / self._weight(flow) for length, flow in zip(window.longest, pair, strict=True))
            ahead_s = 0.0 if pair[0][1] else abs(self._handicap(pair[0]) - self._handicap(pair[1]))
            bound = each * sum(by_weight) + ahead_s + alone - window.alone + 0.1
            must(
                Rule.FAIR,
                apart <= bound,
                f"{pair[0]} was served {first - window.first:.2f} s by its weight and {pair[1]} "
                f"{second - window.second:.2f} while both waited; {bound:.2f} apart is what may be",
            )

    def _handicap(self, flow: _Flow) -> float:
        return self._queue._classes.handicap(flow[0])  # type: ignore[no-any-return]

    def _weight(self, flow: _Flow) -> float:
        return 1.0 if flow[1] else float(getattr(self._machine.settings.queue.classes, flow[0]).weight)

    def _longest(self, flow: _Flow) -> float:
        class_queue = self._queue._class_queues[flow[0]]
        of = class_queue._flows.values() if not flow[1] else [class_queue._flows[flow[1]]]
        waiting = max((job.account.cost_s for f in of for _, _, job in f.jobs), default=0.0)
        return max(waiting, *self._recent.get(flow, {"": 0.0}).values())
