"""The workers: their states, their processes' lives and deaths, and when they are started again.

::

    starting -> ready <-> busy
        |         |        |
        |         +--------+--> draining -> stopping -> (starting, stopped)
        `---------+--------`--> failed -> backoff -> starting

A worker is a place with a name; processes come and go in it, each called by the number of its spawn. What a process
says after its worker has failed is not heard any more.
"""

from __future__ import annotations

import enum
import math
import signal
from typing import Any

from msgspec import Struct

from glmtts.protocol.events import Voice
from glmtts.protocol.worker import Memory, Ready, StopWorker, Trim

from .context import Context
from .effects import Signal, Spawn, Tell
from .jobs import IllegalTransition

#: How long a process that is given up on may take to end after SIGTERM, if stop_timeout_s is not shorter.
_GRACE_S = 1.0
#: How many jobs may lie ready in the only worker behind those that it has begun, while jobs are brief.
AHEAD = 3


class WorkerState(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"
    BACKOFF = "backoff"
    STOPPED = "stopped"


_S = WorkerState
TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.FAILED}),
    _S.READY: frozenset({_S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.BUSY: frozenset({_S.READY, _S.DRAINING, _S.STOPPING, _S.FAILED}),
    _S.DRAINING: frozenset({_S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STARTING, _S.STOPPED}),
    _S.FAILED: frozenset({_S.BACKOFF, _S.STOPPED}),
    _S.BACKOFF: frozenset({_S.STARTING, _S.STOPPED}),
    _S.STOPPED: frozenset({_S.STARTING}),
}

#: States in which the worker holds a process.
WITH_PROCESS = frozenset({_S.STARTING, _S.READY, _S.BUSY, _S.DRAINING, _S.STOPPING, _S.FAILED})


class Cause(enum.StrEnum):
    """What a process died of."""

    REQUESTED = "requested"
    RECYCLED = "recycled"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    PROTOCOL = "protocol"
    START_TIMEOUT = "start_timeout"
    START_FAILED = "start_failed"


class Death(Struct, frozen=True):
    """The end of a process: its cause, the cause in words, and when."""

    cause: Cause
    detail: str
    at: float


class Worker(Struct, kw_only=True):
    """A place for one process at a time."""

    name: str
    gpu: int | None
    state: WorkerState = WorkerState.STOPPED
    spawn: int = 0
    pid: int | None = None
    ready: Ready | None = None
    #: Ids of the jobs that the process has, in the order in which it takes them on; those included that were cancelled
    #: and are not given back yet. The first ``slots`` are begun, any others lie ready in it.
    jobs: list[str] = []
    #: Why the process is about to end, when we know before it does.
    doom: Death | None = None
    spawned_at: float = 0.0
    ready_at: float = 0.0
    beat_at: float = 0.0
    idle_since: float = 0.0
    trimmed: bool = False
    jobs_done: int = 0
    jobs_done_in_all: int = 0
    restarts: int = 0
    #: Faults in a row, each of a process that had done no job and was ready for less than ``backoff_max_s``.
    faults: int = 0
    #: Processes in a row that died before they were ready.
    start_failures: int = 0
    last_death: Death | None = None
    memory: Memory | None = None

    def enter(self, state: WorkerState) -> None:
        """Change the state. Raises IllegalTransition, and changes nothing, where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"worker {self.name}: {self.state} -> {state}")
        self.state = state


class Pool:
    """All workers of the daemon. It decides on processes; which job goes where is the dispatcher's."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.workers: dict[str, Worker] = {}
        self._by_spawn: dict[int, Worker] = {}
        self._spawns = 0
        self._stopping = False
        #: What the engine said when a process of it was ready for the last time.
        self.engine: Ready | None = None
        #: Names of the engine's own voices, as far as they are known yet.
        self.own_voices: frozenset[str] = frozenset()

    # --- what others ask

    def by_spawn(self, spawn: int) -> Worker | None:
        """The worker whose present process this is; None for one that is not heard any more."""
        worker = self._by_spawn.get(spawn)
        return worker if worker is not None and worker.state is not WorkerState.FAILED else None

    def free(self, *, brief: bool = False) -> Worker | None:
        """A worker that can take a job now.

        ``brief``: jobs take no longer than handing them over does. Then the only worker may have some lie ready, so
        that it need not wait for each; nobody else could have begun them earlier.
        """
        ahead = AHEAD if brief and len(self.workers) == 1 else 0
        for worker in self.workers.values():
            if worker.state is WorkerState.READY:
                return worker
            if worker.state is WorkerState.BUSY and worker.ready and len(worker.jobs) < worker.ready.slots + ahead:
                return worker
        return None

    @property
    def serving(self) -> int:
        """How many workers can speak, now or after their present job."""
        return sum(worker.state in (WorkerState.READY, WorkerState.BUSY) for worker in self.workers.values())

    @property
    def empty(self) -> bool:
        """Whether no process is left."""
        return not any(worker.state in WITH_PROCESS for worker in self.workers.values())

    @property
    def voices(self) -> list[Voice]:
        """The engine's own voices, as far as they are known yet."""
        return self.engine.voices if self.engine else []

    def unavailable(self) -> tuple[str, float] | None:
        """Why no worker can be had in the near future, and when the next attempt is; None if one can."""
        # A worker that is being recycled, or failed for the first time, will be there soon, whatever the others do.
        enough = self._context.settings.workers.restart.breaker_failures
        if any(worker.start_failures < enough for worker in self.workers.values()):
            return None
        deaths = [worker.last_death for worker in self.workers.values() if worker.last_death]
        last = max(deaths, key=lambda death: death.at)
        if self._context.now - last.at > self._context.settings.workers.restart.breaker_window_s:
            return None  # the attempt at hand has lasted for longer than those that failed: it may be the one
        again = min(
            (
                due - self._context.now
                for worker in self.workers.values()
                if (due := self._context.timers.due(("backoff", worker.name))) is not None
            ),
            default=1.0,
        )
        attempts = sum(worker.start_failures for worker in self.workers.values())
        reason = f"no worker can be started ({attempts} attempts in a row failed); the last one: {last.detail}"
        return reason, max(0.1, again)

    def counts(self) -> dict[str, int]:
        """How many workers there are by state."""
        states = [worker.state for worker in self.workers.values()]
        return {"total": len(states)} | {state.value: states.count(state) for state in WorkerState if state in states}

    # --- lives

    def open(self, places: list[int | None]) -> None:
        """Make the workers, one for each place (a GPU's index, or None), and start them."""
        for number, gpu in enumerate(places):
            worker = Worker(name=f"w{number}", gpu=gpu)
            self.workers[worker.name] = worker
            self._start(worker)

    def _start(self, worker: Worker) -> None:
        worker.enter(WorkerState.STARTING)  # STOPPED, STOPPING or BACKOFF -> STARTING
        self._spawns += 1
        worker.spawn = self._spawns
        worker.pid = None
        worker.ready = None
        worker.doom = None
        worker.jobs = []
        worker.jobs_done = 0
        worker.memory = None
        worker.spawned_at = self._context.now
        self._by_spawn[worker.spawn] = worker
        self._context.timers.set(
            ("start", worker.name), self._context.now + self._context.settings.workers.start_timeout_s
        )
        self._context.effects.append(Spawn(worker.spawn, worker.name, worker.gpu))
        self._tell_state(worker)

    def on_spawned(self, spawn: int, pid: int) -> None:
        """The process runs; it still has to load its model."""
        if worker := self._by_spawn.get(spawn):
            worker.pid = pid
            self._context.log("info", "worker started", worker=worker.name, pid=pid)

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """The process has loaded its model and is warm."""
        if worker.state is not WorkerState.STARTING:
            return
        worker.enter(WorkerState.READY)
        now = self._context.now
        worker.ready = self.engine = ready
        self.own_voices = frozenset(voice.name for voice in ready.voices)
        worker.memory = ready.memory
        worker.ready_at = worker.idle_since = now
        worker.trimmed = True
        worker.start_failures = 0
        self._context.timers.cancel(("start", worker.name))
        if self._context.settings.workers.recycle.max_age_s:
            self._context.timers.set(("age", worker.name), now + self._context.settings.workers.recycle.max_age_s)
        self._context.log(
            "info",
            "worker ready",
            worker=worker.name,
            pid=worker.pid,
            after_s=round(now - worker.spawned_at, 3),
            load_s=ready.load_s,
            warmup_s=ready.warmup_s,
        )
        self._tell_state(worker)

    def take(self, worker: Worker, job: str) -> bool:
        """The worker gets a job; returns whether it begins it at once."""
        if worker.state is WorkerState.READY:
            worker.enter(WorkerState.BUSY)
        worker.jobs.append(job)
        worker.beat_at = self._context.now
        hang = ("hang", worker.name)
        if hang not in self._context.timers:
            self._context.timers.set(hang, self._context.now + self._context.settings.workers.hang_timeout_s)
        return worker.ready is None or len(worker.jobs) <= worker.ready.slots

    def give_back(self, worker: Worker, job: str, memory: Memory | None, *, spoke: bool) -> list[str]:
        """The worker is through with a job; returns those that it now has begun."""
        worker.jobs.remove(job)
        if spoke:
            worker.jobs_done += 1
            worker.jobs_done_in_all += 1
        if memory is not None:
            worker.memory = memory
        worker.idle_since = self._context.now
        worker.trimmed = False
        if worker.state is WorkerState.BUSY and not worker.jobs:
            worker.enter(WorkerState.READY)
            trim, after = ("trim", worker.name), self._context.settings.workers.recycle.idle_trim_s
            if after and trim not in self._context.timers:
                self._context.timers.set(trim, self._context.now + after)
        if reason := self._worn_out(worker):
            self.recycle(worker, reason)
        elif worker.state is WorkerState.DRAINING and not worker.jobs:
            self._stop(worker)
        return worker.jobs[: worker.ready.slots] if worker.ready else []

    def _worn_out(self, worker: Worker) -> str:
        """Why the worker is to be recycled after this job, or ``""``."""
        recycle = self._context.settings.workers.recycle
        if worker.state not in (WorkerState.READY, WorkerState.BUSY):
            return ""
        if recycle.max_jobs and worker.jobs_done >= recycle.max_jobs:
            return f"spoke {worker.jobs_done} jobs, max_jobs is {recycle.max_jobs}"
        rss = worker.memory.rss >> 20 if worker.memory else 0
        if recycle.max_rss_mib and rss > recycle.max_rss_mib:
            return f"uses {rss} MiB of host memory, max_rss_mib is {recycle.max_rss_mib}"
        return ""

    def recycle(self, worker: Worker, reason: str) -> bool:
        """Replace the worker's process when its jobs are done; returns whether there was one to replace."""
        if worker.state not in (WorkerState.READY, WorkerState.BUSY):
            return False
        self._context.log("info", "worker is recycled", worker=worker.name, reason=reason)
        worker.doom = Death(Cause.RECYCLED, reason, self._context.now)
        worker.enter(WorkerState.DRAINING)
        if worker.jobs:
            self._tell_state(worker)
        else:
            self._stop(worker)
        return True

    def _stop(self, worker: Worker) -> None:
        """Ask the process to end: nothing of it is needed any more."""
        loading = worker.state is WorkerState.STARTING
        worker.enter(WorkerState.STOPPING)
        worker.doom = worker.doom or Death(Cause.REQUESTED, "the daemon stops", self._context.now)
        for purpose in ("start", "age", "trim", "hang"):
            self._context.timers.cancel((purpose, worker.name))
        if loading:
            # It would not read a message before its model is loaded, and there is nothing in it to lose.
            self._context.effects.append(Signal(worker.spawn, "kill"))
        else:
            self._context.effects.append(Tell(worker.spawn, StopWorker()))
        self._arm_kill(worker)
        self._tell_state(worker)

    def stop_all(self, *, at_once: bool) -> None:
        """End every process, by asking or by killing; none is started again."""
        self._stopping = True
        for worker in self.workers.values():
            if worker.state is WorkerState.BACKOFF:
                self._context.timers.cancel(("backoff", worker.name))
                worker.enter(WorkerState.STOPPED)
            elif worker.state in WITH_PROCESS:
                if at_once:
                    worker.doom = worker.doom or Death(Cause.REQUESTED, "the daemon stops at once", self._context.now)
                    self._context.effects.append(Signal(worker.spawn, "kill"))
                elif worker.state in (WorkerState.STARTING, WorkerState.READY, WorkerState.BUSY, WorkerState.DRAINING):
                    self._stop(worker)

    # --- deaths

    def fail(self, worker: Worker, cause: Cause, detail: str, *, patient: bool = False) -> tuple[Death, list[str]]:
        """The process must go: it is told to, then killed. Returns its death, and the jobs that it had.

        ``patient``: it said itself that it is about to end, and is given ``stop_timeout_s`` for it.
        """
        worker.enter(WorkerState.FAILED)
        worker.doom = Death(cause, detail, self._context.now)
        jobs, worker.jobs = worker.jobs, []
        for purpose in ("start", "age", "trim", "hang"):
            self._context.timers.cancel((purpose, worker.name))
        if patient:
            self._arm_kill(worker)
        else:
            # It is not waited for as for one that has work to finish: its place is needed.
            self._context.effects.append(Signal(worker.spawn, "term"))
            self._arm_kill(worker, at_most_s=_GRACE_S)
        self._context.log("warning", "worker failed", worker=worker.name, pid=worker.pid, cause=cause, detail=detail)
        self._tell_state(worker)
        return worker.doom, jobs

    def on_ended(self, spawn: int, returncode: int, last_words: str) -> tuple[Worker, Death, list[str]] | None:
        """A process is gone. Returns its worker, its death, and the jobs that it still had."""
        worker = self._by_spawn.pop(spawn, None)
        if worker is None:
            return None
        now = self._context.now
        for purpose in ("start", "age", "trim", "hang", "kill"):
            self._context.timers.cancel((purpose, worker.name))
        # While it drains it was not told to end yet: it died of something else than we had in mind for it.
        expected = worker.doom is not None and worker.state is not WorkerState.DRAINING
        death = (worker.doom if expected else None) or self._unexpected(worker, returncode, last_words)
        worker.last_death = death
        jobs, worker.jobs = worker.jobs, []
        was_ready = worker.ready is not None
        worker.pid = None
        if worker.state is WorkerState.STOPPING:
            self._after_stop(worker, death)
            return worker, death, jobs
        if worker.state is not WorkerState.FAILED:
            worker.enter(WorkerState.FAILED)
        if not expected:
            self._context.log("warning", "worker died", worker=worker.name, cause=death.cause, detail=death.detail)
        if not was_ready:
            worker.start_failures += 1
        # A process that did its work was no false start, nor one that lived for long without any.
        long_s = self._context.settings.workers.restart.backoff_max_s
        steady = was_ready and (worker.jobs_done > 0 or now - worker.ready_at >= long_s)
        worker.faults = 1 if steady else worker.faults + 1
        if self._stopping:
            worker.enter(WorkerState.STOPPED)
        else:
            self._back_off(worker)
        self._tell_state(worker)
        return worker, death, jobs

    def on_spawn_failed(self, spawn: int, reason: str) -> None:
        """There is no process: the interpreter is missing, or the system has no room for one more."""
        worker = self._by_spawn.get(spawn)
        if worker is not None:
            worker.doom = Death(Cause.START_FAILED, reason, self._context.now)
            self._context.log("error", "worker can't be started", worker=worker.name, detail=reason)
            self.on_ended(spawn, 127, "")

    def _unexpected(self, worker: Worker, returncode: int, last_words: str) -> Death:
        detail = describe_exit(returncode)
        if worker.ready is None:
            if last_words:
                detail = f"{detail} while it started: {last_words}"
            return Death(Cause.START_FAILED, detail, self._context.now)
        return Death(Cause.CRASHED, detail, self._context.now)

    def _after_stop(self, worker: Worker, death: Death) -> None:
        self._context.log("info", "worker stopped", worker=worker.name, reason=death.detail)
        if self._stopping:
            worker.enter(WorkerState.STOPPED)
            self._tell_state(worker)
        else:
            worker.restarts += 1
            self._start(worker)

    def _back_off(self, worker: Worker) -> None:
        """The first fault after a steady time is mended at once, further ones ever later, never all at one time."""
        restart = self._context.settings.workers.restart
        worker.enter(WorkerState.BACKOFF)
        delay = 0.0
        if worker.faults > 1:
            delay = min(restart.backoff_max_s, restart.backoff_initial_s * 2.0 ** min(worker.faults - 2, 30))
            delay *= 0.75 + 0.5 * self._context.random.random()
        worker.restarts += 1
        if delay:
            self._context.timers.set(("backoff", worker.name), self._context.now + delay)
            self._context.log("info", "worker is started again later", worker=worker.name, in_s=round(delay, 3))
        else:
            self._start(worker)

    def _arm_kill(self, worker: Worker, *, at_most_s: float = math.inf) -> None:
        after_s = min(self._context.settings.workers.stop_timeout_s, at_most_s)
        self._context.timers.set(("kill", worker.name), self._context.now + after_s)

    # --- timers

    def on_start_timeout(self, name: str) -> tuple[Death, list[str]]:
        """The model is not loaded in time."""
        timeout = self._context.settings.workers.start_timeout_s
        return self.fail(self.workers[name], Cause.START_TIMEOUT, f"not ready {timeout:g} s after its start")

    def on_hang_check(self, name: str) -> tuple[Death, list[str]] | None:
        """Look whether the worker's job has moved; if not for ``hang_timeout_s``, the process must go."""
        worker = self.workers[name]
        if not worker.jobs or worker.state not in (WorkerState.BUSY, WorkerState.DRAINING):
            return None
        timeout = self._context.settings.workers.hang_timeout_s
        if self._context.now < worker.beat_at + timeout:
            self._context.timers.set(("hang", name), worker.beat_at + timeout)
            return None
        return self.fail(worker, Cause.HUNG, f"no progress for {timeout:g} s")

    def on_kill_due(self, name: str) -> None:
        """It had its time to end by itself."""
        worker = self.workers[name]
        if worker.state in (WorkerState.STOPPING, WorkerState.FAILED):
            self._context.log("warning", "worker does not end and is killed", worker=name, pid=worker.pid)
            self._context.effects.append(Signal(worker.spawn, "kill"))
            self._arm_kill(worker)

    def on_backoff_over(self, name: str) -> None:
        """Try again."""
        worker = self.workers[name]
        if worker.state is WorkerState.BACKOFF and not self._stopping:
            self._start(worker)

    def on_age(self, name: str) -> None:
        """The process is as old as it may get."""
        self.recycle(self.workers[name], f"older than {self._context.settings.workers.recycle.max_age_s:g} s")

    def on_trim_check(self, name: str) -> None:
        """A worker that has been idle for long gives its cached memory back, once."""
        worker = self.workers[name]
        after = self._context.settings.workers.recycle.idle_trim_s
        if worker.state not in (WorkerState.READY, WorkerState.BUSY) or not after or worker.trimmed:
            return
        if worker.state is WorkerState.READY and self._context.now >= worker.idle_since + after:
            worker.trimmed = True
            self._context.effects.append(Tell(worker.spawn, Trim()))
        else:
            since = worker.idle_since if worker.state is WorkerState.READY else self._context.now
            self._context.timers.set(("trim", name), since + after)

    def apply(self) -> None:
        """The settings have changed: what waits by the old ones goes by the new ones."""
        workers, timers, now = self._context.settings.workers, self._context.timers, self._context.now
        for worker in self.workers.values():
            name = worker.name
            if ("start", name) in timers:
                timers.set(("start", name), worker.spawned_at + workers.start_timeout_s)
            if ("hang", name) in timers:
                timers.set(("hang", name), worker.beat_at + workers.hang_timeout_s)
            if (due := timers.due(("backoff", name))) is not None:
                timers.set(("backoff", name), min(due, now + workers.restart.backoff_max_s))
            timers.cancel(("age", name))
            timers.cancel(("trim", name))
            if worker.state in (WorkerState.READY, WorkerState.BUSY):
                if workers.recycle.max_age_s:
                    timers.set(("age", name), worker.ready_at + workers.recycle.max_age_s)
                if workers.recycle.idle_trim_s and not worker.trimmed:
                    timers.set(("trim", name), now + workers.recycle.idle_trim_s)

    # --- for people

    def describe(self) -> list[dict[str, Any]]:
        """Every worker, as ``workers`` shows it."""
        return [self._describe(worker) for worker in self.workers.values()]

    def _describe(self, worker: Worker) -> dict[str, Any]:
        now = self._context.now
        death = worker.doom if worker.state is WorkerState.FAILED else worker.last_death
        backoff = self._context.timers.due(("backoff", worker.name))
        return {
            "name": worker.name,
            "state": worker.state.value,
            "pid": worker.pid,
            "gpu": worker.gpu,
            "jobs": list(worker.jobs),
            "jobs_done": worker.jobs_done_in_all,
            "restarts": worker.restarts,
            "age_s": round(now - worker.spawned_at, 3) if worker.state in WITH_PROCESS else None,
            "rss": worker.memory.rss if worker.memory else None,
            "last_death": death
            and {"cause": death.cause.value, "detail": death.detail, "ago_s": round(now - death.at, 3)},
            "backoff_s": None if backoff is None else round(backoff - now, 3),
        }

    def _tell_state(self, worker: Worker) -> None:
        if self._context.watched:
            self._context.publish(f"worker.{worker.state}", **self._describe(worker))


def describe_exit(returncode: int) -> str:
    """How a process ended, in words: ``killed by SIGSEGV``, ``exited with status 3``."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
