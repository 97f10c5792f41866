"""When a worker that has failed may start again: backoff for each worker, a circuit breaker over all of them."""

from __future__ import annotations

from collections.abc import Iterable

from ..alerts import Alerts
from ..context import Context
from ..exit_causes import Cause
from .circuit_breaker import BreakerState, CircuitBreaker
from .process import ExitReason
from .worker import Worker, WorkerState


class RestartPolicy:
    """Owns the circuit breaker, and the worker that is its probe while it is half open."""

    def __init__(self, context: Context, alerts: Alerts) -> None:
        self._context = context
        self._alerts = alerts
        self.circuit_breaker = CircuitBreaker()
        self._probe = ""

    def obstacle(self, worker: Worker) -> str:
        """Why the breaker keeps this worker from starting, or ``""``."""
        # A worker that was replaced in good order, or is new, is not held up by the faults of others.
        state = self.circuit_breaker.state
        if not worker.faults or state is BreakerState.CLOSED:
            return ""
        if state is BreakerState.OPEN:
            return "too many workers failed; one of them is tried again after a pause"
        return f"too many workers failed; {self._probe} is tried first" if self._probe not in ("", worker.name) else ""

    def started(self, worker: Worker) -> None:
        """A process starts: it may be the probe."""
        if worker.faults and self.circuit_breaker.state is BreakerState.HALF_OPEN:
            self._probe = worker.name

    def forget(self, worker: Worker) -> None:
        """The worker is gone, or its attempt is over: another may be the probe."""
        if self._probe == worker.name:
            self._probe = ""

    def ended(self, worker: Worker, reason: ExitReason, *, faulty: bool) -> None:
        """A process has ended. A fault makes the next start wait, and may open the breaker."""
        if not faulty:
            return
        now, restart, process = self._context.now, self._context.settings.workers.restart, worker.process
        # A process that did its work was no false start, nor was one that lived long without any.
        steady = process.ready and (process.jobs_done or now - process.ready_at >= restart.backoff_max_s)
        worker.faults = 1 if steady else worker.faults + 1
        self.forget(worker)
        loading = process.started_at, process.ready_at if process.ready else now
        if self.circuit_breaker.fault(now, restart.breaker_failures, restart.breaker_window_s, loading):
            self._context.timers.set(("breaker", ""), now + self._pause_s(self.circuit_breaker.openings))
            self._alerts.set(
                "breaker_open",
                f"workers keep failing ({self.circuit_breaker.faults} faults in {restart.breaker_window_s:g} s, time "
                f"for loading excluded, and no job spoken between them); the last one: {reason.detail}",
            )

    def start_anew(self, workers: Iterable[Worker]) -> None:
        """Settings have changed that processes are started with: workers that failed by the old ones start at once."""
        for worker in workers:
            worker.faults = worker.most_slots = 0
            if worker.state is WorkerState.BACKOFF:
                self._context.timers.set(("backoff", worker.name), self._context.now)

    def delay_s(self, worker: Worker) -> float:
        """Seconds before a failed worker starts again: none after the first fault, ever more after further ones."""
        # A spare that did not fit waits until the recycler has decided whether there shall be one.
        did_not_fit = worker.last_exit is not None and worker.last_exit.cause in (Cause.OUT_OF_MEMORY, Cause.HOST_OOM)
        if worker.faults > 1 or (worker.replaces and did_not_fit):
            return self._pause_s(max(1, worker.faults - 1))
        return 0.0

    def _pause_s(self, times: int) -> float:
        """Doubled with each failed attempt, and spread so that several don't start at once."""
        restart = self._context.settings.workers.restart
        delay = min(restart.backoff_max_s, restart.backoff_initial_s * 2.0 ** min(times - 1, 30))
        return delay * (0.75 + 0.5 * self._context.random.random())

    def on_steady(self, worker: Worker) -> None:
        """A worker has been ready for long since the breaker opened, with or without a job."""
        if worker.serving:
            self.proved()

    def proved(self) -> None:
        """A worker has shown that it works: the breaker closes."""
        if self.circuit_breaker.proof():
            self._probe = ""
            self._context.timers.cancel(("breaker", ""))
            self._alerts.set("breaker_open", "")
            self._context.jobs_dirty = self._context.workers_dirty = True
