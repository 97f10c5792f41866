"""The lives of the workers' processes: started, ready, at work, failed, gone, and started again.

How many workers there are is the scaler's decision, which of them are replaced the recycler's, and which job goes where
the dispatcher's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from glmtts.protocol.events import Voice
from glmtts.protocol.worker import Memory, Ready, ResumeJob, StopWorker, SuspendJob

from ..alerts import Alerts
from ..context import Context
from ..effects import Sample, Signal, Spawn, Tell
from ..exit_causes import CAUSE_OF_STATUS, POLICIES, Cause
from .availability import unavailable
from .circuit_breaker import BreakerState, CircuitBreaker
from .gpus import Gpus
from .report import describe, memory_of
from .worker import NOBODY_KNOWS, Death, Worker, WorkerState, describe_exit

#: How long a process that is given up on may take to end after SIGTERM, if stop_timeout_s is not shorter.
_GRACE_S = 1.0
#: So many SIGKILLs without an end, and the process counts as one that can't be ended.
_STUCK_AFTER_KILLS = 3
#: How many jobs may lie ready in the only worker behind those that it has begun, while jobs are brief.
AHEAD = 3
#: A worker that waits for memory looks again after half the time that it has waited, but at least and at most so often,
#: if no sample comes by itself: a driver mostly returns a dead process's memory within a tenth of a second.
_LOOK_AGAIN_S = 2.0
_LOOK_SOON_S = 0.05
#: A job that has made so many times what its engine expected is not going to end.
_RUNAWAY = 20

#: Timers of one process. All but the first end with its failure.
_OF_PROCESS = ("kill", "start", "age", "trim", "hang", "unload", "steady")


class Pool:
    """All workers of the daemon."""

    def __init__(self, context: Context, gpus: Gpus, alerts: Alerts) -> None:
        self._context = context
        self._gpus = gpus
        self._alerts = alerts
        self.workers: dict[str, Worker] = {}
        self.circuit_breaker = CircuitBreaker()
        #: While the breaker is half open: the worker that is tried.
        self._probe = ""
        self._by_incarnation: dict[int, Worker] = {}
        self._spawns = 0
        self.stopping = False
        #: Grows when settings change that processes are started with.
        self.generation = 0
        #: What the engine said when a process of it was ready for the last time.
        self.engine: Ready | None = None
        #: Names of the engine's own voices, as far as they are known yet.
        self.own_voices: frozenset[str] = frozenset()

    # --- what others ask

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

    def by_incarnation(self, incarnation: int) -> Worker | None:
        """The worker whose present process this is; None for one that is not heard any more."""
        worker = self._by_incarnation.get(incarnation)
        return worker if worker is not None and worker.state is not WorkerState.FAILED else None

    def free(self, *, brief: bool = False) -> Worker | None:
        """A worker that can take a job now: of several ready ones, the one whose GPU has the least to do.

        Not one that has put a job aside and waits for whether to go on with that.

        ``brief``: jobs take no longer than handing them over does. Then the only worker may have some lie ready, so
        that it need not wait for each; nobody else could have begun them earlier.
        """
        if len(self.workers) == 1:
            (worker,) = self.workers.values()
            if worker.state is WorkerState.READY:
                return worker
            room = worker.slots + (AHEAD if brief and not worker.aside else 0)
            if worker.state is not WorkerState.BUSY or worker.open or worker.to_suspend:
                return None
            return worker if len(worker.jobs) - len(worker.aside) < room else None
        found = None
        for worker in self.workers.values():
            if worker.serving and not worker.open and len(worker.jobs) - len(worker.aside) < worker.slots:
                # One that is about to be replaced is taken when no other is there.
                if worker.state is WorkerState.READY and not worker.leaving and not self._is_busy(worker.gpu):
                    return worker
                if found is None or (worker.state is WorkerState.READY and found.state is WorkerState.BUSY):
                    found = worker
        return found

    def _is_busy(self, gpu: int | None) -> bool:
        return gpu is not None and any(w.gpu == gpu and w.state is WorkerState.BUSY for w in self.workers.values())

    def open(self) -> list[Worker]:
        """Workers that have put a job aside, and wait to be told whether to go on with it."""
        states = (WorkerState.BUSY, WorkerState.DRAINING)
        return [worker for worker in self.workers.values() if worker.aside and worker.open and worker.state in states]

    def kept_free(self, workers: int) -> int:
        """Of so many workers, how many take no batch jobs; a single one takes all."""
        return min(self._context.settings.queue.interactive_workers, max(0, workers - 1))

    def fresh(self) -> Worker | None:
        """A ready worker whose process has had no job yet."""
        return next((worker for worker in self.workers.values() if worker.fresh), None)

    @property
    def serving(self) -> int:
        """How many workers can speak, now or after their present job."""
        return sum(worker.serving for worker in self.workers.values())

    @property
    def starts(self) -> int:
        """How many processes were started, or tried to be."""
        return self._spawns

    @property
    def empty(self) -> bool:
        """Whether no process is left, but for those that can't be ended."""
        return not any(worker.has_process and not worker.stuck for worker in self.workers.values())

    @property
    def voices(self) -> list[Voice]:
        """The engine's own voices, as far as they are known yet."""
        return self.engine.voices if self.engine else []

    def spare_of(self, worker: Worker) -> Worker | None:
        """The worker that is loaded, or has been, in the place of this one."""
        return next((other for other in self.workers.values() if other.replaces == worker.name), None)

    def unavailable(self) -> tuple[str, float] | None:
        """Why no worker can be had in the near future, and when it is worth asking again; None if one can."""
        return unavailable(
            self.workers.values(),
            context=self._context,
            circuit_breaker=self.circuit_breaker,
            gpus=self._gpus,
            engine=self.engine,
        )

    def counts(self) -> dict[str, int]:
        """How many workers there are by state."""
        states = [worker.state for worker in self.workers.values()]
        return {"total": len(states)} | {state.value: states.count(state) for state in WorkerState if state in states}

    # --- workers come and go

    def add(self, gpu: int | None, *, replaces: Worker | None = None) -> Worker:
        """One more worker, on this GPU; its process is started as soon as nothing stands against it."""
        number = next(n for n in range(len(self.workers) + 1) if f"w{n}" not in self.workers)
        worker = Worker(name=f"w{number}", gpu=gpu, replaces=replaces.name if replaces else None)
        self.workers[worker.name] = worker
        self._go(worker)
        return worker

    def retire(self, worker: Worker, cause: Cause, reason: str) -> None:
        """One worker less: as soon as its jobs are done, where it has any."""
        if worker.retiring:
            return
        worker.retiring = True
        self._context.log("info", "worker retires", worker=worker.name, cause=cause, reason=reason)
        if worker.state in (WorkerState.BACKOFF, WorkerState.WAITING, WorkerState.STOPPED):
            self._remove(worker)
            return
        if worker.state in (WorkerState.STARTING, WorkerState.READY, WorkerState.BUSY):
            worker.leaving = Death(cause, reason, self._context.now)
            self.drain(worker)

    def drain(self, worker: Worker) -> None:
        """Have the process end when its jobs are done: what becomes of its place is decided when it is gone."""
        worker.doom = worker.leaving
        if worker.state is WorkerState.STARTING:
            self._stop(worker)
            return
        worker.enter(WorkerState.DRAINING)  # READY or BUSY -> DRAINING
        if worker.jobs:
            self._tell_state(worker)
        else:
            self._stop(worker)

    def _remove(self, worker: Worker) -> None:
        """The place is gone; a spare that was loaded for it goes on with its history."""
        for purpose in (*_OF_PROCESS, "backoff", "wait"):
            self._context.timers.cancel((purpose, worker.name))
        if worker.state is not WorkerState.STOPPED:
            worker.enter(WorkerState.STOPPED)  # STOPPING, FAILED, BACKOFF or WAITING -> STOPPED
        if self._probe == worker.name:
            self._probe = ""
        if spare := self.spare_of(worker):
            spare.replaces = None
            spare.restarts += worker.restarts + 1
            spare.jobs_done_in_all += worker.jobs_done_in_all
            spare.last_death = spare.last_death or worker.last_death
        self._tell_state(worker)
        del self.workers[worker.name]

    # --- starts

    def _go(self, worker: Worker) -> None:
        """Start the worker's process, or have it wait for what stands against that."""
        obstacle = self._obstacle(worker)
        if not obstacle:
            self._start(worker)
            return
        if worker.state is not WorkerState.WAITING:
            worker.enter(WorkerState.WAITING)  # STOPPED, STOPPING or BACKOFF -> WAITING
            worker.waits_since = self._context.now
            worker.reason = ""
        if worker.reason != obstacle:
            worker.reason = obstacle
            self._context.log("info", "worker waits", worker=worker.name, reason=obstacle)
            self._tell_state(worker)
        # Not at every look: a sample makes those look who wait for memory, and would be the reason for the next one.
        if ("wait", worker.name) not in self._context.timers:
            waited_s = self._context.now - worker.waits_since
            pause_s = min(_LOOK_AGAIN_S, max(_LOOK_SOON_S, waited_s / 2))
            self._context.timers.set(("wait", worker.name), self._context.now + pause_s)
            if worker.gpu is not None:
                self._context.effects.append(Sample())

    def _obstacle(self, worker: Worker) -> str:
        # What was replaced in good order, or never tried, is not held up by the faults of others.
        if worker.faults and self.circuit_breaker.state is BreakerState.OPEN:
            return "too many workers failed; one of them is tried again after a pause"
        if (
            worker.faults
            and self.circuit_breaker.state is BreakerState.HALF_OPEN
            and self._probe not in ("", worker.name)
        ):
            return f"too many workers failed; {self._probe} is tried first"
        return self._gpus.obstacle(worker.gpu, worker, self.workers.values())

    def move(self, worker: Worker, gpu: int) -> None:
        """A worker that waits in vain for its GPU goes to another one."""
        self._context.log("info", "worker moves", worker=worker.name, gpu=gpu, because=worker.reason)
        worker.gpu = gpu
        self._go(worker)

    def reconcile(self) -> None:
        """Start each waiting worker that nothing stands against any more."""
        if self.stopping:
            return
        for worker in self:
            if worker.state is WorkerState.WAITING:
                self._go(worker)

    def _start(self, worker: Worker) -> None:
        context = self._context
        worker.enter(WorkerState.STARTING)  # STOPPED, STOPPING, BACKOFF or WAITING -> STARTING
        if worker.faults and self.circuit_breaker.state is BreakerState.HALF_OPEN:
            self._probe = worker.name
        self._spawns += 1
        self._context.counters.restarts += worker.last_death is not None or worker.replaces is not None
        worker.clear_process()
        worker.incarnation = self._spawns
        worker.generation = self.generation
        worker.spawned_at = context.now
        self._by_incarnation[worker.incarnation] = worker
        context.timers.cancel(("wait", worker.name))
        context.timers.set(("start", worker.name), context.now + context.settings.workers.start_timeout_s)
        device, share = self._gpus.device(worker.gpu), self._vram_share(worker.gpu)
        context.effects.append(Spawn(worker.incarnation, worker.name, worker.gpu, device, share))
        self._tell_state(worker)

    def _vram_share(self, gpu: int | None) -> float:
        """The share of its GPU that a process may take, where it can be told so (torch's allocator can); 0: any."""
        if gpu is None:
            return 0.0
        recycle = self._context.settings.workers.recycle
        share = recycle.max_vram_share or 1.0
        known = self._gpus.find(gpu)
        if recycle.max_vram_mib and known and known.reading.total:
            share = min(share, (recycle.max_vram_mib << 20) / known.reading.total)
        return round(share, 4) if share < 1.0 else 0.0

    def on_spawned(self, incarnation: int, pid: int) -> None:
        """The process runs; it still has to load its model."""
        if worker := self._by_incarnation.get(incarnation):
            worker.pid = pid
            self._context.log("info", "worker started", worker=worker.name, pid=pid, gpu=worker.gpu)

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """The process has loaded its model and is warm."""
        if worker.state is not WorkerState.STARTING:
            return
        worker.enter(WorkerState.READY)  # STARTING -> READY
        context, workers = self._context, self._context.settings.workers
        worker.ready = self.engine = ready
        self.own_voices = frozenset(voice.name for voice in ready.voices)
        worker.memory = ready.memory
        worker.ready_at = worker.idle_since = context.now
        worker.trimmed = True
        worker.renewing = False
        context.timers.cancel(("start", worker.name))
        if workers.recycle.max_age_s:
            context.timers.set(("age", worker.name), context.now + workers.recycle.max_age_s)
        if self.circuit_breaker.state is not BreakerState.CLOSED:
            context.timers.set(("steady", worker.name), context.now + workers.restart.backoff_max_s)
        if workers.idle_unload_s:
            context.timers.set(("unload", worker.name), context.now + workers.idle_unload_s)
        if worker.gpu is not None:
            # What it holds now is what a worker needs.
            context.effects.append(Sample())
        context.log(
            "info",
            "worker ready",
            worker=worker.name,
            pid=worker.pid,
            after_s=round(context.now - worker.spawned_at, 3),
            load_s=ready.load_s,
            warmup_s=ready.warmup_s,
        )
        self._tell_state(worker)

    # --- work

    def take(self, worker: Worker, job: str) -> bool:
        """The worker gets a job; returns whether it begins it at once."""
        if worker.state is WorkerState.READY:
            worker.enter(WorkerState.BUSY)  # READY -> BUSY
        worker.jobs.append(job)
        worker.jobs_taken += 1
        begins = len(worker.jobs) - len(worker.aside) <= worker.slots
        if begins:
            self._begin(worker, job)
        return begins

    def _begin(self, worker: Worker, job: str) -> None:
        """From now on the job has to move."""
        worker.moved.setdefault(job, (self._context.now, -1))
        hang = ("hang", worker.name)
        if hang not in self._context.timers:
            self._context.timers.set(hang, self._context.now + self._context.settings.workers.hang_timeout_s)

    def _begin_ready(self, worker: Worker) -> list[str]:
        """There is room for what lies ready; returns all that it works on now."""
        begun = list(worker.begun)
        for id in begun:
            self._begin(worker, id)
        return begun

    def suspend(self, worker: Worker, job: str) -> None:
        """Have the worker put a job aside at its next border."""
        worker.to_suspend = job
        self._context.effects.append(Tell(worker.incarnation, SuspendJob(job=job)))

    def suspended(self, worker: Worker, job: str, memory: Memory | None) -> list[str]:
        """The worker has put a job aside; returns those that it works on now."""
        worker.to_suspend = ""
        worker.aside.append(job)
        worker.moved.pop(job, None)
        worker.memory = memory or worker.memory
        return self._begin_ready(worker)

    def resume(self, worker: Worker, job: str) -> None:
        """Have the worker go on with a job that it had put aside."""
        worker.aside.remove(job)
        self._begin(worker, job)
        self._context.effects.append(Tell(worker.incarnation, ResumeJob(job=job)))

    def moved(self, worker: Worker, job: str, done: int | None = None) -> None:
        """A job has moved, to so many units done; a beat that says the same number again is no progress."""
        _, last = worker.moved.get(job, (0.0, -1))
        if done is None or done != last:
            worker.moved[job] = (self._context.now, last if done is None else done)

    def give_back(self, worker: Worker, job: str, memory: Memory | None, *, spoke: bool) -> list[str]:
        """The worker is through with a job; returns those that it now has begun."""
        now, timers = self._context.now, self._context.timers
        worker.jobs.remove(job)
        worker.moved.pop(job, None)
        if job in worker.aside:
            worker.aside.remove(job)
        if worker.to_suspend == job:
            worker.to_suspend = ""
        if spoke:
            worker.jobs_done += 1
            worker.jobs_done_in_all += 1
            if self.circuit_breaker.faults or self.circuit_breaker.state is not BreakerState.CLOSED:
                self._proved()
        if memory is not None:
            worker.memory = memory
        worker.idle_since = now
        worker.trimmed = False
        if worker.state is WorkerState.BUSY and not worker.jobs:
            worker.enter(WorkerState.READY)  # BUSY -> READY
            workers = self._context.settings.workers
            for purpose, after in (("trim", workers.recycle.idle_trim_s), ("unload", workers.idle_unload_s)):
                if after and (purpose, worker.name) not in timers:
                    timers.set((purpose, worker.name), now + after)
        elif worker.state is WorkerState.DRAINING and not worker.jobs:
            self._stop(worker)
        return self._begin_ready(worker)

    # --- ends

    def _stop(self, worker: Worker) -> None:
        """Ask the process to end: nothing of it is needed any more."""
        loading = worker.state is WorkerState.STARTING
        worker.enter(WorkerState.STOPPING)  # STARTING, READY, BUSY or DRAINING -> STOPPING
        worker.doom = worker.doom or Death(Cause.REQUESTED, "the daemon stops", self._context.now)
        for purpose in _OF_PROCESS[1:]:
            self._context.timers.cancel((purpose, worker.name))
        if loading:
            # It would not read a message before its model is loaded, and there is nothing in it to lose.
            self._context.effects.append(Signal(worker.incarnation, "kill"))
        else:
            self._context.effects.append(Tell(worker.incarnation, StopWorker()))
        self._arm_kill(worker)
        self._tell_state(worker)

    def stop_all(self, *, at_once: bool) -> None:
        """End every process, by asking or by killing; none is started again."""
        self.stopping = True
        self._context.timers.cancel(("breaker", ""))
        for worker in self:
            if worker.state in (WorkerState.BACKOFF, WorkerState.WAITING):
                self._context.timers.cancel(("backoff", worker.name))
                self._context.timers.cancel(("wait", worker.name))
                worker.enter(WorkerState.STOPPED)  # BACKOFF or WAITING -> STOPPED
            elif worker.has_process:
                if at_once:
                    worker.doom = worker.doom or Death(Cause.REQUESTED, "the daemon stops at once", self._context.now)
                    self._context.effects.append(Signal(worker.incarnation, "kill"))
                elif worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
                    self._stop(worker)

    def fail(self, worker: Worker, cause: Cause, detail: str, *, patient: bool = False) -> tuple[Death, list[str]]:
        """The process must go: it is told to, then killed. Returns its death, and the jobs that it had.

        ``patient``: it said itself that it is about to end, and is given ``stop_timeout_s`` for it.
        """
        worker.enter(WorkerState.FAILED)  # STARTING, READY, BUSY or DRAINING -> FAILED
        worker.doom = Death(cause, detail, self._context.now)
        jobs = worker.give_up_jobs()
        for purpose in _OF_PROCESS[1:]:
            self._context.timers.cancel((purpose, worker.name))
        if patient:
            self._arm_kill(worker)
        else:
            # It is not waited for as for one that has work to finish: its place is needed.
            self._context.effects.append(Signal(worker.incarnation, "term"))
            self._arm_kill(worker, at_most_s=_GRACE_S)
        self._context.log("warning", "worker failed", worker=worker.name, pid=worker.pid, cause=cause, detail=detail)
        self._tell_state(worker)
        return worker.doom, jobs

    def on_ended(
        self, incarnation: int, returncode: int, last_words: str, *, oom_killed: bool = False
    ) -> tuple[Worker, Death, list[str]] | None:
        """A process is gone. Returns its worker, its death, and the jobs that it still had."""
        worker = self._by_incarnation.pop(incarnation, None)
        if worker is None:
            return None
        for purpose in _OF_PROCESS:
            self._context.timers.cancel((purpose, worker.name))
        self._gpus.ended(worker.gpu)
        # While it drains it was not told to end yet: it died of something else than we had in mind for it.
        expected = worker.doom is not None and worker.state is not WorkerState.DRAINING
        death = (worker.doom if expected else None) or self._unexpected(worker, returncode, last_words, oom_killed)
        worker.last_death = death
        self._context.counters.died(death.cause)
        self._context.stir()
        jobs = worker.give_up_jobs()
        if not expected:
            self._context.log("warning", "worker died", worker=worker.name, cause=death.cause, detail=death.detail)
        if worker.state is WorkerState.STOPPING:
            self._context.log("info", "worker stopped", worker=worker.name, reason=death.detail)
        elif worker.state is not WorkerState.FAILED:
            worker.enter(WorkerState.FAILED)  # STARTING, READY, BUSY or DRAINING -> FAILED
            worker.doom = death
            self._tell_state(worker)
        faulty = worker.state is WorkerState.FAILED and POLICIES[death.cause].fault
        self._count(worker, death, faulty=faulty)
        self._place_is_empty(worker)
        return worker, death, jobs

    def _place_is_empty(self, worker: Worker) -> None:
        """Decide what becomes of a worker whose process is gone."""
        was_stuck = worker.stuck
        worker.pid = worker.memory = None
        worker.share = NOBODY_KNOWS
        worker.stuck = False
        if was_stuck:
            self._alerts.set(f"worker_stuck.{worker.name}", "")
        if self.stopping:
            worker.enter(WorkerState.STOPPED)  # STOPPING or FAILED -> STOPPED
            self._tell_state(worker)
        elif worker.retiring or was_stuck or self.spare_of(worker):
            self._remove(worker)
        elif worker.state is WorkerState.STOPPING:
            worker.restarts += 1
            self._go(worker)
        else:
            self._back_off(worker)

    def on_spawn_failed(self, incarnation: int, reason: str) -> tuple[Worker, Death, list[str]] | None:
        """There is no process: the interpreter is missing, or the system has no room for one more."""
        worker = self._by_incarnation.get(incarnation)
        if worker is None:
            return None
        worker.doom = Death(Cause.START_FAILED, reason, self._context.now)
        self._context.log("error", "worker can't be started", worker=worker.name, detail=reason)
        return self.on_ended(incarnation, 127, "")

    def _unexpected(self, worker: Worker, returncode: int, last_words: str, oom_killed: bool) -> Death:
        detail = describe_exit(returncode)
        if oom_killed:
            detail = f"{detail} by the kernel, because the host ran out of memory"
            return Death(Cause.HOST_OOM, detail, self._context.now)
        cause = CAUSE_OF_STATUS.get(returncode, Cause.CRASHED if worker.ready else Cause.START_FAILED)
        if worker.ready is None and last_words:
            detail = f"{detail} while it started: {last_words}"
        return Death(cause, detail, self._context.now)

    def _count(self, worker: Worker, death: Death, *, faulty: bool) -> None:
        """A fault makes the next start wait, and may open the breaker."""
        if not faulty:
            return
        now, restart = self._context.now, self._context.settings.workers.restart
        # A process that did its work was no false start, nor one that lived for long without any.
        steady = worker.ready is not None and (worker.jobs_done > 0 or now - worker.ready_at >= restart.backoff_max_s)
        worker.faults = 1 if steady else worker.faults + 1
        if self._probe == worker.name:
            self._probe = ""
        loading = worker.spawned_at, worker.ready_at if worker.ready else now
        if self.circuit_breaker.fault(now, restart.breaker_failures, restart.breaker_window_s, loading):
            pause = self._pause(self.circuit_breaker.openings)
            self._context.timers.set(("breaker", ""), now + pause)
            self._alerts.set(
                "breaker_open",
                f"workers keep failing ({self.circuit_breaker.faults} faults in "
                f"{restart.breaker_window_s:g} s, loading not "
                f"counted, with no job spoken between them); the last one: {death.detail}",
            )

    def _pause(self, times: int) -> float:
        """Seconds until the next attempt after so many failed ones in a row: doubled each time, never all at once."""
        restart = self._context.settings.workers.restart
        delay = min(restart.backoff_max_s, restart.backoff_initial_s * 2.0 ** min(times - 1, 30))
        return delay * (0.75 + 0.5 * self._context.random.random())

    def _back_off(self, worker: Worker) -> None:
        """The first fault after a steady time is mended at once, further ones ever later."""
        worker.enter(WorkerState.BACKOFF)  # FAILED -> BACKOFF
        worker.restarts += 1
        # A spare that did not fit is not started again before it is decided whether there shall be one.
        did_not_fit = worker.last_death is not None and worker.last_death.cause in (Cause.OUT_OF_MEMORY, Cause.HOST_OOM)
        if worker.faults > 1 or (worker.replaces and did_not_fit):
            delay = self._pause(max(1, worker.faults - 1))
            self._context.timers.set(("backoff", worker.name), self._context.now + delay)
            self._context.log("info", "worker is started again later", worker=worker.name, in_s=round(delay, 3))
            self._tell_state(worker)
        else:
            self._go(worker)

    def _arm_kill(self, worker: Worker, *, at_most_s: float = math.inf) -> None:
        after_s = min(self._context.settings.workers.stop_timeout_s, at_most_s)
        self._context.timers.set(("kill", worker.name), self._context.now + after_s)

    def _proved(self) -> None:
        """A worker has shown that it works."""
        if self.circuit_breaker.proof():
            self._probe = ""
            self._context.timers.cancel(("breaker", ""))
            self._alerts.set("breaker_open", "")

    # --- timers

    def on_start_timeout(self, name: str) -> tuple[Death, list[str]]:
        """The model is not loaded in time."""
        timeout = self._context.settings.workers.start_timeout_s
        return self.fail(self.workers[name], Cause.START_TIMEOUT, f"not ready {timeout:g} s after its start")

    def on_hang_check(self, name: str) -> tuple[Death, list[str]] | None:
        """Look whether every begun job has moved; if one has not for ``hang_timeout_s``, the process must go."""
        worker = self.workers[name]
        if not worker.moved or worker.state not in (WorkerState.BUSY, WorkerState.DRAINING):
            return None
        timeout = self._context.settings.workers.hang_timeout_s
        slowest = min((at for at, _ in worker.moved.values()), default=self._context.now)
        if self._context.now < slowest + timeout:
            self._context.timers.set(("hang", name), slowest + timeout)
            return None
        return self.fail(worker, Cause.HUNG, f"no progress for {timeout:g} s")

    def stands_still_s(self, worker: Worker) -> float:
        """For how long none has been heard of the job that has moved least of those that it is at."""
        if worker.state not in (WorkerState.BUSY, WorkerState.DRAINING):
            return 0.0
        return max((self._context.now - at for at, _ in worker.moved.values()), default=0.0)

    def stalled(self, worker: Worker) -> list[str]:
        """The jobs that have not moved for long; if the process as a whole stands still, those are all of them."""
        since = self._context.now - self._context.settings.workers.hang_timeout_s / 2
        return [job for job, (at, _) in worker.moved.items() if at <= since]

    def runs_away(self, worker: Worker, done: int, expected: int | None) -> tuple[Death, list[str]] | None:
        """A job that goes on and on far beyond what its engine expected is not going to end: the process must go."""
        # One that is to end already is not told so twice: it may be at a job that was cancelled.
        at_work = worker.state in (WorkerState.BUSY, WorkerState.DRAINING)
        if not at_work or not expected or done <= _RUNAWAY * expected:
            return None
        return self.fail(
            worker, Cause.HUNG, f"no end in sight: made {done:,} units where about {expected:,} were expected"
        )

    def on_kill_due(self, name: str) -> None:
        """It had its time to end by itself, or did not end though it was killed."""
        worker = self.workers[name]
        if worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
            return
        worker.kills += 1
        if worker.kills == 1:
            self._context.log("warning", "worker does not end and is killed", worker=name, pid=worker.pid)
        if worker.kills > _STUCK_AFTER_KILLS and not worker.stuck:
            worker.stuck = True
            worker.reason = "killed, and does not end"
            if worker.process_state == "D":
                worker.reason += ": it is in uninterruptible sleep (D), in a driver or on a disk that does not answer"
            self._alerts.set(
                f"worker_stuck.{name}",
                f"worker {name}, process {worker.pid}, was {worker.reason}; it holds what it has",
            )
            self._tell_state(worker)
        self._context.effects.append(Signal(worker.incarnation, "kill"))
        self._arm_kill(worker)

    def on_backoff_over(self, name: str) -> None:
        """Try again."""
        worker = self.workers[name]
        if worker.state is WorkerState.BACKOFF and not self.stopping:
            self._go(worker)

    def start_anew(self) -> None:
        """Settings have changed that processes are started with: what failed by the old ones is tried at once."""
        for worker in self:
            worker.faults = 0
            if worker.state is WorkerState.BACKOFF:
                self._context.timers.set(("backoff", worker.name), self._context.now)

    def on_breaker_pause_over(self) -> None:
        """One worker may be tried."""
        self.circuit_breaker.pause_over()

    def on_steady(self, name: str) -> None:
        """A worker has lived for long since the breaker opened, if only because nobody asked anything of it."""
        if self.workers[name].serving:
            self._proved()

    def apply(self) -> None:
        """The settings have changed: what waits by the old ones goes by the new ones."""
        workers, timers, now = self._context.settings.workers, self._context.timers, self._context.now
        for worker in self:
            name = worker.name
            if ("start", name) in timers:
                timers.set(("start", name), worker.spawned_at + workers.start_timeout_s)
            if ("hang", name) in timers:
                slowest = min((at for at, _ in worker.moved.values()), default=now)
                timers.set(("hang", name), slowest + workers.hang_timeout_s)
            if (due := timers.due(("backoff", name))) is not None:
                timers.set(("backoff", name), min(due, now + workers.restart.backoff_max_s))
            for purpose in ("age", "trim", "unload"):
                timers.cancel((purpose, name))
            if worker.serving:
                if workers.recycle.max_age_s:
                    timers.set(("age", name), worker.ready_at + workers.recycle.max_age_s)
                if workers.recycle.idle_trim_s and not worker.trimmed:
                    timers.set(("trim", name), now + workers.recycle.idle_trim_s)
                if workers.idle_unload_s:
                    timers.set(("unload", name), now + workers.idle_unload_s)
        if (due := timers.due(("breaker", ""))) is not None:
            timers.set(("breaker", ""), min(due, now + workers.restart.backoff_max_s))

    # --- for people

    def describe(self) -> list[dict[str, Any]]:
        """Every worker, as ``workers`` shows it."""
        return [describe(worker, self._context) for worker in self.workers.values()]

    def _tell_state(self, worker: Worker) -> None:
        self._context.jobs_dirty = self._context.workers_dirty = True
        if self._context.watched:
            self._context.publish(f"worker.{worker.state}", **describe(worker, self._context))

    def tell_memory(self) -> None:
        """What each process holds, for those who watch."""
        if self._context.watched:
            for worker in self.workers.values():
                if worker.pid is not None:
                    self._context.publish("worker.memory", **memory_of(worker))
