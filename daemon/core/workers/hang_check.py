"""Whether a worker hangs: a job makes no progress, or makes far more of it than its engine expected."""

from __future__ import annotations

from ..context import Context
from ..exit_causes import Cause
from .pool import Pool
from .worker import WORKING, Worker

#: A job that has made this many times the units that its engine expected will not end.
_RUNAWAY = 20


def check(pool: Pool, context: Context, worker: Worker) -> bool:
    """Fail a process in which a begun job has made no progress for ``hang_timeout_s``; returns whether it did.

    One that moves is checked again when it would be due.
    """
    if worker.state not in WORKING or not worker.process.moved:
        return False
    timeout, moved_at = context.settings.workers.hang_timeout_s, worker.moved_at(context.now)
    if context.now < moved_at + timeout:
        pool.timers.set(worker, "hang", timeout, moved_at)
        return False
    pool.fail(worker, Cause.HUNG, f"no progress for {timeout:g} s")
    return True


def stalled(context: Context, worker: Worker) -> list[str]:
    """The jobs without progress for long; all of them, if the whole process stands still."""
    since = context.now - context.settings.workers.hang_timeout_s / 2
    return [job for job, (at, _) in worker.process.moved.items() if at <= since]


def check_runaway(pool: Pool, worker: Worker, done: int, expected: int | None) -> bool:
    """Fail a process whose job has gone far beyond the units that its engine expected: it will not end.

    Returns whether it did.
    """
    # A process that is ending already may still be at a cancelled job.
    if worker.state not in WORKING or not expected or done <= _RUNAWAY * expected:
        return False
    pool.fail(worker, Cause.HUNG, f"no end in sight: made {done:,} units where about {expected:,} were expected")
    return True
