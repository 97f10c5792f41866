"""Readings of the GPUs and of the host's memory, and whether there is room for one more worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct, structs

from ..alerts import Alerts
from ..context import Context
from ..inputs import GpuReading, NvmlReading, Sampled, Xids
from .gpu_attribution import UNKNOWN, Holder, attribute, others
from .process import Process
from .worker import Worker, WorkerState

#: Older readings are out of date: NVML is blocked, or the sampler is late.
_FRESH_S = 10.0
#: The need of a worker is measured while it has done at most this many jobs: later it may have leaked.
_YOUNG_JOBS = 8
#: On this many processes; the largest counts.
_REMEMBERED = 5
#: A spare needs room for a process and a margin: the running workers grow while it loads, and must not run out.
_SPARE_MARGIN = 1.25


class Gpu(Struct):
    """One GPU: its last reading, the time of that, and the memory in use without our workers."""

    reading: GpuReading
    at: float
    baseline: int | None = None
    #: When a process of ours last ended here: its memory is free in a later reading at the earliest.
    ended_at: float = 0.0
    #: When it last reported an Xid that no program causes.
    xid_at: float = float("-inf")


class Gpus:
    """Owns the last reading of each GPU and of the host, and the measured need of one worker."""

    def __init__(self, context: Context, alerts: Alerts) -> None:
        self._context = context
        self._alerts = alerts
        self._gpus: dict[int, Gpu] = {}
        #: When a worker process last ended on a GPU that has not been sampled yet.
        self._ended_unseen: dict[int, float] = {}
        self.nvml = NvmlReading()
        self.sampled = False
        self.host_total: int | None = None
        self.host_available: int | None = None
        #: GPU memory of the last few processes when each was loaded, by incarnation.
        self._loaded: dict[int, int] = {}

    # --- readings

    def on_sampled(self, sampled: Sampled, workers: Iterable[Worker]) -> None:
        """Keep new readings, and give each worker its share."""
        self.sampled = True
        self.nvml = sampled.nvml
        troubled = self.nvml.state in ("failing", "blocked")
        self._alerts.set("nvml", f"NVML is {self.nvml.state}: {self.nvml.detail}" if troubled else "")
        self.host_total, self.host_available = sampled.host_total, sampled.host_available
        readings = {reading.incarnation: reading for reading in sampled.processes}
        running = [worker for worker in workers if worker.process.pid is not None]
        for worker in running:
            if (seen := readings.get(worker.incarnation)) is not None:
                worker.process.process_state, worker.process.descendants = seen.state, seen.descendants
        for reading in sampled.gpus:
            self._look_at_gpu(reading, sampled.at, [w.process for w in running if w.gpu == reading.index])

    def _look_at_gpu(self, reading: GpuReading, at: float, processes: list[Process]) -> None:
        gpu = self._gpus.get(reading.index)
        if gpu is None:
            gpu = self._gpus[reading.index] = Gpu(structs.replace(reading, xids=Xids()), at)
            # A late first sample may still show the memory of a process that has ended since.
            gpu.ended_at = self._ended_unseen.pop(reading.index, gpu.ended_at)
        self._look_at_xids(gpu, reading)
        gpu.reading, gpu.at = reading, at
        lost = reading.state == "lost"
        self._alerts.set(f"gpu_lost.{reading.index}", f"GPU {reading.index} is lost: {reading.detail}" if lost else "")
        if reading.state != "ok":
            # Its memory is unknown now, which is not zero.
            return
        if not processes and at > gpu.ended_at:
            gpu.baseline = reading.used
        shares = attribute(
            reading,
            [
                Holder(
                    incarnation=process.incarnation,
                    pid=process.pid or 0,
                    torch_reserved=process.memory.torch_reserved if process.memory else None,
                    ready=process.ready is not None,
                    descendants=process.descendants,
                )
                for process in processes
            ],
            gpu.baseline,
        )
        for process in processes:
            # A process that NVML had a figure for, and has none for now, is dead: the rest of the GPU is not its share.
            listed = not reading.processes.keys().isdisjoint((process.pid, *process.descendants))
            ended = process.share.trust == "process" and not listed
            process.share = UNKNOWN if ended else shares.get(process.incarnation, UNKNOWN)
            process.sampled_reserved = process.memory.torch_reserved if process.memory else None
            # A reading from before it was ready may show it half loaded.
            if process.ready is not None and at >= process.ready_at:
                self._learn(process)

    def _look_at_xids(self, gpu: Gpu, reading: GpuReading) -> None:
        if reading.xids == gpu.reading.xids:
            return
        its_own = reading.xids.of_gpu > gpu.reading.xids.of_gpu
        if its_own:
            gpu.xid_at = self._context.now
        xid = reading.xids.last_of_gpu if its_own else reading.xids.last
        self._context.log("error" if its_own else "warning", "GPU reports an error", gpu=reading.index, xid=xid)

    def _learn(self, process: Process) -> None:
        """The least memory of a young process is the need of a loaded model: a job may take any amount more."""
        share = process.share
        if share.vram and share.trust in ("process", "device") and process.jobs_done <= _YOUNG_JOBS:
            self._loaded[process.incarnation] = min(self._loaded.get(process.incarnation, share.vram), share.vram)
            while len(self._loaded) > _REMEMBERED:
                del self._loaded[next(iter(self._loaded))]

    def ended(self, index: int | None) -> None:
        """A worker process on this GPU has ended."""
        if index is None:
            return
        if (gpu := self._gpus.get(index)) is not None:
            gpu.ended_at = self._context.now
        else:
            self._ended_unseen[index] = self._context.now

    # --- what is asked

    @property
    def indices(self) -> list[int]:
        """The numbers of the GPUs that NVML has shown."""
        return sorted(self._gpus)

    def find(self, index: int | None) -> Gpu | None:
        return None if index is None else self._gpus.get(index)

    def memory(self) -> list[tuple[int, int | None, int | None]]:
        """Number, used bytes and total bytes of each GPU; None where unknown now."""
        now = self._context.now
        known = [(index, gpu.reading, now - gpu.at <= _FRESH_S) for index, gpu in self._gpus.items()]
        return [(i, r.used if fresh and r.state == "ok" else None, r.total) for i, r, fresh in known]

    def lately_xid(self, index: int, since: float) -> int:
        """The last Xid since then that no program causes; 0: none."""
        gpu = self._gpus[index]
        return gpu.reading.xids.last_of_gpu if gpu.xid_at > since else 0

    def is_lost(self, index: int | None) -> bool:
        """Whether no process can be started there until the GPU is repaired."""
        gpu = self.find(index)
        return gpu is not None and gpu.reading.state == "lost"

    def device(self, index: int | None) -> str | None:
        """The value of CUDA_VISIBLE_DEVICES for a worker on this GPU."""
        if index is None:
            return None
        gpu = self._gpus.get(index)
        return gpu.reading.uuid if gpu else str(index)

    def share_limit(self, index: int | None) -> float:
        """The share of its GPU that a process may use, for torch's allocator, 0..1; 0: no limit."""
        recycle = self._context.settings.workers.recycle
        known = self.find(index)
        if index is None:
            return 0.0
        share = recycle.max_vram_share or 1.0
        if recycle.max_vram_mib and known and known.reading.total:
            share = min(share, (recycle.max_vram_mib << 20) / known.reading.total)
        return round(share, 4) if share < 1.0 else 0.0

    @property
    def need(self) -> int | None:
        """Bytes of GPU memory that one worker needs; None while unknown."""
        return (self._context.settings.workers.vram_mib << 20) or max(self._loaded.values(), default=0) or None

    def free(self, index: int, workers: Iterable[Worker]) -> int | None:
        """Free bytes of a GPU, less the memory that loading workers will still take; None where unknown."""
        gpu = self._gpus.get(index)
        if gpu is None or gpu.reading.state != "ok" or gpu.reading.free is None:
            return None
        if self._context.now - gpu.at > _FRESH_S:
            return None
        need = self.need or 0
        shares = [w.process.share for w in workers if w.gpu == index and self._is_loading(w, gpu)]
        # Only NVML's own figure counts as loaded: the rest may be memory of a dead process on its way back.
        coming = sum(max(0, need - ((share.vram or 0) if share.trust == "process" else 0)) for share in shares)
        return max(0, gpu.reading.free - coming)

    @staticmethod
    def _is_loading(worker: Worker, gpu: Gpu) -> bool:
        """Whether the last reading of its GPU is older than the end of its start, and so shows it half loaded."""
        starting = worker.state is WorkerState.STARTING
        return starting or (worker.serving and gpu.at < worker.process.ready_at)

    def room(self, index: int, workers: Iterable[Worker]) -> int | None:
        """How many more workers fit on a GPU; None where unknown."""
        need, free = self.need, self.free(index, workers)
        return None if need is None or free is None else free // need

    def unseen(self, index: int | None) -> bool:
        """Whether a process of ours has ended there since the last reading: its memory may be free by now."""
        gpu = self.find(index)
        return gpu is not None and gpu.reading.state == "ok" and gpu.at <= gpu.ended_at

    def obstacle(self, index: int | None, worker: Worker, workers: Iterable[Worker]) -> str:
        """Why no process can be started for ``worker`` on this GPU now, or ``""``. Unknown memory is no obstacle."""
        if index is None:
            return ""
        gpu = self._gpus.get(index)
        if gpu is None:
            if self.nvml.state == "ok" and self.sampled:
                have = ", ".join(map(str, self.indices)) or "none"
                return f"there is no GPU {index} here ([workers] gpus); NVML shows {have}"
            return ""
        if gpu.reading.state == "lost":
            return f"GPU {index} is lost: {gpu.reading.detail}"
        if gpu.reading.state != "ok" or self._context.now - gpu.at > _FRESH_S:
            return ""
        if self.unseen(index):
            return f"the memory of the last process on GPU {index} is not free yet"
        others = [other for other in workers if other is not worker]
        need = self.need
        if need is None:
            here = [other for other in others if other.gpu == index]
            if any(self._is_loading(other, gpu) for other in here):
                return f"the memory need of a worker on GPU {index} is measured on another one that is loading"
            return ""
        free = self.free(index, others)
        if free is None and any(other.gpu == index and other.process.stuck for other in others):
            return f"a process that can't be killed holds memory of GPU {index}, and its free memory is unknown"
        if free is not None and free < need:
            return f"GPU {index} has {mib(free)} MiB free, and a worker needs {mib(need)} MiB"
        return ""

    def spare_fits(self, worker: Worker, workers: Iterable[Worker]) -> bool:
        """Whether a second process fits beside this worker's, as measured."""
        memory = worker.process.memory
        if self.host_available is None or memory is None or self.host_available < memory.rss * _SPARE_MARGIN:
            return False
        if worker.gpu is None:
            return True
        need, free = self.need, self.free(worker.gpu, workers)
        return need is not None and free is not None and free >= need * _SPARE_MARGIN

    # --- for people

    def describe(self, workers: list[Worker]) -> dict[str, Any]:
        """Every GPU and the users of its memory, as ``gpus`` shows it."""
        return {
            "nvml": structs.asdict(self.nvml),
            "gpus": [self._describe(self._gpus[index], workers) for index in self.indices],
            "host": {"total": self.host_total, "available": self.host_available},
        }

    def _describe(self, gpu: Gpu, workers: list[Worker]) -> dict[str, Any]:
        reading = gpu.reading
        ours = [(w.name, w.process) for w in workers if w.gpu == reading.index and w.process.pid is not None]
        return {
            **{name: value for name, value in structs.asdict(reading).items() if name not in ("processes", "xids")},
            "workers": [
                {"name": name, "pid": process.pid, "vram": process.share.vram, "vram_trust": process.share.trust}
                for name, process in ours
            ],
            "others": others(reading, [process.share for _, process in ours]),
            "need": self.need,
            "room": self.room(reading.index, workers),
            "sampled_ago_s": round(self._context.now - gpu.at, 3),
        }


def mib(count: int) -> str:
    """Bytes as whole MiB, with separators: ``24,100``."""
    return f"{count >> 20:,}"
