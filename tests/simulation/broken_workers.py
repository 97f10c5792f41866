"""Cores whose workers are wrong: where and when processes start, and when they are replaced."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core.effects import Sample
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.workers.autoscaler import Autoscaler
from glmtts.daemon.core.workers.circuit_breaker import CircuitBreaker
from glmtts.daemon.core.workers.gpus import Gpus
from glmtts.daemon.core.workers.pool import Pool
from glmtts.daemon.core.workers.process import ExitReason
from glmtts.daemon.core.workers.recycler import Recycler
from glmtts.daemon.core.workers.restart_policy import RestartPolicy
from glmtts.daemon.core.workers.worker import Worker, WorkerState

Patch = pytest.MonkeyPatch


# --- 4: places, and room


def two_processes_in_one_place(patch: Patch) -> None:
    stop = Pool._stop

    def spare(self: Pool, worker: Worker) -> None:
        stop(self, worker)
        if not self.stopping:
            worker.state = WorkerState.WAITING
            self._start(worker)

    patch.setattr(Pool, "_stop", spare)


def started_without_room(patch: Patch) -> None:
    patch.setattr(Gpus, "obstacle", lambda *_: "")


def started_before_memory_is_back(patch: Patch) -> None:
    patch.setattr(Gpus, "ended", lambda *_: None)


def those_that_load_not_counted(patch: Patch) -> None:
    def free(self: Gpus, index: int, workers: Any) -> int | None:  # noqa: ARG001
        gpu = self._gpus.get(index)
        return gpu.reading.free if gpu is not None and gpu.reading.state == "ok" else None

    patch.setattr(Gpus, "free", free)


def more_workers_than_may_be(patch: Patch) -> None:
    patch.setattr(Autoscaler, "_counted", lambda self: [w for w in self._pool if not w.retiring and w.replaces is None])


# --- 8: restarts


def restarted_without_a_pause(patch: Patch) -> None:
    def at_once(self: Pool, worker: Worker) -> None:
        worker.enter(WorkerState.BACKOFF)
        self._await_start(worker)

    patch.setattr(Pool, "_back_off", at_once)


def breaker_never_opens(patch: Patch) -> None:
    patch.setattr(CircuitBreaker, "fault", lambda *_: False)


def breaker_is_not_asked(patch: Patch) -> None:
    patch.setattr(RestartPolicy, "obstacle", lambda *_: "")


def samples_ask_for_samples(patch: Patch) -> None:
    on_sampled = Machine._on_sampled

    def again(self: Machine, event: Any) -> None:
        on_sampled(self, event)
        if any(worker.state is WorkerState.WAITING for worker in self.state.pool):
            self._context.effects.append(Sample())

    patch.setattr(Machine, "_on_sampled", again)


def recycles_count_as_faults(patch: Patch) -> None:
    ended = RestartPolicy.ended

    def all_of_them(self: RestartPolicy, worker: Worker, reason: ExitReason, *, faulty: bool) -> None:  # noqa: ARG001
        ended(self, worker, reason, faulty=True)

    patch.setattr(RestartPolicy, "ended", all_of_them)


# --- beside them


def leaks_not_seen(patch: Patch) -> None:
    patch.setattr(Recycler, "_judge_idle", lambda *_, **__: None)


def recycled_without_a_spare(patch: Patch) -> None:
    patch.setattr(Gpus, "spare_fits", lambda *_: False)


def processes_never_forgotten(patch: Patch) -> None:
    on_ended = Pool.on_ended

    def remembered(self: Pool, incarnation: int, *rest: Any, **keys: Any) -> Any:
        worker = self._by_incarnation.get(incarnation)
        ended = on_ended(self, incarnation, *rest, **keys)
        if worker is not None:
            self._by_incarnation[-incarnation] = worker
        return ended

    patch.setattr(Pool, "on_ended", remembered)
