"""Which workers are replaced by a fresh process, why, and in what order, so that nobody waits for it.

Where the memory of GPU and host allows it, a spare is loaded first and the old process ends when the spare is ready.
Else the old one is drained and ended, and the next is started when its memory is seen free. One at a time.
"""

from __future__ import annotations

from glmtts.protocol.worker import Memory, Trim

from ..context import Context
from ..effects import Sample, Tell
from ..exit_causes import Cause
from .gpus import Gpus
from .memory_watch import IdleSample, Limit, MemoryLimits, MemoryWatch
from .pool import Pool
from .worker import COMING, Death, Worker, WorkerState

#: A worker's floor is looked at so often at most, unless its memory has moved by more than this.
_FLOOR_EVERY_S = 0.1
_STEP = 8 << 20
#: Of a worker that is never idle, the least of so many samples counts.
_BUSY_SAMPLES = 3

#: A process that has waited for memory for so long may wait for what this GPU's other workers hold.
_PATIENCE_S = 10.0

#: A process that was told to go, and is still there.
_GOING = frozenset({WorkerState.DRAINING, WorkerState.STOPPING})


class Recycler:
    """Watches what workers grow to, and has them replaced."""

    def __init__(self, context: Context, pool: Pool, gpus: Gpus) -> None:
        self._context = context
        self._pool = pool
        self._gpus = gpus
        #: Whether a sample was asked for that shows if a spare fits, and has not come yet.
        self._sample_asked = False

    # --- reasons

    def recycle(self, worker: Worker, cause: Cause, reason: str, *, kind: str, at_once: bool = False) -> bool:
        """Have the worker's process replaced; returns whether there is one that can be.

        ``kind``: the reason as one of tally.RECYCLE_REASONS.
        """
        if not worker.serving or worker.retiring:
            return False
        if worker.leaving is None:
            self._context.log("info", "worker is recycled", worker=worker.name, cause=cause, reason=reason)
            worker.leaving = Death(cause, reason, self._context.now)
            self._context.counters.recycled(kind)
        worker.leaves_at_once = worker.leaves_at_once or at_once
        self._context.workers_dirty = True
        return True

    def renew(self, reason: str) -> list[str]:
        """Settings have changed that processes are started with: have each that was started by the old ones replaced.

        Returns the workers of which that is true. One that is still loading has nothing to lose, and is ended at once.
        """
        self._pool.generation += 1
        self._pool.start_anew()
        old = [worker for worker in self._pool if worker.has_process and not worker.retiring and not worker.stuck]
        old = [worker for worker in old if worker.generation != self._pool.generation]
        for worker in old:
            if worker.state is WorkerState.STARTING:
                self._context.log("info", "worker is started again", worker=worker.name, reason=reason)
                worker.leaving = Death(Cause.OPERATOR, reason, self._context.now)
                self._pool.drain(worker)
        for worker in old:
            self.recycle(worker, Cause.OPERATOR, reason, kind="configuration")
        return [worker.name for worker in old]

    def on_ready(self, worker: Worker) -> None:
        """A process is loaded: what it holds now is what growth is measured from. A spare may take over."""
        if worker.memory is not None and worker.serving:
            self._judge(worker, vram=None)

    def after_job(self, worker: Worker) -> None:
        """A worker is through with a job: it may have done enough of them, or hold too much."""
        if not worker.serving:
            return
        recycle = self._context.settings.workers.recycle
        if recycle.max_jobs and worker.jobs_done >= recycle.max_jobs and worker.leaving is None:
            reason = f"spoke {worker.jobs_done} jobs, max_jobs is {recycle.max_jobs}"
            self.recycle(worker, Cause.RECYCLED, reason, kind="max_jobs")
        memory, now = worker.memory, self._context.now
        # What a job that is put aside holds is no floor.
        if memory is None or worker.aside:
            return
        last = worker.floor_memory
        if last is not None and now - worker.floor_at < _FLOOR_EVERY_S:
            reserved = (memory.torch_reserved or 0) - (last.torch_reserved or 0)
            if abs(memory.rss - last.rss) < _STEP and abs(reserved) < _STEP:
                return
        self._judge(worker, vram=worker.vram_by_torch)

    def on_sampled(self) -> None:
        """There are new samples: an idle worker holds its floor now."""
        self._sample_asked = False
        for worker in self._pool:
            if not worker.serving or worker.memory is None:
                continue
            vram = self._trusted_vram(worker)
            if vram is not None and worker.state is WorkerState.BUSY:
                worker.busy_vram = [*worker.busy_vram[1 - _BUSY_SAMPLES :], vram]
                vram = min(worker.busy_vram)
            elif worker.jobs_done == worker.sampled_jobs:
                continue  # nothing was spoken since the last time
            else:
                worker.busy_vram = []
            if vram is not None:
                worker.sampled_jobs = worker.jobs_done
                self._judge(worker, vram=vram)

    @staticmethod
    def _trusted_vram(worker: Worker) -> int | None:
        """What NVML says that it holds.

        What is worked out from the whole device can be a neighbour's growth: it is used only where torch says nothing.
        """
        share = worker.share
        torch_knows = worker.memory is not None and worker.memory.torch_reserved is not None
        trust = "" if share.vram is None or (share.trust == "device" and torch_knows) else share.trust
        if trust not in ("process", "device"):
            trust = ""
        if worker.watched_trust != trust:
            # Figures of another source differ by what that source leaves out: that is no growth.
            worker.watch, worker.watched_trust = MemoryWatch(), trust
        return share.vram if trust else None

    def _judge(self, worker: Worker, vram: int | None) -> None:
        memory = worker.memory
        assert memory is not None
        worker.floor_at, worker.floor_memory = self._context.now, memory
        verdict = worker.watch.add(self._idle_sample(worker, memory, vram), self._limits(worker))
        if verdict.action == "none" or worker.retiring:
            return
        if verdict.action == "trim":
            if worker.leaving is None:
                self._context.log("info", "worker is trimmed", worker=worker.name, reason=verdict.reason)
                self._context.effects.append(Tell(worker.incarnation, Trim()))
            return
        limit = verdict.kind in ("limit", "host_limit")
        if worker.leaving is None or (verdict.urgent and not worker.leaves_at_once):
            cause = Cause.RECYCLED if limit else Cause.LEAK
            self.recycle(worker, cause, verdict.reason, kind=verdict.kind, at_once=verdict.urgent)

    @staticmethod
    def _idle_sample(worker: Worker, memory: Memory, vram: int | None) -> IdleSample:
        return IdleSample(
            jobs=worker.jobs_done,
            rss=memory.rss,
            vram=vram,
            torch_allocated=memory.torch_allocated,
            torch_reserved=memory.torch_reserved,
        )

    def _limits(self, worker: Worker) -> MemoryLimits:
        recycle = self._context.settings.workers.recycle
        limits = []
        if recycle.max_rss_mib:
            limits.append(Limit(recycle.max_rss_mib << 20, "max_rss_mib"))
        available = self._gpus.host_available
        if available is not None and worker.memory is not None:
            limits.append(Limit(worker.memory.rss + available, "the host", hard=False))
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
        recycle = self._context.settings.workers.recycle
        gpu = self._gpus.find(worker.gpu)
        total = gpu.reading.total if gpu else None
        limits = []
        if recycle.max_vram_mib:
            limits.append(Limit(recycle.max_vram_mib << 20, "max_vram_mib"))
        if recycle.max_vram_share and total:
            words = f"{recycle.max_vram_share:.0%} of GPU {worker.gpu}"
            limits.append(Limit(int(recycle.max_vram_share * total), words))
        free = self._gpus.free(worker.gpu, self._pool)
        if free is not None and worker.share.vram is not None:
            limits.append(Limit(worker.share.vram + free, f"GPU {worker.gpu}", hard=False))
        limit = min(limits, default=None)
        if limit and not worker.watched_trust and worker.share.vram is not None and worker.sampled_reserved is not None:
            # It is judged by torch's figure, which leaves out the context and the libraries.
            beside_torch = max(0, worker.share.vram - worker.sampled_reserved)
            return Limit(limit.bytes - beside_torch, limit.words, limit.hard)
        return limit

    def on_trimmed(self, worker: Worker, memory: Memory) -> None:
        """A worker has given back what it could."""
        worker.memory = memory
        self._context.log("debug", "worker trimmed", worker=worker.name, rss=memory.rss)
        worker.watch.trimmed(self._idle_sample(worker, memory, None))
        if worker.serving:
            self._judge(worker, vram=None)
        # What the trim brought on the GPU is seen in the next sample, whether or not there is a job before it.
        worker.sampled_jobs = -1
        if worker.gpu is not None:
            self._context.effects.append(Sample())

    def on_age(self, name: str) -> None:
        """The process is as old as it may get."""
        age = self._context.settings.workers.recycle.max_age_s
        self.recycle(self._pool.workers[name], Cause.RECYCLED, f"older than {age:g} s", kind="max_age")

    def on_trim_check(self, name: str) -> None:
        """A worker that has been idle for long gives its cached memory back, once."""
        worker = self._pool.workers[name]
        after = self._context.settings.workers.recycle.idle_trim_s
        if not worker.serving or not after or worker.trimmed:
            return
        if worker.state is WorkerState.READY and self._context.now >= worker.idle_since + after:
            worker.trimmed = True
            self._context.effects.append(Tell(worker.incarnation, Trim()))
        else:
            since = worker.idle_since if worker.state is WorkerState.READY else self._context.now
            self._context.timers.set(("trim", name), since + after)

    def freshen(self) -> None:
        """A job needs a process that has had none, and none is coming: have one made."""
        if any(self._is_coming(worker) or worker.leaving for worker in self._pool):
            return
        serving = [worker for worker in self._pool if worker.serving]
        if serving:
            chosen = next((worker for worker in serving if worker.state is WorkerState.READY), serving[0])
            reason = "a job that ran out of memory is tried again on a fresh process"
            self.recycle(chosen, Cause.RECYCLED, reason, kind="fresh", at_once=True)

    def _is_coming(self, worker: Worker) -> bool:
        """Whether a process will be there soon, for whose memory nobody has to make room."""
        if worker.state is WorkerState.WAITING and self._context.now - worker.waits_since >= _PATIENCE_S:
            return False
        return worker.state in COMING and not worker.stuck

    # --- replacing

    def reconcile(self) -> None:
        """Take every replacement one stage further, where that can be done now."""
        if self._pool.stopping:
            return
        for worker in self._pool:
            if worker.leaving is None or worker.retiring or not worker.serving:
                continue
            spare = self._pool.spare_of(worker)
            if spare is not None and spare.serving:
                self._context.log("info", "spare takes over", worker=spare.name, replaces=worker.name)
                self._hand_over(worker)
            elif worker.leaves_at_once and spare is not None and spare.state is WorkerState.STARTING:
                self._hand_over(worker)
            elif worker.leaves_at_once:
                self._drain_in_place(worker, spare)
            elif spare is not None:
                self._look_at_spare(worker, spare)
            elif not self._under_way():
                self._begin(worker)

    def _hand_over(self, worker: Worker) -> None:
        """Its spare is what comes after it."""
        worker.retiring = True
        self._pool.drain(worker)

    def _under_way(self) -> bool:
        """Whether one is being replaced: until its process is gone, the next one's spare would be one too many."""
        return any(
            worker.renewing or worker.replaces is not None or (worker.leaving and worker.state in _GOING)
            for worker in self._pool
            if not worker.stuck
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
        """A spare that did not fit after all is given up; one that fails for another reason is tried again, since the
        old process works, and ending it would leave nobody.
        """
        died_of = spare.last_death.cause if spare.last_death else None
        if spare.state is WorkerState.WAITING or died_of in (Cause.OUT_OF_MEMORY, Cause.HOST_OOM):
            self._drain_in_place(worker, spare)

    def _drain_in_place(self, worker: Worker, spare: Worker | None) -> None:
        if spare is not None:
            spare.replaces = None
            self._pool.retire(spare, Cause.REQUESTED, "there is no room for a spare")
        worker.renewing = True
        self._pool.drain(worker)
