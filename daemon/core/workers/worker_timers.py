"""Sets and cancels each worker's timers. Their times come from ``[workers]``, where 0 means never."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..context import Context
from .worker import Worker

#: Timers of one process. All but the first end with its failure.
_OF_PROCESS = ("kill", "start", "age", "trim", "hang", "unload", "steady", "texts")


class WorkerTimers:
    """Sets and cancels timers by worker and purpose; a process leaves none behind."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def set(self, worker: Worker, purpose: str, after_s: float, since: float | None = None) -> None:
        """Set a timer for ``after_s`` seconds from now, or from ``since``; 0 sets none."""
        if after_s:
            self._context.timers.set((purpose, worker.name), (self._context.now if since is None else since) + after_s)

    def cancel(self, worker: Worker, *purposes: str) -> None:
        for purpose in purposes:
            self._context.timers.cancel((purpose, worker.name))

    def ready(self, worker: Worker) -> None:
        """The process has loaded its model."""
        workers = self._context.settings.workers
        self.cancel(worker, "start")
        self.set(worker, "age", workers.recycle.max_age_s, worker.process.ready_at)
        self.set(worker, "unload", workers.idle_unload_s)

    def idle(self, worker: Worker) -> None:
        """The process has no job."""
        workers = self._context.settings.workers
        for purpose, after_s in (("trim", workers.recycle.idle_trim_s), ("unload", workers.idle_unload_s)):
            if (purpose, worker.name) not in self._context.timers:
                self.set(worker, purpose, after_s)

    def watch(self, worker: Worker) -> None:
        """The process has begun a job, which must make progress."""
        if worker.process.moved and ("hang", worker.name) not in self._context.timers:
            self.set(worker, "hang", self._context.settings.workers.hang_timeout_s)

    def going(self, worker: Worker, *, at_most_s: float = math.inf) -> None:
        """The process was asked to end, and is killed if it does not."""
        self.cancel(worker, *_OF_PROCESS[1:])
        self.kill(worker, at_most_s)

    def kill(self, worker: Worker, at_most_s: float = math.inf) -> None:
        """Kill the process after ``stop_timeout_s``, or ``at_most_s`` seconds."""
        self.set(worker, "kill", min(self._context.settings.workers.stop_timeout_s, at_most_s))

    def gone(self, worker: Worker) -> None:
        """The process has ended."""
        self.cancel(worker, *_OF_PROCESS)

    def apply(self, workers: Iterable[Worker]) -> None:
        """The settings have changed: move the timers that were set by the old ones."""
        settings, timers, now = self._context.settings.workers, self._context.timers, self._context.now
        keys = [("breaker", "")]
        for worker in workers:
            keys.append(("backoff", worker.name))
            if ("start", worker.name) in timers:
                self.set(worker, "start", settings.start_timeout_s, worker.process.started_at)
            if ("hang", worker.name) in timers:
                self.set(worker, "hang", settings.hang_timeout_s, worker.moved_at(now))
            self.cancel(worker, "age", "trim", "unload")
            if worker.serving:
                self.ready(worker)
                if not worker.process.trimmed:
                    self.set(worker, "trim", settings.recycle.idle_trim_s)
        for key in keys:
            if (due := timers.due(key)) is not None:
                timers.set(key, min(due, now + settings.restart.backoff_max_s))
