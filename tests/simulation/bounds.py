"""Everything in the core that grows, and how far it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtts.daemon.core.jobs import job_table as table
from glmtts.daemon.core.jobs.job import MAX_SUBSCRIBERS
from glmtts.daemon.core.monitoring.alert_evaluator import _STEPS
from glmtts.daemon.core.monitoring.alert_table import ALERTS
from glmtts.daemon.core.scheduling import retry
from glmtts.daemon.core.workers.trend import POINTS
from glmtts.daemon.core.workers.worker_table import AHEAD
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.worker import MAX_SUSPENDED

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: Timers of one worker, and of the daemon as a whole (its drains aside).
_TIMERS_OF_WORKER, _TIMERS_OF_DAEMON = 9, 9

#: Alerts of the daemon as a whole: beside them each GPU and each worker may have some.
_ALERTS = len(ALERTS)
#: Series of metrics that are neither a GPU's nor a worker's.
_SERIES = 160


class Bounds:
    """Measures what there is."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._machine = machine
        self._timers = machine.state.context.timers
        self._job_table = machine.state.job_table
        self._queue = machine.state.queue
        self._pool = machine.state.pool
        self._most_timers = self._most_flows = 0

    def look(self) -> None:
        """What takes no time, after every step."""
        settings = self._machine.settings
        timers = len(self._timers)
        self._most_timers = max(self._most_timers, timers)
        live = len(self._job_table.live)
        workers = len(self._pool.workers)
        live += self._job_table.open_texts.total
        of_all = _TIMERS_OF_WORKER * workers + live + _TIMERS_OF_DAEMON + self._machine.lifecycle.drains
        must(Rule.BOUNDED, timers <= of_all, "timers:", timers, "of", workers, "workers and", live, "jobs")
        must(Rule.BOUNDED, len(self._timers._heap) <= 2 * self._most_timers + 66, "the heap of timers grows")
        keep = settings.queue.keep_results_mib << 20
        must(Rule.BOUNDED, self._job_table.result_bytes <= keep, "results take more memory than they may")
        queue = settings.queue
        # What an earlier daemon had accepted goes on, however much that is.
        retried = (
            workers * (self._world.scene.slots + MAX_SUSPENDED) + AHEAD + self._machine.scheduler.durable_jobs.recovered
        )
        length = self._queue.length
        batch = length("batch")
        must(Rule.BOUNDED, batch <= queue.max_waiting_batch + retried, "the batch queue is too long:", batch)
        waiting = length("vip") + length("interactive")
        must(Rule.BOUNDED, waiting <= queue.max_waiting + retried, "the queue is longer than it may be:", waiting)
        self._look_at_heaps()
        again = len(self._queue._for_fresh) + len(self._queue._alone)
        must(Rule.BOUNDED, again <= live, "jobs that are tried again")
        must(Rule.BOUNDED, len(self._pool._by_incarnation) <= workers, "processes of no worker are remembered")
        most = 2 * max(self._world.operators.highest, self._world.operators.most_ever) + 3
        must(Rule.BOUNDED, workers <= most, workers, "workers")

    def _look_at_heaps(self) -> None:
        """What has left the queue leaves no more in it than what was there at once, and a few."""
        for share in (
            self._queue._classes,
            *(class_queue._share for class_queue in self._queue._class_queues.values()),
        ):
            self._most_flows = most = max(self._most_flows, len(share))
            must(Rule.BOUNDED, len(share._heap) <= 2 * most + 66, "a heap of flows grows")
            must(Rule.BOUNDED, len(share._after) <= 2 * most + 66, "tags of flows are kept")
        for class_queue in self._queue._class_queues.values():
            must(
                Rule.BOUNDED,
                len(class_queue._urgent) <= 2 * len(class_queue._with_deadline) + 66,
                "a heap of deadlines grows",
            )

    def look_closely(self) -> None:
        """What has to be counted."""
        machine, job_table = self._machine, self._job_table
        limits = machine.settings.limits
        must(Rule.BOUNDED, job_table.recording_bytes <= limits.recordings_mib << 20, "recordings")
        counts = job_table.describe()
        must(Rule.BOUNDED, counts["ended"] <= table.MAX_ENDED + table.MAX_BARE, "ended jobs")
        must(Rule.BOUNDED, counts["keys"] <= table.MAX_KEYS, "idempotency keys")
        must(Rule.BOUNDED, counts["results"] <= counts["ended"], "results")
        must(Rule.BOUNDED, len(job_table.outputs) <= len(job_table.live), "names of outputs")
        must(Rule.BOUNDED, len(job_table.live_of_client) <= len(job_table.live), "clients")
        held = len(machine.scheduler.retries.quarantine._entries)
        must(Rule.BOUNDED, held <= retry._MAX_ENTRIES, "the quarantine")
        must(Rule.BOUNDED, len(machine.scheduler.completion.outcomes) <= len(ErrorCode) + 1, "outcomes")
        must(Rule.BOUNDED, len(machine.state.context.counters.refused) <= len(ErrorCode), "refusals")
        gpus, workers = len(machine.state.gpus._gpus), self._pool.workers
        must(Rule.BOUNDED, gpus <= self._world.scene.gpus, "GPUs")
        raised, conditions = machine.state.alerts._raised, machine._alert_evaluator._conditions
        must(Rule.BOUNDED, len(raised) <= _ALERTS + 3 * gpus + 2 * len(workers), "alerts:", raised)
        must(Rule.BOUNDED, len(conditions) <= _ALERTS + 2 * gpus + 2 * len(workers), "conditions:", conditions)
        must(Rule.BOUNDED, len(machine._alert_evaluator._past) <= _STEPS + 2, "what was counted in the last minutes")
        for worker in workers.values():
            self._look_at(worker)
        series = sum(len(family.samples) for family in machine.measure())
        must(Rule.BOUNDED, series <= _SERIES + 13 * gpus + 5 * len(workers) + len(raised), series, "series of metrics")
        for job in job_table.live.values():
            must(Rule.BOUNDED, len(job.subscribers) <= MAX_SUBSCRIBERS, job.id, "is heard by too many")

    def _look_at(self, worker: Any) -> None:
        process = worker.process
        live = self._job_table.live
        suspended = [live[id] for id in process.suspended if id in live]
        # An engine of several slots keeps the half of a segment that it has made of each.
        held = [job for job in suspended if job.pieces is None or (process.shares and job.attempt.gave_way)]
        must(Rule.BOUNDED, len(held) <= MAX_SUSPENDED, worker.name, "has suspended", process.suspended)
        at_hand = len(process.at_hand)
        must(Rule.BOUNDED, at_hand <= process.slots + AHEAD, worker.name, "has", len(process.jobs), "jobs")
        must(Rule.BOUNDED, set(process.moved) <= set(process.jobs), worker.name, "watches jobs that it does not have")
        must(Rule.BOUNDED, len(process.busy_vram) <= 3, worker.name, "keeps samples")
        for series in process.watch._series.values():
            must(Rule.BOUNDED, len(series._scales) <= 12, worker.name, "keeps scales")
            points = max((len(scale.values) for scale in series._scales), default=0)
            must(Rule.BOUNDED, points <= POINTS, worker.name, "keeps", points, "points")
