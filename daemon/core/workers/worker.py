"""A worker and its states.

::

    starting -> ready <-> busy
        |         |        |
        |         +--------+--> draining -> stopping -> (gone, stopped, waiting)
        `---------+--------`--> failed -> backoff -> (gone, stopped, waiting)

    waiting -> starting       waiting: for the end of the step, for free memory of its GPU, or for the circuit breaker

A worker is a place with a name, in which one process follows another. Messages of a process are ignored once its worker
has failed.
"""

from __future__ import annotations

import enum

from msgspec import Struct, field

from ..jobs.job import IllegalTransition
from .process import ExitReason, Process


class WorkerState(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    BACKOFF = "backoff"
    WAITING = "waiting"
    STOPPED = "stopped"


_S = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.FAILED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.WAITING, _S.STOPPED}),
    _S.FAILED: frozenset({_S.BACKOFF, _S.STOPPED}),
    _S.BACKOFF: frozenset({_S.WAITING, _S.STOPPED}),
    _S.WAITING: frozenset({_S.STARTING, _S.STOPPED}),
    _S.STOPPED: frozenset({_S.WAITING}),
}

#: States of a worker that has a process.
WITH_PROCESS = frozenset({_S.STARTING, _S.READY, _S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED})
#: States in which a worker becomes ready by itself, so that no other need be started in its place.
COMING = frozenset({_S.STARTING, _S.STOPPING, _S.FAILED, _S.BACKOFF, _S.WAITING, _S.STOPPED})
SERVING = frozenset({_S.READY, _S.BUSY})
#: States in which a process may work on jobs.
WORKING = frozenset({_S.BUSY, _S.DRAINING})


def maker(worker: Worker) -> tuple[str, str] | None:
    """The engine and its version, which together repeat a job's bytes; None if the engine does not repeat.

    An engine of which the bytes depend on its slots names them in its version.
    """
    ready = worker.process.ready
    return (ready.engine, ready.engine_version) if ready is not None and ready.repeats else None


class Worker(Struct, kw_only=True):
    """A place for one process at a time, and the history of the processes that were there."""

    name: str
    gpu: int | None
    state: WorkerState = WorkerState.STOPPED
    process: Process = field(default_factory=Process)
    #: The worker in whose place this one, a spare, is loaded.
    replaces: str | None = None
    #: The place goes away with its process.
    retiring: bool = False
    #: Its process is being replaced without a spare, until the next one is ready.
    replaced_in_place: bool = False
    #: Why it waits, and since when.
    reason: str = ""
    waits_since: float = 0.0
    #: Jobs that were spoken here, and processes that were started again.
    jobs_done: int = 0
    restarts: int = 0
    #: Faults in a row, each of a process that had done no job and was ready for less than ``backoff_max_s``.
    faults: int = 0
    last_exit: ExitReason | None = None
    #: The most jobs at once of its next process, since one ran out of memory that several jobs shared; 0: no limit.
    most_slots: int = 0

    def enter(self, state: WorkerState) -> None:
        """Change the state. Raises IllegalTransition, and changes nothing, where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"worker {self.name}: {self.state} -> {state}")
        self.state = state

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs of its process."""
        return self.process.jobs

    @property
    def incarnation(self) -> int:
        """The number of its process; 0 without one."""
        return self.process.incarnation

    @property
    def fresh(self) -> bool:
        """Whether its process is ready and has had no job."""
        return self.state is WorkerState.READY and not self.process.jobs_taken

    @property
    def has_process(self) -> bool:
        return self.state in WITH_PROCESS

    @property
    def serving(self) -> bool:
        """Whether it can speak, now or after its present job."""
        return self.state in SERVING

    @property
    def exit_reason(self) -> ExitReason | None:
        """Why its process has failed, or its last one ended."""
        return self.process.exit_reason if self.state is WorkerState.FAILED else self.last_exit

    def moved_at(self, now: float) -> float:
        """When the slowest of its running jobs last made progress; ``now`` without one."""
        if self.state not in WORKING:
            return now
        return min((at for at, _ in self.process.moved.values()), default=now)
