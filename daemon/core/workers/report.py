"""A worker as operators see it: in the answer to ``workers`` and on the events socket."""

from __future__ import annotations

from typing import Any

from ..context import Context
from .worker import Worker, WorkerState


def describe(worker: Worker, context: Context) -> dict[str, Any]:
    """Everything about a worker; sizes in bytes, None where unknown."""
    now = context.now
    death = worker.doom if worker.state is WorkerState.FAILED else worker.last_death
    backoff = context.timers.due(("backoff", worker.name))
    trend = worker.watch.trend
    reason = worker.reason or (worker.leaving.detail if worker.leaving else "")
    return {
        "name": worker.name,
        "state": worker.state.value,
        "pid": worker.pid,
        "gpu": worker.gpu,
        "jobs": list(worker.jobs),
        "suspended": list(worker.aside),
        "jobs_done": worker.jobs_done_in_all,
        "jobs_since_start": worker.jobs_done,
        "restarts": worker.restarts,
        "age_s": round(now - worker.spawned_at, 3) if worker.has_process else None,
        "load_s": round(worker.ready.load_s, 3) if worker.ready else None,
        "rss": worker.memory.rss if worker.memory else None,
        "vram": worker.share.vram,
        "vram_trust": worker.share.trust,
        "torch_allocated": worker.memory.torch_allocated if worker.memory else None,
        "torch_reserved": worker.memory.torch_reserved if worker.memory else None,
        "trend": trend.words if trend else "",
        "trend_mib_per_job": _mib_per_job(worker),
        "last_death": death and {"cause": death.cause.value, "detail": death.detail, "ago_s": round(now - death.at, 3)},
        "backoff_s": None if backoff is None else round(backoff - now, 3),
        "reason": reason,
        "replaces": worker.replaces,
        "process_state": worker.process_state,
    }


def memory_of(worker: Worker) -> dict[str, Any]:
    """The memory of its process."""
    return {
        "name": worker.name,
        "pid": worker.pid,
        "rss": worker.memory.rss if worker.memory else None,
        "vram": worker.share.vram,
        "vram_trust": worker.share.trust,
        "trend_mib_per_job": _mib_per_job(worker),
        "jobs_since_start": worker.jobs_done,
    }


def _mib_per_job(worker: Worker) -> float | None:
    trend = worker.watch.trend
    return round(trend.per_job / (1 << 20), 3) if trend else None
