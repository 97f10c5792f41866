"""The number of workers, between ``min`` and ``max``, by the waiting time of jobs; a new one goes to the emptiest GPU.

The measure is waiting time, not load of the processor: a worker that waits for its GPU uses none.
"""

from __future__ import annotations

from typing import Any

from ..context import Context
from ..exit_causes import Cause
from ..jobs.queue import WaitingQueue
from .gpus import Gpus
from .placement import asks_nvml, gpus_of, most, next_gpu
from .pool import Pool
from .worker import Worker, WorkerState

#: The first workers wait this long for the first sample of the GPUs.
_FIRST_LOOK_S = 10.0

#: States in the order in which workers go when there are too many.
_DISPENSABLE = (
    WorkerState.BACKOFF,
    WorkerState.WAITING,
    WorkerState.FAILED,
    WorkerState.STARTING,
    WorkerState.STOPPING,
    WorkerState.DRAINING,
    WorkerState.READY,
    WorkerState.BUSY,
)


class Autoscaler:
    """Owns the wanted number of workers. ``min`` and ``max`` are the configuration's, or an operator's."""

    def __init__(self, context: Context, pool: Pool, gpus: Gpus, queue: WaitingQueue) -> None:
        self._context = context
        self._pool = pool
        self._gpus = gpus
        self._queue = queue
        self._indices: list[int] = []
        #: The bounds that an operator has set.
        self._set: tuple[int, int] | None = None
        self._wanted = 0
        self.opened = False

    # --- bounds

    @property
    def places(self) -> int:
        """The most workers that the configuration has places for."""
        return most(self._context.settings, self._indices)

    @property
    def max(self) -> int:
        return self._set[1] if self._set else self.places

    @property
    def min(self) -> int:
        if self._set:
            return self._set[0]
        workers = self._context.settings.workers
        # Without a number, and without unloading, all of them are there from the beginning.
        lowest = workers.min if workers.min or workers.idle_unload_s else self.max
        return min(lowest, self.max)

    @property
    def wanted(self) -> int:
        """The number of workers that there should be now."""
        return self._wanted

    def bounds(self) -> dict[str, int]:
        """The bounds as ``workers`` shows them."""
        return {"min": self.min, "max": self.max, "wanted": self._wanted}

    # --- opening

    def open(self) -> None:
        """Add the first workers, at once or when the GPUs are known."""
        if asks_nvml(self._context.settings):
            self._context.timers.set(("look", ""), self._context.now + _FIRST_LOOK_S)
        else:
            self._open()

    def on_sampled(self) -> None:
        """There is a sample of the GPUs."""
        if not self.opened:
            self._open()
        else:
            self._look_for_more()

    def _look_for_more(self) -> None:
        """Use GPUs that NVML did not show before."""
        settings = self._context.settings
        found = gpus_of(settings, self._gpus.indices)
        if settings.workers.gpus != "all" or len(found) <= len(self._indices):
            return
        self._context.log("info", "GPUs found", gpus=found)
        self._indices = found
        for worker in self._counted():
            if worker.gpu not in found:
                self._pool.retire(worker, Cause.REQUESTED, "there are GPUs now")

    def on_first_look_late(self) -> None:
        """NVML does not answer: assume that the configured GPUs are there."""
        if not self.opened:
            self._context.log("warning", "GPUs are used unseen: NVML has not answered", after_s=_FIRST_LOOK_S)
            self._open()

    def _open(self) -> None:
        self.opened = True
        self._context.timers.cancel(("look", ""))
        settings = self._context.settings
        self._indices = gpus_of(settings, self._gpus.indices)
        self._wanted = min(self.max, max(1, self.min))

    # --- more and fewer

    def _counted(self) -> list[Worker]:
        """The workers that stay; a spare only once it has taken over."""
        return [w for w in self._pool if not w.retiring and not w.process.stuck and not self._is_spare(w)]

    def _is_spare(self, worker: Worker) -> bool:
        old = self._pool.workers.get(worker.replaces or "")
        return old is not None and not old.retiring and not old.process.stuck

    def _still_there(self) -> list[Worker]:
        """Retiring workers without a spare: they occupy their place, and its memory, until their process has ended."""
        return [
            w for w in self._pool if w.retiring and w.has_process and not w.process.stuck and not self._pool.spare_of(w)
        ]

    def reconcile(self) -> None:
        """Add or retire workers until the wanted number is there."""
        if not self.opened or self._pool.stopping:
            return
        self._wanted = min(max(self._wanted, self.min), self.max)
        counted = self._counted()
        self._move_waiting(counted)
        leaving = self._still_there() if len(counted) < self._wanted else []
        while len(counted) < self._wanted and len(counted) + len(leaving) < self.max:
            gpu = None
            if self._indices:
                per_gpu = self._context.settings.workers.per_gpu
                gpu = next_gpu(self._indices, [worker.gpu for worker in (*counted, *leaving)], per_gpu)
                if gpu is None:
                    return
            if len(self._pool.workers) >= 2 * self.max + 2:
                return  # processes that can't be ended fill the machine
            counted.append(self._pool.add(gpu))
        for _ in range(len(counted) - self._wanted):
            chosen = min(counted, key=self._dispensable)
            counted.remove(chosen)
            self._pool.retire(chosen, Cause.OPERATOR, f"{self._wanted} workers are wanted")

    def _move_waiting(self, counted: list[Worker]) -> None:
        """Move workers that wait for a lost or full GPU to one with a place and room."""
        per_gpu = self._context.settings.workers.per_gpu
        leaving = self._still_there()
        for worker in counted:
            if worker.state is not WorkerState.WAITING or worker.gpu is None:
                continue
            if not self._gpus.obstacle(worker.gpu, worker, self._pool):
                continue  # it waits for the breaker, here as elsewhere
            elsewhere = [gpu for gpu in self._indices if not self._gpus.obstacle(gpu, worker, self._pool)]
            gpu = next_gpu(elsewhere, [other.gpu for other in (*counted, *leaving) if other is not worker], per_gpu)
            if gpu is not None and gpu != worker.gpu:
                self._pool.move(worker, gpu)

    def _dispensable(self, worker: Worker) -> tuple[bool, int, int, float]:
        on_gpu = sum(other.gpu == worker.gpu for other in self._counted())
        # After a change of per_gpu a GPU may have more workers than places: these go first.
        fits = worker.gpu is None or on_gpu <= self._context.settings.workers.per_gpu
        return fits, _DISPENSABLE.index(worker.state), -on_gpu, -worker.process.started_at

    def on_waiting(self) -> None:
        """A job waits: start a worker now if there is none, or one more after ``scale_up_wait_s``."""
        if not self.opened or self._wanted >= self.max:
            return
        if not self._wanted:
            self._grow("a job came")
        elif ("grow", "") not in self._context.timers:
            self._arm()

    def _arm(self) -> None:
        oldest = self._queue.oldest()
        if oldest is not None:
            after_s = self._context.settings.workers.scale_up_wait_s
            self._context.timers.set(("grow", ""), max(self._context.now, oldest + after_s))

    def on_grow_due(self) -> None:
        """Load one more worker if the oldest job has waited for ``scale_up_wait_s``."""
        oldest = self._queue.oldest()
        if oldest is None or self._wanted >= self.max or self._pool.stopping:
            return
        after_s, now = self._context.settings.workers.scale_up_wait_s, self._context.now
        loading = any(not w.serving and not w.process.stuck for w in self._counted())
        if now < oldest + after_s:
            self._arm()
            return
        # A worker that is loading may be enough.
        if not loading:
            self._grow(f"a job has waited for {now - oldest:.1f} s")
        self._context.timers.set(("grow", ""), now + max(after_s, 1.0))

    def _grow(self, reason: str) -> None:
        self._wanted += 1
        self._context.log("info", "one more worker", wanted=self._wanted, max=self.max, reason=reason)
        self._context.workers_dirty = True

    def on_unload_check(self, name: str) -> None:
        """Retire a worker that has been idle for ``idle_unload_s``."""
        worker = self._pool.workers[name]
        after = self._context.settings.workers.idle_unload_s
        if not after or not worker.serving or worker.retiring:
            return
        now = self._context.now
        if worker.state is WorkerState.BUSY or now < worker.process.idle_since + after:
            since = worker.process.idle_since if worker.state is WorkerState.READY else now
            self._context.timers.set(("unload", name), since + after)
        elif self._wanted > self.min and not worker.process.replace_reason and worker.replaces is None:
            self._wanted -= 1
            self._pool.retire(worker, Cause.UNLOADED, f"no job for {after:g} s")
        else:
            self._context.timers.set(("unload", name), now + after)

    def scale(self, lowest: int | None, highest: int | None) -> str:
        """Set other bounds. Returns what is wrong with them, or ``""``."""
        new_max = self.max if highest is None else highest
        new_min = min(self.min, new_max) if lowest is None else lowest
        places = self._context.settings.workers.per_gpu * len(self._indices)
        if self._indices and new_max > places:
            return f"max: {new_max} is more than the {places} workers that [workers] gpus and per_gpu have places for"
        if new_min > new_max:
            return f"min: {new_min} is more than max = {new_max}"
        self._set = (new_min, new_max)
        # At least one: an operator who scales wants to see a worker.
        self._wanted = min(max(self._wanted, new_min, 1), new_max)
        self._context.log("info", "workers scaled by an operator", min=new_min, max=new_max, wanted=self._wanted)
        return ""

    def apply(self, *, bounds_changed: bool) -> None:
        """The settings have changed. New bounds in them replace those of an operator."""
        if bounds_changed:
            self._set = None
        if self.opened:
            self._indices = gpus_of(self._context.settings, self._gpus.indices)

    def describe(self) -> dict[str, Any]:
        """The answer to ``scale``."""
        return {"min": self.min, "max": self.max, "workers": self._wanted}
