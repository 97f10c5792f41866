"""What is known of the GPUs and of the host's memory, and whether there is room on them for one more worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct, structs

from ..alerts import Alerts
from ..context import Context
from ..inputs import GpuReading, NvmlReading, ProcessReading, Sampled, Xids
from .gpu_attribution import Holder, attribute, others
from .worker import NOBODY_KNOWS, Worker, WorkerState

#: Older readings say nothing of the present: NVML is blocked, or the sampler is late.
_FRESH_S = 10.0
#: What a worker needs is measured while it is young: later it may have leaked.
_YOUNG_JOBS = 8
#: On so many processes; the largest counts.
_REMEMBERED = 5
#: A spare needs what a process takes, and some air: those at work grow while it loads, and it can wait, they can't.
_SPARE_MARGIN = 1.25


class Gpu(Struct):
    """One GPU: its last reading, when that was taken, and what others had taken before we came."""

    reading: GpuReading
    at: float
    baseline: int | None = None
    #: When a process of ours was last seen to end here: what it held is free at a later reading at the earliest.
    ended_at: float = 0.0
    #: When it was last seen to have reported an Xid that is no program's.
    xid_at: float = float("-inf")


class Gpus:
    """Keeps the readings, and measures what one worker needs."""

    def __init__(self, context: Context, alerts: Alerts) -> None:
        self._context = context
        self._alerts = alerts
        self._gpus: dict[int, Gpu] = {}
        #: When a process of ours last ended on a GPU that was not read yet.
        self._ended_unseen: dict[int, float] = {}
        self.nvml = NvmlReading()
        self.sampled = False
        self.host_total: int | None = None
        self.host_available: int | None = None
        #: By process, the last few: what each held of its GPU when it was loaded.
        self._loaded: dict[int, int] = {}

    # --- readings

    def on_sampled(self, sampled: Sampled, workers: Iterable[Worker]) -> None:
        """New readings: remember them, and tell each worker what it holds."""
        self.sampled = True
        self.nvml = sampled.nvml
        troubled = self.nvml.state in ("failing", "blocked")
        self._alerts.set("nvml", f"NVML is {self.nvml.state}: {self.nvml.detail}" if troubled else "")
        self.host_total, self.host_available = sampled.host_total, sampled.host_available
        processes = {reading.incarnation: reading for reading in sampled.processes}
        running = [worker for worker in workers if worker.pid is not None]
        for worker in running:
            self._look_at_process(worker, processes.get(worker.incarnation))
        for reading in sampled.gpus:
            self._look_at_gpu(reading, sampled.at, [w for w in running if w.gpu == reading.index])
        for worker in running:
            # A reading that was begun before it was ready may show it half loaded.
            if sampled.at >= worker.ready_at:
                self._learn(worker)

    @staticmethod
    def _look_at_process(worker: Worker, reading: ProcessReading | None) -> None:
        if reading is not None:
            worker.process_state = reading.state

    def _look_at_gpu(self, reading: GpuReading, at: float, holders: list[Worker]) -> None:
        gpu = self._gpus.get(reading.index)
        if gpu is None:
            gpu = self._gpus[reading.index] = Gpu(structs.replace(reading, xids=Xids()), at)
            # A late first reading may still show the memory of a process that has ended since.
            gpu.ended_at = self._ended_unseen.pop(reading.index, gpu.ended_at)
        self._look_at_xids(gpu, reading)
        gpu.reading, gpu.at = reading, at
        lost = reading.state == "lost"
        self._alerts.set(f"gpu_lost.{reading.index}", f"GPU {reading.index} is lost: {reading.detail}" if lost else "")
        if reading.state != "ok":
            # What it held is not known any more: neither is it nothing.
            return
        if not holders and at > gpu.ended_at:
            gpu.baseline = reading.used
        shares = attribute(
            reading,
            [
                Holder(
                    incarnation=worker.incarnation,
                    pid=worker.pid or 0,
                    torch_reserved=worker.memory.torch_reserved if worker.memory else None,
                    ready=worker.ready is not None,
                )
                for worker in holders
            ],
            gpu.baseline,
        )
        for worker in holders:
            worker.share = shares.get(worker.incarnation, NOBODY_KNOWS)
            worker.sampled_reserved = worker.memory.torch_reserved if worker.memory else None

    def _look_at_xids(self, gpu: Gpu, reading: GpuReading) -> None:
        if reading.xids == gpu.reading.xids:
            return
        its_own = reading.xids.of_gpu > gpu.reading.xids.of_gpu
        if its_own:
            gpu.xid_at = self._context.now
        xid = reading.xids.last_of_gpu if its_own else reading.xids.last
        self._context.log("error" if its_own else "warning", "GPU reports an error", gpu=reading.index, xid=xid)

    def _learn(self, worker: Worker) -> None:
        """The least that a young process was seen to hold is what it takes to be loaded: a job may take any more."""
        if not worker.serving or worker.jobs_done > _YOUNG_JOBS or worker.share.trust not in ("process", "device"):
            return
        if worker.share.vram:
            before = self._loaded.get(worker.incarnation, worker.share.vram)
            self._loaded[worker.incarnation] = min(before, worker.share.vram)
            while len(self._loaded) > _REMEMBERED:
                del self._loaded[next(iter(self._loaded))]

    def ended(self, index: int | None) -> None:
        """A process of ours on this GPU is gone."""
        if index is None:
            return
        if (gpu := self._gpus.get(index)) is not None:
            gpu.ended_at = self._context.now
        else:
            self._ended_unseen[index] = self._context.now

    # --- what is asked

    @property
    def indices(self) -> list[int]:
        """The GPUs that NVML has shown."""
        return sorted(self._gpus)

    def find(self, index: int | None) -> Gpu | None:
        return None if index is None else self._gpus.get(index)

    def memory(self) -> list[tuple[int, int | None, int | None]]:
        """Of each GPU its number, and the bytes that are used and that it has; None where that is not known now."""
        now = self._context.now
        known = [(index, gpu.reading, now - gpu.at <= _FRESH_S) for index, gpu in self._gpus.items()]
        return [(i, r.used if fresh and r.state == "ok" else None, r.total) for i, r, fresh in known]

    def lately_xid(self, index: int, since: float) -> int:
        """The Xid that a GPU has reported since then, if it was no program's; 0: none."""
        gpu = self._gpus[index]
        return gpu.reading.xids.last_of_gpu if gpu.xid_at > since else 0

    def is_lost(self, index: int | None) -> bool:
        """Whether nothing can be started there until somebody has mended it."""
        gpu = self.find(index)
        return gpu is not None and gpu.reading.state == "lost"

    def device(self, index: int | None) -> str | None:
        """What CUDA_VISIBLE_DEVICES is set to for a worker on this GPU."""
        if index is None:
            return None
        gpu = self._gpus.get(index)
        return gpu.reading.uuid if gpu else str(index)

    @property
    def need(self) -> int | None:
        """Bytes of GPU memory that one worker needs; None as long as nobody knows."""
        return (self._context.settings.workers.vram_mib << 20) or max(self._loaded.values(), default=0) or None

    def free(self, index: int, workers: Iterable[Worker]) -> int | None:
        """Bytes on a GPU that nobody has, nor will have when those that are loading have loaded; None if not known."""
        gpu = self._gpus.get(index)
        if gpu is None or gpu.reading.state != "ok" or gpu.reading.free is None:
            return None
        if self._context.now - gpu.at > _FRESH_S:
            return None
        need = self.need or 0
        coming = sum(
            # Only NVML's own figure counts as loaded: the rest of a device may be a dead process's, on its way back.
            max(0, need - ((worker.share.vram or 0) if worker.share.trust == "process" else 0))
            for worker in workers
            if worker.gpu == index and worker.state is WorkerState.STARTING
        )
        return max(0, gpu.reading.free - coming)

    def room(self, index: int, workers: Iterable[Worker]) -> int | None:
        """How many more workers fit on a GPU; None if not known."""
        need, free = self.need, self.free(index, workers)
        return None if need is None or free is None else free // need

    def unseen(self, index: int | None) -> bool:
        """Whether a process of ours has ended there since the last look: what it held may be free by now."""
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
            return f"the memory of the last process on GPU {index} has to be seen free"
        others = [other for other in workers if other is not worker]
        need = self.need
        if need is None:
            here = [other for other in others if other.gpu == index]
            # One that has just been loaded is measured by the first reading after that.
            if any(w.state is WorkerState.STARTING or (w.serving and gpu.at < w.ready_at) for w in here):
                return f"what a worker needs on GPU {index} is measured on another one that is being loaded"
            return ""
        free = self.free(index, others)
        if free is None and any(other.gpu == index and other.stuck for other in others):
            return f"a process that can't be killed holds memory of GPU {index}, and what is free on it is not known"
        if free is not None and free < need:
            return f"GPU {index} has {mib(free)} MiB free, and a worker needs {mib(need)} MiB"
        return ""

    def spare_fits(self, worker: Worker, workers: Iterable[Worker]) -> bool:
        """Whether a second process fits beside this worker's, by what was measured."""
        if self.host_available is None or worker.memory is None:
            return False
        if self.host_available < worker.memory.rss * _SPARE_MARGIN:
            return False
        if worker.gpu is None:
            return True
        need, free = self.need, self.free(worker.gpu, workers)
        return need is not None and free is not None and free >= need * _SPARE_MARGIN

    # --- for people

    def describe(self, workers: list[Worker]) -> dict[str, Any]:
        """Every GPU and who uses its memory, as ``gpus`` shows it."""
        return {
            "nvml": {
                "state": self.nvml.state,
                "detail": self.nvml.detail,
                "driver": self.nvml.driver,
                "version": self.nvml.version,
            },
            "gpus": [self._describe(self._gpus[index], workers) for index in self.indices],
            "host": {"total": self.host_total, "available": self.host_available},
        }

    def _describe(self, gpu: Gpu, workers: list[Worker]) -> dict[str, Any]:
        reading = gpu.reading
        ours = [worker for worker in workers if worker.gpu == reading.index and worker.pid is not None]
        return {
            "index": reading.index,
            "uuid": reading.uuid,
            "name": reading.name,
            "state": reading.state,
            "detail": reading.detail,
            "total": reading.total,
            "used": reading.used,
            "free": reading.free,
            "utilization": reading.utilization,
            "temperature": reading.temperature,
            "mig": reading.mig,
            "workers": [
                {"name": w.name, "pid": w.pid, "vram": w.share.vram, "vram_trust": w.share.trust} for w in ours
            ],
            "others": others(reading, [worker.share for worker in ours]),
            "need": self.need,
            "room": self.room(reading.index, workers),
            "sampled_ago_s": round(self._context.now - gpu.at, 3),
        }


def mib(count: int) -> str:
    """Bytes as whole MiB, with separators: ``24,100``."""
    return f"{count >> 20:,}"
