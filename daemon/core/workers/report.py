"""A worker as operators see it: in the answer to ``workers`` and on the events socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..context import Context
from .worker import Worker


def describe(worker: Worker, context: Context) -> dict[str, Any]:
    """Everything about a worker; sizes in bytes, None where unknown."""
    now, process = context.now, worker.process
    memory, ended = process.memory, worker.exit_reason
    backoff = context.timers.due(("backoff", worker.name))
    trend = process.watch.trend
    fewer = f"takes {worker.most_slots} at once since it ran out of memory" if worker.most_slots else ""
    replaced = process.replace_reason.detail if process.replace_reason else ""
    return {
        "name": worker.name,
        "state": worker.state.value,
        "pid": process.pid,
        "gpu": worker.gpu,
        "jobs": list(process.jobs),
        "suspended": list(process.suspended),
        "slots": process.ready.slots if process.ready else None,
        "jobs_done": worker.jobs_done,
        "jobs_since_start": process.jobs_done,
        "restarts": worker.restarts,
        "age_s": round(now - process.started_at, 3) if worker.has_process else None,
        "load_s": round(process.ready.load_s, 3) if process.ready else None,
        "confined": process.ready.confined if process.ready else None,
        "experimental": process.ready.experimental if process.ready else None,
        "rss": memory.rss if memory else None,
        "vram": process.share.vram,
        "vram_trust": process.share.trust,
        "torch_allocated": memory.torch_allocated if memory else None,
        "torch_reserved": memory.torch_reserved if memory else None,
        "trend": trend.words if trend else "",
        "trend_mib_per_job": round(trend.per_job / (1 << 20), 3) if trend else None,
        "last_death": ended and {"cause": ended.cause.value, "detail": ended.detail, "ago_s": round(now - ended.at, 3)},
        "backoff_s": None if backoff is None else round(backoff - now, 3),
        "reason": worker.reason or process.stuck or replaced or fewer,
        "replaces": worker.replaces,
        "process_state": process.process_state,
    }


#: The figures of ``describe`` that the events socket has with each sample.
_MEMORY = ("name", "pid", "rss", "vram", "vram_trust", "trend_mib_per_job", "jobs_since_start")


def publish_memory(workers: Iterable[Worker], context: Context) -> None:
    """Publish the memory of each process."""
    if context.watched:
        for worker in workers:
            if worker.process.pid is not None:
                described = describe(worker, context)
                context.publish("worker.memory", **{name: described[name] for name in _MEMORY})
