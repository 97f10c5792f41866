"""The memory of a simulated process, on its host and on its GPU."""

from __future__ import annotations

from glmtts.protocol import worker as wire

from .hardware import Gpu
from .place import Place


class Memory:
    """What one process holds: its context, its model, what jobs leave behind."""

    def __init__(self, world: Place, pid: int, gpu: Gpu | None, share: float) -> None:
        self._world = world
        self._pid = pid
        self._gpu = gpu
        self._share = share
        self.rss = 0
        #: Bytes of the model.
        self.load = int(world.scene.load * world.random.uniform(0.97, 1.0))
        self.leaked = self._cache = 0
        #: A job, or its load, did not fit the GPU.
        self.ran_out = False

    def report(self) -> wire.Memory:
        """What the process says of it."""
        if self._gpu is None or not self._world.scene.torch:
            return wire.Memory(rss=self.rss)
        allocated = self.load + self.leaked
        return wire.Memory(rss=self.rss, torch_allocated=allocated, torch_reserved=allocated + self._cache)

    def take(self, size: int) -> bool:
        """Hold so much of the GPU; returns whether it was there."""
        there = self._world.hardware.take(self._gpu, self._pid, size, self._share)
        if not there:
            self.ran_out = self._gpu is not None and not self._gpu.lost
        return there

    def work(self) -> bool:
        """Take what a job needs on top; returns whether it was there."""
        need = self._world.random.randrange(self._world.scene.work)
        if not self.take(self._idle - self._cache + max(self._cache, need)):
            return False
        self._cache = max(self._cache, need)
        return True

    def leak(self) -> None:
        """Keep what a job leaves behind."""
        scene = self._world.scene
        if scene.leaks_on == "device":
            self.leaked += scene.leak
        elif scene.leaks_on == "host":
            self.rss += scene.leak
        self._cache += scene.hoard
        if self._gpu is not None and not self._world.hardware.take(self._gpu, self._pid, self._idle, self._share):
            # It is the next job that finds out.
            self.leaked = max(0, self.leaked - scene.leak)
            self._cache = max(0, self._cache - scene.hoard)

    def trim(self) -> None:
        """Give back what is only cached."""
        self._cache = 0
        self._world.hardware.take(self._gpu, self._pid, self._idle, self._share)

    def leave(self) -> None:
        """The process has ended."""
        self._world.hardware.leave(self._gpu, self._pid)
        self.rss = 0

    @property
    def _idle(self) -> int:
        """Bytes of the GPU that it holds between jobs."""
        return self._world.scene.context + self.load + self.leaked + self._cache
