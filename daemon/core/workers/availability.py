"""Whether a worker will be available soon; and if not, why, and when clients should retry."""

from __future__ import annotations

import textwrap
from collections.abc import Collection

from glmtts.protocol.worker import Ready

from ..context import Context
from .circuit_breaker import BreakerState, CircuitBreaker
from .gpus import Gpus
from .worker import Worker, WorkerState

#: A worker may wait this long for memory before requests are refused; they may be retried after as long.
_PATIENCE_S = 10.0
#: Characters of the detail of an exit in errors to clients; operators see all of it (``glmttsctl workers``).
_MOST_WORDS = 300
#: States of a process that ends in good order and is followed by another.
_RETURNING = frozenset({WorkerState.DRAINING, WorkerState.STOPPING})


def unavailable(
    workers: Collection[Worker], context: Context, circuit_breaker: CircuitBreaker, gpus: Gpus, engine: Ready | None
) -> tuple[str, float] | None:
    """Why no worker will be available soon, and after how many seconds clients should retry; None if one will.

    ``engine``: the Ready message of the last loaded process, which has its load time.
    """
    if any(worker.serving or _is_coming(worker) for worker in workers):
        return None
    if circuit_breaker.state is not BreakerState.CLOSED:
        exits = [worker.last_exit for worker in workers if worker.last_exit]
        last = max(exits, key=lambda reason: reason.at).detail if exits else "?"
        last = textwrap.shorten(last, _MOST_WORDS, placeholder=" ...")
        reason = f"all workers keep crashing ({circuit_breaker.faults} faults in a row); the last one: {last}"
        return reason, _next_attempt_s(workers, context, engine)
    waiting = [
        worker
        for worker in workers
        if worker.state is WorkerState.WAITING
        and (context.now - worker.waits_since >= _PATIENCE_S or gpus.is_lost(worker.gpu))
    ]
    if waiting and len(waiting) == sum(not worker.process.stuck for worker in workers):
        return f"no worker can be started: {waiting[0].reason}", _PATIENCE_S
    return None


def _is_coming(worker: Worker) -> bool:
    """Whether it is being replaced in good order, or started for the first time: it will be ready soon."""
    if worker.state is WorkerState.STARTING:
        return not worker.faults
    return worker.state in _RETURNING and not worker.retiring and not worker.process.stuck


def _next_attempt_s(workers: Collection[Worker], context: Context, engine: Ready | None) -> float:
    """Seconds until the worker of the next attempt may be ready."""
    now, timers = context.now, context.timers
    backoffs = [due for w in workers if (due := timers.due(("backoff", w.name))) is not None]
    due = max(timers.due(("breaker", "")) or now, min(backoffs, default=now))
    loads_s = engine.load_s + engine.warmup_s if engine else 0.0
    return max(0.1, due - now + loads_s)
