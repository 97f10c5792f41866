"""Decides which worker processes are replaced, why, and in what order, so that no job has to wait for it.

Where the memory of GPU and host allows it, a spare is loaded first and the old process ends when the spare is ready.
Otherwise the old one is drained and ended, and the next one starts when its memory is free. One at a time.
"""

from __future__ import annotations

from glmtts.protocol.worker import Memory, Trim

from ..context import Context
from ..effects import Sample, Tell
from ..exit_causes import Cause
from .gpus import Gpus
from .memory_watch import Limit, MemoryLimits, MemoryWatch
from .pool import Pool
from .process import ExitReason, Process
from .worker import COMING, Worker, WorkerState

#: An idle sample without a new reading of the GPU is taken this often at most, unless memory has moved by a step.
_IDLE_EVERY_S = 0.1
_STEP = 8 << 20
#: For a worker that is never idle, the least of this many samples counts.
_BUSY_SAMPLES = 3

#: A process that has waited for memory for this long may wait for the memory of this GPU's other workers.
_PATIENCE_S = 10.0

#: States of a process that was asked to end and is still there.
_GOING = frozenset({WorkerState.DRAINING, WorkerState.STOPPING})


class Recycler:
    """Watches the memory of the workers, and has processes replaced: at most one at a time, unless one can't wait."""

    def __init__(self, context: Context, pool: Pool, gpus: Gpus) -> None:
        self._context = context
        self._pool = pool
        self._gpus = gpus
        #: Whether a sample was requested that shows if a spare fits, and has not come yet.
        self._sample_asked = False

    # --- reasons

    def recycle(self, worker: Worker, cause: Cause, reason: str, *, kind: str, at_once: bool = False) -> bool:
        """Have the worker's process replaced. Returns whether there is one that can be.

        Args:
            kind: The reason as one of counters.RECYCLE_REASONS.
            at_once: The memory will not last until a spare is loaded.
        """
        if not worker.serving or worker.retiring:
            return False
        process = worker.process
        if process.replace_reason is None:
            process.replace_reason = ExitReason(cause, reason, self._context.now)
            self._context.counters.recycled(kind)
            self._context.log("info", "worker is recycled", worker=worker.name, cause=cause, reason=reason)
        process.replace_at_once = process.replace_at_once or at_once
        self._context.workers_dirty = True
        return True

    def renew(self, reason: str) -> list[str]:
        """Replace every process that was started with older settings. Returns the names of their workers.

        One that is still loading has nothing to lose, and is ended at once.
        """
        self._pool.generation += 1
        self._pool.restarts.start_anew(self._pool)
        old = [worker for worker in self._pool if worker.has_process and not worker.retiring]
        old = [w for w in old if not w.process.stuck and w.process.generation != self._pool.generation]
        for worker in old:
            if worker.state is WorkerState.STARTING:
                self._context.log("info", "worker is started again", worker=worker.name, reason=reason)
                worker.process.replace_reason = ExitReason(Cause.OPERATOR, reason, self._context.now)
                self._pool.drain(worker)
        for worker in old:
            self.recycle(worker, Cause.OPERATOR, reason, kind="configuration")
        return [worker.name for worker in old]

    def on_ready(self, worker: Worker) -> None:
        """A process has loaded: growth is measured from its present memory."""
        self._judge_idle(worker, vram=None)

    def after_job(self, worker: Worker) -> None:
        """A job has ended in a worker, which may have done enough of them, or hold too much memory."""
        if not worker.serving:
            return
        recycle, process = self._context.settings.workers.recycle, worker.process
        if recycle.max_jobs and process.jobs_done >= recycle.max_jobs and process.replace_reason is None:
            reason = f"spoke {process.jobs_done} jobs, max_jobs is {recycle.max_jobs}"
            self.recycle(worker, Cause.RECYCLED, reason, kind="max_jobs")
        memory, last = process.floor, process.idle_memory
        # The memory of a suspended job is no idle memory, nor is that of jobs that are at work.
        if memory is None or memory is not process.memory:
            return
        if last is not None and self._context.now - process.idle_at < _IDLE_EVERY_S:
            reserved = (memory.torch_reserved or 0) - (last.torch_reserved or 0)
            if abs(memory.rss - last.rss) < _STEP and abs(reserved) < _STEP:
                return
        self._judge_idle(worker, vram=process.vram_by_torch)

    def on_sampled(self) -> None:
        """There are new samples, which show the idle memory of workers that are idle."""
        self._sample_asked = False
        for worker in self._pool:
            process = worker.process
            if not worker.serving or process.memory is None:
                continue
            vram = self._trusted_vram(process)
            if vram is not None and worker.state is WorkerState.BUSY:
                process.busy_vram = [*process.busy_vram[1 - _BUSY_SAMPLES :], vram]
                vram = min(process.busy_vram)
            elif process.jobs_done == process.sampled_jobs:
                continue  # no job since the last sample
            else:
                process.busy_vram = []
            if vram is not None:
                process.sampled_jobs = process.jobs_done
                self._judge_idle(worker, vram=vram)

    @staticmethod
    def _trusted_vram(process: Process) -> int | None:
        """NVML's figure for a process; one derived from the whole device only where torch reports nothing.

        The latter may contain the growth of a neighbour.
        """
        share = process.share
        torch_knows = process.memory is not None and process.memory.torch_reserved is not None
        trust = "" if share.vram is None or (share.trust == "device" and torch_knows) else share.trust
        if trust not in ("process", "device"):
            trust = ""
        if process.watched_trust != trust:
            # Figures of two sources differ by what one of them leaves out: that is no growth.
            process.watch, process.watched_trust = MemoryWatch(), trust
        return share.vram if trust else None

    def _judge_idle(self, worker: Worker, vram: int | None) -> None:
        process = worker.process
        memory = process.floor
        if memory is None or not worker.serving:
            return
        process.idle_at, process.idle_memory = self._context.now, memory
        verdict = process.watch.add(process.idle_sample(memory, vram), self._limits(worker))
        if verdict.action == "none" or worker.retiring:
            return
        if verdict.action == "trim":
            if process.replace_reason is None:
                self._context.log("info", "worker is trimmed", worker=worker.name, reason=verdict.reason)
                self._context.effects.append(Tell(worker.incarnation, Trim()))
        elif process.replace_reason is None or (verdict.urgent and not process.replace_at_once):
            cause = Cause.RECYCLED if verdict.kind in ("limit", "host_limit") else Cause.LEAK
            self.recycle(worker, cause, verdict.reason, kind=verdict.kind, at_once=verdict.urgent)

    def _limits(self, worker: Worker) -> MemoryLimits:
        recycle, memory = self._context.settings.workers.recycle, worker.process.memory
        limits = []
        if recycle.max_rss_mib:
            limits.append(Limit(recycle.max_rss_mib << 20, "max_rss_mib"))
        available = self._gpus.host_available
        if available is not None and memory is not None:
            limits.append(Limit(memory.rss + available, "the host", hard=False))
        return MemoryLimits(
            vram=self._vram_limit(worker),
            rss=min(limits, default=None),
            leak_min=recycle.leak_min_mib << 20,
            horizon_jobs=recycle.leak_horizon_jobs,
        )

    def _vram_limit(self, worker: Worker) -> Limit | None:
        """The least of the configured limits of GPU memory and of the room on its GPU; None without either."""
        if worker.gpu is None:
            return None
        recycle, process = self._context.settings.workers.recycle, worker.process
        gpu = self._gpus.find(worker.gpu)
        total = gpu.reading.total if gpu else None
        limits = []
        if recycle.max_vram_mib:
            limits.append(Limit(recycle.max_vram_mib << 20, "max_vram_mib"))
        if recycle.max_vram_share and total:
            words = f"{recycle.max_vram_share:.0%} of GPU {worker.gpu}"
            limits.append(Limit(int(recycle.max_vram_share * total), words))
        vram, free = process.share.vram, self._gpus.free(worker.gpu, self._pool)
        if free is not None and vram is not None:
            limits.append(Limit(vram + free, f"GPU {worker.gpu}", hard=False))
        limit = min(limits, default=None)
        if limit and not process.watched_trust and vram is not None and process.sampled_reserved is not None:
            # The process is judged by torch's figure, which leaves out the context and the libraries.
            return Limit(limit.bytes - max(0, vram - process.sampled_reserved), limit.words, limit.hard)
        return limit

    def on_trimmed(self, worker: Worker, memory: Memory) -> None:
        """A worker has trimmed its memory."""
        process = worker.process
        process.remember(memory)
        self._context.log("debug", "worker trimmed", worker=worker.name, rss=memory.rss)
        if process.floor is memory:
            process.watch.trimmed(process.idle_sample(memory, None))
            self._judge_idle(worker, vram=None)
        else:
            process.watch.trimmed(None)
        # The effect of the trim on the GPU shows in the next sample, with or without a job before it.
        process.sampled_jobs = -1
        if worker.gpu is not None:
            self._context.effects.append(Sample())

    def on_age(self, name: str) -> None:
        """The process has reached ``max_age_s``."""
        age = self._context.settings.workers.recycle.max_age_s
        self.recycle(self._pool.workers[name], Cause.RECYCLED, f"older than {age:g} s", kind="max_age")

    def on_trim_check(self, name: str) -> None:
        """A worker that has been idle for ``idle_trim_s`` trims its memory, once."""
        worker, process = self._pool.workers[name], self._pool.workers[name].process
        after = self._context.settings.workers.recycle.idle_trim_s
        if not worker.serving or not after or process.trimmed:
            return
        idle_since = process.idle_since if worker.state is WorkerState.READY else self._context.now
        if self._context.now >= idle_since + after:
            process.trimmed = True
            self._context.effects.append(Tell(worker.incarnation, Trim()))
        else:
            self._context.timers.set(("trim", name), idle_since + after)

    def freshen(self) -> None:
        """A job needs a process without earlier jobs, and none is coming: have one process replaced."""
        if any(self._is_coming(worker) or worker.process.replace_reason for worker in self._pool):
            return
        serving = [worker for worker in self._pool if worker.serving]
        if serving:
            chosen = next((worker for worker in serving if worker.state is WorkerState.READY), serving[0])
            reason = "a job that ran out of memory is tried again on a fresh process"
            self.recycle(chosen, Cause.RECYCLED, reason, kind="fresh", at_once=True)

    def _is_coming(self, worker: Worker) -> bool:
        """Whether a process will be ready soon, without another worker making room for its memory."""
        if worker.state is WorkerState.WAITING and self._context.now - worker.waits_since >= _PATIENCE_S:
            return False
        return worker.state in COMING and not worker.process.stuck

    # --- replacing

    def reconcile(self) -> None:
        """Take every replacement one stage further, where that can be done now."""
        if self._pool.stopping:
            return
        for worker in self._pool:
            process = worker.process
            if process.replace_reason is None or worker.retiring or not worker.serving:
                continue
            spare = self._pool.spare_of(worker)
            if spare is not None and spare.serving:
                self._hand_over(worker)
                self._context.log("info", "spare takes over", worker=spare.name, replaces=worker.name)
            elif process.replace_at_once and spare is not None and spare.state is WorkerState.STARTING:
                self._hand_over(worker)
            elif process.replace_at_once:
                self._drain_in_place(worker, spare)
            elif spare is not None:
                self._look_at_spare(worker, spare)
            elif not self._under_way():
                self._begin(worker)

    def _hand_over(self, worker: Worker) -> None:
        """The spare follows this worker."""
        worker.retiring = True
        self._pool.drain(worker)

    def _under_way(self) -> bool:
        """Whether a process is being replaced: until it has ended, a spare for another would be one too many."""
        return any(
            worker.replaced_in_place
            or worker.replaces is not None
            or (worker.process.replace_reason and worker.state in _GOING)
            for worker in self._pool
            if not worker.process.stuck
        )

    def _begin(self, worker: Worker) -> None:
        if self._gpus.unseen(worker.gpu):
            # There may be room for a spare in a moment: the next sample brings us here again.
            if not self._sample_asked:
                self._sample_asked = True
                self._context.effects.append(Sample())
        elif self._gpus.spare_fits(worker, self._pool.workers.values()):
            spare = self._pool.add(worker.gpu, replaces=worker)
            self._context.log("info", "spare is loaded first", worker=spare.name, replaces=worker.name)
        else:
            self._drain_in_place(worker, None)

    def _look_at_spare(self, worker: Worker, spare: Worker) -> None:
        """Give up a spare that does not fit. One that fails otherwise is tried again: the old process still works."""
        died_of = spare.last_exit.cause if spare.last_exit else None
        if (spare.state is WorkerState.WAITING and spare.reason) or died_of in (Cause.OUT_OF_MEMORY, Cause.HOST_OOM):
            self._drain_in_place(worker, spare)

    def _drain_in_place(self, worker: Worker, spare: Worker | None) -> None:
        worker.replaced_in_place = True
        if spare is not None:
            spare.replaces = None
        self._pool.drain(worker)
        if spare is not None:
            self._pool.retire(spare, Cause.REQUESTED, "there is no room for a spare")
