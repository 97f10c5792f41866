"""Whether anybody can speak in the near future; and if not, why, and when it is worth asking again."""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from glmtts.protocol.worker import Ready

from ..context import Context
from .circuit_breaker import BreakerState, CircuitBreaker
from .gpus import Gpus
from .worker import Worker, WorkerState

#: For so long a worker may wait for memory before requests are refused for it, and until they may come again.
_PATIENCE_S = 10.0
#: Characters of a worker's last words that clients are told; operators see all of them (``glmttsctl workers``).
_MOST_WORDS = 300
#: States of a process that ends in good order, in whose place another one is started.
_RETURNING = frozenset({WorkerState.DRAINING, WorkerState.STOPPING})


def unavailable(
    workers: Collection[Worker], *, context: Context, circuit_breaker: CircuitBreaker, gpus: Gpus, engine: Ready | None
) -> tuple[str, float] | None:
    """Why no worker can be had, and in how many seconds it is worth asking again; None if one can.

    ``engine``: what the last process that was ready said; how long it took to load.
    """
    if any(worker.serving or _is_coming(worker) for worker in workers):
        return None
    if circuit_breaker.state is not BreakerState.CLOSED:
        deaths = [worker.last_death for worker in workers if worker.last_death]
        last = max(deaths, key=lambda death: death.at).detail if deaths else "?"
        last = textwrap.shorten(last, _MOST_WORDS, placeholder=" ...")
        reason = f"no worker can be kept alive ({circuit_breaker.faults} faults in a row); the last one: {last}"
        return reason, _next_attempt_s(workers, context, engine)
    waiting = [
        worker
        for worker in workers
        if worker.state is WorkerState.WAITING
        and (context.now - worker.waits_since >= _PATIENCE_S or gpus.is_lost(worker.gpu))
    ]
    if waiting and len(waiting) == sum(not worker.stuck for worker in workers):
        return f"no worker can be started: {waiting[0].reason}", _PATIENCE_S
    return None


def _is_coming(worker: Worker) -> bool:
    """Whether it is being replaced in good order, or started for the first time: then it will be there soon."""
    if worker.state is WorkerState.STARTING:
        return not worker.faults
    return worker.state in _RETURNING and not worker.retiring and not worker.stuck


def _next_attempt_s(workers: Collection[Worker], context: Context, engine: Ready | None) -> float:
    """Seconds until a worker that is tried next may be ready."""
    now, timers = context.now, context.timers
    backoffs = [due for w in workers if (due := timers.due(("backoff", w.name))) is not None]
    due = max(timers.due(("breaker", "")) or now, min(backoffs, default=now))
    loads_s = engine.load_s + engine.warmup_s if engine else 0.0
    return max(0.1, due - now + loads_s)
