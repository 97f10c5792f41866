"""Starts and stops worker processes, and fails those that do not start or do not end.

The number of workers is the autoscaler's decision, their replacement the recycler's, and the place of each job the
dispatcher's.
"""

from __future__ import annotations

import math
from functools import partial

from glmtts.protocol.worker import Memory, Ready, ResumeJob, StopWorker, SuspendJob

from ..alerts import Alerts
from ..context import Context
from ..effects import Sample, Signal, Spawn, Tell
from ..exit_causes import POLICIES, Cause
from .availability import unavailable
from .circuit_breaker import BreakerState
from .gpus import Gpus
from .process import ExitReason, Process
from .report import describe
from .restart_policy import RestartPolicy
from .worker import Worker, WorkerState
from .worker_table import WorkerTable
from .worker_timers import WorkerTimers

#: A failed process gets this long to end after SIGTERM, if stop_timeout_s is not shorter.
_GRACE_S = 1.0
#: After this many SIGKILLs without an end, the process counts as one that can't be ended.
_STUCK_AFTER_KILLS = 3
#: A worker that waits for memory asks for a sample after half the time that it has waited, within these bounds: drivers
#: mostly return a dead process's memory within a tenth of a second.
_LOOK_AGAIN_S = 2.0
_LOOK_SOON_S = 0.05


class Pool(WorkerTable):
    """Owns the life of every worker: each has at most one process, and each change of state is one of the table's."""

    def __init__(self, context: Context, gpus: Gpus, alerts: Alerts) -> None:
        super().__init__()
        self._context = context
        self._gpus = gpus
        self._alerts = alerts
        self.timers = WorkerTimers(context)
        self.restarts = RestartPolicy(context, alerts)
        self.circuit_breaker = self.restarts.circuit_breaker
        #: The number of processes that were started, or tried to be.
        self.starts = 0
        self.stopping = False
        #: Grows when settings change that processes are started with.
        self.generation = 0
        #: The Ready message of the last process that has loaded.
        self.engine: Ready | None = None
        #: Names of the engine's own voices, as far as they are known.
        self.engine_voices: frozenset[str] = frozenset()

    def unavailable(self) -> tuple[str, float] | None:
        """Why no worker will be available soon, and after how many seconds to retry; None if one will."""
        return unavailable(self.workers.values(), self._context, self.circuit_breaker, self._gpus, self.engine)

    def kept_free(self, slots: int) -> int:
        """How many of the slots of all workers take no batch jobs; a single one takes all."""
        return min(self._context.settings.queue.interactive_workers, max(0, slots - 1))

    # --- workers come and go

    def add(self, gpu: int | None, *, replaces: Worker | None = None) -> Worker:
        """Add a worker on this GPU; the step's reconcile starts its process as soon as there is no obstacle."""
        number = next(n for n in range(len(self.workers) + 1) if f"w{n}" not in self.workers)
        worker = Worker(name=f"w{number}", gpu=gpu, replaces=replaces.name if replaces else None)
        self.workers[worker.name] = worker
        self._await_start(worker)
        return worker

    def retire(self, worker: Worker, cause: Cause, reason: str) -> None:
        """Remove a worker, as soon as its jobs are done."""
        if worker.retiring:
            return
        worker.retiring = True
        if worker.state in (WorkerState.BACKOFF, WorkerState.WAITING, WorkerState.STOPPED):
            self._remove(worker)
        elif worker.state in (WorkerState.STARTING, WorkerState.READY, WorkerState.BUSY):
            worker.process.replace_reason = ExitReason(cause, reason, self._context.now)
            self.drain(worker)
        self._context.log("info", "worker retires", worker=worker.name, cause=cause, reason=reason)

    def drain(self, worker: Worker) -> None:
        """Have the process end when its jobs are done; its place is decided when it has ended."""
        if worker.state is WorkerState.STARTING:
            self._stop(worker)
            return
        worker.enter(WorkerState.DRAINING)  # READY or BUSY -> DRAINING
        if worker.jobs:
            # A text that comes in pieces could keep the process for ever.
            self.timers.set(worker, "texts", self._context.settings.limits.text_timeout_s)
            self._tell_state(worker)
        else:
            self._stop(worker)

    def _remove(self, worker: Worker) -> None:
        """The place goes away; its spare continues its history."""
        self.timers.gone(worker)
        self.timers.cancel(worker, "backoff", "wait")
        if worker.state is not WorkerState.STOPPED:
            worker.enter(WorkerState.STOPPED)  # STOPPING, FAILED, BACKOFF or WAITING -> STOPPED
        self.restarts.forget(worker)
        if spare := self.spare_of(worker):
            spare.replaces = None
            spare.restarts += worker.restarts + 1
            spare.jobs_done += worker.jobs_done
            spare.last_exit = spare.last_exit or worker.last_exit
        del self.workers[worker.name]
        self._tell_state(worker)

    # --- starts

    def reconcile(self) -> None:
        """Start each waiting worker that has no obstacle any more."""
        if self.stopping:
            return
        for worker in self:
            if worker.state is WorkerState.WAITING:
                self._context.guarded(self._go, worker)

    def _await_start(self, worker: Worker) -> None:
        """Have the step's reconcile start it, which knows by then how many workers there shall be."""
        worker.enter(WorkerState.WAITING)  # STOPPED, STOPPING or BACKOFF -> WAITING
        worker.waits_since, worker.reason = self._context.now, ""
        self._context.workers_dirty = True

    def _go(self, worker: Worker) -> None:
        """Start the process of a waiting worker, or have it wait on while there is an obstacle."""
        obstacle = self._obstacle(worker)
        if not obstacle:
            self._start(worker)
            return
        known, worker.reason = worker.reason, obstacle
        # A sample brings us here again: it must not be the reason for the next one.
        if ("wait", worker.name) not in self._context.timers:
            pause_s = min(_LOOK_AGAIN_S, max(_LOOK_SOON_S, (self._context.now - worker.waits_since) / 2))
            self.timers.set(worker, "wait", pause_s)
            if worker.gpu is not None:
                self._context.effects.append(Sample())
        if obstacle != known:
            self._context.log("info", "worker waits", worker=worker.name, reason=obstacle)
            self._tell_state(worker)

    def _obstacle(self, worker: Worker) -> str:
        return self.restarts.obstacle(worker) or self._gpus.obstacle(worker.gpu, worker, self.workers.values())

    def move(self, worker: Worker, gpu: int) -> None:
        """Have a waiting worker start on another GPU."""
        because, worker.gpu = worker.reason, gpu
        self._go(worker)
        self._context.log("info", "worker moves", worker=worker.name, gpu=gpu, because=because)

    def _start(self, worker: Worker) -> None:
        context = self._context
        device, share = self._gpus.device(worker.gpu), self._gpus.share_limit(worker.gpu)
        worker.enter(WorkerState.STARTING)  # WAITING -> STARTING
        worker.reason = ""
        self.restarts.started(worker)
        self.starts += 1
        context.counters.restarts += worker.last_exit is not None or worker.replaces is not None
        worker.process = Process(incarnation=self.starts, generation=self.generation, started_at=context.now)
        self._by_incarnation[self.starts] = worker
        self.timers.cancel(worker, "wait")
        self.timers.set(worker, "start", context.settings.workers.start_timeout_s)
        context.effects.append(Spawn(self.starts, worker.name, worker.gpu, device, share, worker.most_slots))
        self._tell_state(worker)

    def on_spawned(self, incarnation: int, pid: int) -> None:
        """The process runs; it still has to load its model."""
        if worker := self._by_incarnation.get(incarnation):
            worker.process.pid = pid
            self._context.log("info", "worker started", worker=worker.name, pid=pid, gpu=worker.gpu)

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """The process has loaded its model and is warm."""
        if worker.state is not WorkerState.STARTING:
            return
        worker.enter(WorkerState.READY)  # STARTING -> READY
        context, process = self._context, worker.process
        if ready.experimental and (self.engine is None or self.engine.experimental != ready.experimental):
            self._context.log("warning", "engine is experimental", engine=ready.engine, what=ready.experimental)
        process.ready = self.engine = ready
        self.engine_voices = frozenset(voice.name for voice in ready.voices)
        process.remember(ready.memory)
        process.ready_at = process.idle_since = context.now
        process.trimmed = True
        worker.replaced_in_place = False
        self.timers.ready(worker)
        if self.circuit_breaker.state is not BreakerState.CLOSED:
            self.timers.set(worker, "steady", context.settings.workers.restart.backoff_max_s)
        if worker.gpu is not None:
            # Its present memory is the need of a worker.
            context.effects.append(Sample())
        after_s = round(context.now - process.started_at, 3)
        loaded = {"load_s": ready.load_s, "warmup_s": ready.warmup_s}
        context.log("info", "worker ready", worker=worker.name, pid=process.pid, after_s=after_s, **loaded)
        self._tell_state(worker)

    # --- jobs

    def take(self, worker: Worker, job: str, *, alone: bool = False) -> bool:
        """Give the worker a job, one that runs ``alone`` with nothing at hand. Returns whether it begins it at once."""
        if worker.state is WorkerState.READY:
            worker.enter(WorkerState.BUSY)  # READY -> BUSY
        begins = worker.process.take(job, self._context.now, alone=alone)
        self.timers.watch(worker)
        return begins

    def _begin_ready(self, worker: Worker) -> list[str]:
        begun = worker.process.begin_ready(self._context.now)
        self.timers.watch(worker)
        return begun

    def suspend(self, worker: Worker, job: str) -> None:
        """Have the worker suspend a job: with one slot at its next segment boundary, with several at its next step."""
        worker.process.to_suspend.add(job)
        self._context.effects.append(Tell(worker.incarnation, SuspendJob(job=job)))

    def suspended(self, worker: Worker, job: str, memory: Memory | None, *, without_text: bool = False) -> list[str]:
        """The worker has suspended a job. Returns the jobs that it works on now."""
        worker.process.suspend(job, without_text=without_text)
        worker.process.remember(memory)
        return self._begin_ready(worker)

    def expect_end(self, worker: Worker, job: str) -> None:
        """A job was cancelled: suspended or not, the worker has to report its end."""
        if job in worker.process.suspended:
            worker.process.has_text(job)
            self._begin_ready(worker)

    def resume(self, worker: Worker, job: str) -> None:
        """Have the worker resume a suspended job."""
        worker.process.resume(job, self._context.now)
        self.timers.watch(worker)
        self._context.effects.append(Tell(worker.incarnation, ResumeJob(job=job)))

    def give_back(self, worker: Worker, job: str, memory: Memory | None, *, spoke: bool) -> list[str]:
        """A job has ended in the worker. Returns the jobs that it works on now."""
        process = worker.process
        process.give_back(job)
        process.remember(memory)
        process.idle_since = self._context.now
        process.trimmed = False
        if spoke:
            process.jobs_done += 1
            worker.jobs_done += 1
            self._context.guarded(self.restarts.proved)
        if worker.state is WorkerState.BUSY and not process.jobs:
            worker.enter(WorkerState.READY)  # BUSY -> READY
            self.timers.idle(worker)
        elif worker.state is WorkerState.DRAINING and not process.jobs:
            self._stop(worker)
        return self._begin_ready(worker)

    # --- ends

    def _stop(self, worker: Worker) -> None:
        """Ask the process to end: it has no work left."""
        loading, process = worker.state is WorkerState.STARTING, worker.process
        worker.enter(WorkerState.STOPPING)  # STARTING, READY, BUSY or DRAINING -> STOPPING
        process.exit_reason = process.exit_reason or process.replace_reason
        self.timers.going(worker)
        if loading:
            # It reads no message before its model is loaded, and has nothing to lose.
            self._context.effects.append(Signal(process.incarnation, "kill"))
        else:
            self._context.effects.append(Tell(process.incarnation, StopWorker()))
        self._tell_state(worker)

    def stop_all(self, *, at_once: bool) -> None:
        """End every process, by asking or by killing; none is started again."""
        self.stopping = True
        self._context.timers.cancel(("breaker", ""))
        reason = ExitReason(Cause.REQUESTED, f"the daemon stops{' at once' * at_once}", self._context.now)
        for worker in self:
            if worker.state in (WorkerState.BACKOFF, WorkerState.WAITING):
                self.timers.cancel(worker, "backoff", "wait")
                worker.enter(WorkerState.STOPPED)  # BACKOFF or WAITING -> STOPPED
            elif worker.has_process:
                worker.process.exit_reason = worker.process.exit_reason or reason
                if at_once:
                    self._context.effects.append(Signal(worker.incarnation, "kill"))
                elif worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
                    self._stop(worker)

    def fail(self, worker: Worker, cause: Cause, detail: str, *, patient: bool = False) -> None:
        """The process must go: it gets a SIGTERM, then a SIGKILL. It keeps its jobs until they are decided about.

        Args:
            patient: It has announced its own end, and gets ``stop_timeout_s`` for it.
        """
        worker.enter(WorkerState.FAILED)  # STARTING, READY, BUSY or DRAINING -> FAILED
        process = worker.process
        process.exit_reason = reason = ExitReason(cause, detail, self._context.now)
        self.timers.going(worker, at_most_s=math.inf if patient else _GRACE_S)
        # An exception here does not lose its jobs.
        self._context.guarded(partial(self._tell_failed, worker, reason, patient=patient))

    def _tell_failed(self, worker: Worker, reason: ExitReason, *, patient: bool) -> None:
        process = worker.process
        if not patient:
            self._context.effects.append(Signal(process.incarnation, "term"))
        why = {"cause": reason.cause, "detail": reason.detail}
        self._context.log("warning", "worker failed", worker=worker.name, pid=process.pid, **why)
        self._tell_state(worker)

    def on_ended(
        self, incarnation: int, returncode: int, last_words: str = "", *, oom_killed: bool = False
    ) -> tuple[Worker, Process] | None:
        """A process has ended. Returns it, with the jobs that it still had; None if it was ended already."""
        worker = self._by_incarnation.pop(incarnation, None)
        if worker is None:
            return None
        process, now = worker.process, self._context.now
        self.timers.gone(worker)
        self._gpus.ended(worker.gpu)
        expected, fails = process.exit_reason, worker.state not in (WorkerState.STOPPING, WorkerState.FAILED)
        reason = expected or process.unexpected_exit(returncode, last_words, oom_killed=oom_killed, now=now)
        worker.last_exit = process.exit_reason = reason
        if fails:
            worker.enter(WorkerState.FAILED)  # STARTING, READY, BUSY or DRAINING -> FAILED
        # An exception in one of these loses neither the jobs nor the worker's place.
        guarded = self._context.guarded
        guarded(partial(self._tell_ended, worker, reason, expected=expected is not None, fails=fails))
        faulty = worker.state is WorkerState.FAILED and POLICIES[reason.cause].fault
        guarded(partial(self.restarts.ended, worker, reason, faulty=faulty))
        guarded(self._vacate, worker)
        return worker, process

    def _tell_ended(self, worker: Worker, reason: ExitReason, *, expected: bool, fails: bool) -> None:
        self._context.counters.died(reason.cause)
        self._context.stir()
        if not expected:
            self._context.log("warning", "worker died", worker=worker.name, cause=reason.cause, detail=reason.detail)
        if worker.state is WorkerState.STOPPING:
            self._context.log("info", "worker stopped", worker=worker.name, reason=reason.detail)
        elif fails:
            self._tell_state(worker)

    def recover(self) -> None:
        """Start the workers that an exception has left with neither a process nor a timer that brings one."""
        timers = self._context.timers
        if self.circuit_breaker.state is BreakerState.OPEN and ("breaker", "") not in timers and not self.stopping:
            timers.set(("breaker", ""), self._context.now + self._context.settings.workers.restart.backoff_max_s)
        for worker in self:
            if self._by_incarnation.get(worker.incarnation) is worker:
                continue
            if worker.state in (WorkerState.STOPPING, WorkerState.FAILED):
                self._context.guarded(self._vacate, worker)
            elif (
                worker.state is not WorkerState.WAITING and not self.stopping and ("backoff", worker.name) not in timers
            ):
                self._context.guarded(self._await_start, worker)

    def on_spawn_failed(self, incarnation: int, reason: str) -> None:
        """There is no process: the interpreter is missing, or the system can't start one more."""
        if worker := self._by_incarnation.get(incarnation):
            worker.process.exit_reason = ExitReason(Cause.START_FAILED, reason, self._context.now)
            self.on_ended(incarnation, 127)
            self._context.log("error", "worker can't be started", worker=worker.name, detail=reason)

    def _vacate(self, worker: Worker) -> None:
        """Decide about the place of a process that has ended."""
        stuck, worker.process = worker.process.stuck, Process()
        if stuck:
            self._context.guarded(self._alerts.set, f"worker_stuck.{worker.name}", "")
        if self.stopping:
            worker.enter(WorkerState.STOPPED)  # STOPPING or FAILED -> STOPPED
            self._tell_state(worker)
        elif worker.retiring or stuck or self.spare_of(worker):
            self._remove(worker)
        else:
            worker.restarts += 1
            if worker.state is WorkerState.STOPPING:
                worker.most_slots = 0
                self._await_start(worker)
            else:
                self._back_off(worker)

    def _back_off(self, worker: Worker) -> None:
        delay_s = self.restarts.delay_s(worker)
        worker.enter(WorkerState.BACKOFF)  # FAILED -> BACKOFF
        if delay_s:
            self.timers.set(worker, "backoff", delay_s)
            self._context.log("info", "worker is started again later", worker=worker.name, in_s=round(delay_s, 3))
            self._tell_state(worker)
        else:
            self._await_start(worker)

    # --- timers

    def on_start_timeout(self, name: str) -> None:
        """The model is not loaded in time."""
        if self.workers[name].state is WorkerState.STARTING:
            timeout = self._context.settings.workers.start_timeout_s
            self.fail(self.workers[name], Cause.START_TIMEOUT, f"not ready {timeout:g} s after its start")

    def on_kill_due(self, name: str) -> None:
        """The process did not end in the time that it had, or after a SIGKILL."""
        worker = self.workers[name]
        if worker.state not in (WorkerState.STOPPING, WorkerState.FAILED):
            return
        process = worker.process
        process.kills += 1
        self.timers.kill(worker)
        self._context.effects.append(Signal(process.incarnation, "kill"))
        if process.kills == 1:
            self._context.log("warning", "worker does not end and is killed", worker=name, pid=process.pid)
        if process.kills > _STUCK_AFTER_KILLS and not process.stuck:
            process.stuck = "killed, and does not end"
            if process.process_state == "D":
                process.stuck += ": it is in uninterruptible sleep (D), in a driver or on a disk that does not answer"
            message = f"worker {name}, process {process.pid}, was {process.stuck}; it keeps its memory"
            self._alerts.set(f"worker_stuck.{name}", message)
            self._tell_state(worker)

    def on_backoff_over(self, name: str) -> None:
        """Start a failed worker again."""
        worker = self.workers[name]
        if worker.state is WorkerState.BACKOFF and not self.stopping:
            self._await_start(worker)

    def _tell_state(self, worker: Worker) -> None:
        self._context.jobs_dirty = self._context.workers_dirty = True
        if self._context.watched:
            self._context.publish(f"worker.{worker.state}", **describe(worker, self._context))
