"""GPUs and host memory as they truly are, and the sampler that tells the core a part of it, late, or not at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from glmtts.daemon.core import inputs

from .accidents import Scene
from .clocks import Clocks

#: The sampler looks so often by itself; NVML that blocks makes it wait for so long.
_EVERY_S, _EVERY_WITHOUT_NVML_S = 1.0, 5.0
_BLOCKED_S = 2.0


class Holder(Protocol):
    """A process, as the hardware sees it."""

    incarnation: int
    pid: int
    alive: bool
    uninterruptible: bool

    @property
    def rss(self) -> int: ...


class Surroundings(Protocol):
    """What the hardware needs of its world."""

    now: float
    clocks: Clocks
    random: random.Random
    scene: Scene
    without: frozenset[str]

    @property
    def ending(self) -> bool: ...
    def after(self, delay: float, action: Callable[[], object]) -> None: ...
    def later(self, delay: float, action: Callable[[], object]) -> None: ...
    def happen(self, event: inputs.Input) -> None: ...
    def started_processes(self) -> Iterable[Holder]: ...
    def sampled(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None: ...


class Gpu:
    """One GPU: who holds how much of it, truly."""

    def __init__(self, index: int, total: int) -> None:
        self.index = index
        self.uuid = f"GPU-{index:08x}"
        self.total = total
        self.held: dict[int, int] = {}
        #: Of dead processes: the driver takes a while.
        self.returning = 0
        self.lost = False

    @property
    def used(self) -> int:
        return sum(self.held.values()) + self.returning

    @property
    def free(self) -> int:
        return self.total - self.used


class Hardware:
    """The machine that the daemon runs on."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        scene = world.scene
        self.gpus = [Gpu(index, scene.gpu_total) for index in range(scene.gpus)]
        self.nvml: Literal["ok", "failing", "blocked", "absent"] = "absent" if scene.nvml == "absent" else "ok"
        self.host_taken = 0
        self._asked = self._sampling = False
        self._turn = 0
        self._strangers = 0
        self._known: list[inputs.GpuReading] = []
        rng = world.random
        if scene.foreigners and self.gpus:
            world.after(rng.expovariate(0.1), self._stranger_comes)
        if scene.nvml == "moody":
            if rng.random() < 0.2:
                self.nvml = rng.choice(["failing", "blocked"])
            world.after(rng.expovariate(0.05), self._mood)
        if scene.loses_gpus and self.gpus:
            world.after(rng.expovariate(0.03), self._lose)

    # --- memory

    def take(self, gpu: Gpu | None, pid: int, size: int, share: float) -> bool:
        """A process wants to hold so much of a GPU in all; returns whether it gets it."""
        if gpu is None:
            return True
        more = size - gpu.held.get(pid, 0)
        if gpu.lost or (more > 0 and (more > gpu.free or (share and size > share * gpu.total))):
            return False
        gpu.held[pid] = size
        return True

    def leave(self, gpu: Gpu | None, pid: int) -> None:
        """A process has ended: its memory is free when the driver has got round to it."""
        if gpu is None or not (size := gpu.held.pop(pid, 0)):
            return
        gpu.returning += size

        def back() -> None:
            gpu.returning -= size

        self._world.after(self._world.random.choice([0.0, 0.05, 0.5, 2.0]), back)

    @property
    def host_available(self) -> int:
        """Bytes of host memory that nobody holds."""
        ours = sum(process.rss for process in self._world.started_processes())
        return self._world.scene.host_total - ours - self.host_taken

    # --- what comes over it

    def _stranger_comes(self) -> None:
        world = self._world
        if world.ending:
            return
        rng = world.random
        gpu = rng.choice(self.gpus)
        self._strangers += 1
        pid = 900_000 + self._strangers
        gpu.held[pid] = max(0, int(gpu.free * rng.uniform(0.05, 0.8)))
        world.after(rng.expovariate(0.15), lambda: self.leave(gpu, pid))
        world.after(rng.expovariate(0.1), self._stranger_comes)

    def _mood(self) -> None:
        world = self._world
        self.nvml = "ok"
        if world.ending:
            return
        if world.random.random() < 0.5:
            self.nvml = world.random.choice(["failing", "blocked"])
        world.after(world.random.choice([1.0, 5.0, 40.0]) * world.random.random(), self._mood)

    def _lose(self) -> None:
        world = self._world
        if world.ending:
            return
        gpu = world.random.choice(self.gpus)
        gpu.lost = True

        def find() -> None:
            gpu.lost = False

        world.after(world.random.uniform(1, 30), find)
        world.after(world.random.expovariate(0.02), self._lose)

    def heal(self) -> None:
        """Nothing stays broken for ever."""
        if self.nvml != "absent":
            self.nvml = "ok"
        for gpu in self.gpus:
            gpu.lost = False

    # --- the sampler

    def open(self) -> None:
        """Take the first sample."""
        self.ask()

    def begin_again(self) -> None:
        """Another daemon has a sampler of its own."""
        self._sampling = False
        self.ask()

    def ask(self) -> None:
        """Take a sample soon."""
        self._asked = True
        if not self._sampling:
            self._turn += 1
            turn = self._turn
            self._world.later(self._world.random.uniform(0.0, 0.03), lambda: self._begin(turn))

    def _begin(self, turn: int) -> None:
        if self._sampling or turn != self._turn:
            return
        self._sampling, self._asked = True, False
        world = self._world
        began = world.clocks.core_now
        took = _BLOCKED_S if self.nvml == "blocked" else world.random.choice([0.001, 0.01, 0.2])
        # What a reading says was so at some time after it began.
        until = world.now + took
        world.later(took * world.random.random(), lambda: self._read(began, until))

    def _read(self, began: float, until: float) -> None:
        sampled = self._look(began)
        truth = {gpu.index: dict(gpu.held) for gpu in self.gpus}
        self._world.later(max(0.0, until - self._world.now), lambda: self._deliver(sampled, truth))

    def _deliver(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None:
        self._sampling = False
        world = self._world
        world.sampled(sampled, truth)
        if self._asked:
            self.ask()
            return
        self._turn += 1
        turn = self._turn
        every = _EVERY_S if self.gpus and self.nvml != "absent" else _EVERY_WITHOUT_NVML_S
        world.later(every, lambda: self._begin(turn))

    def _look(self, began: float) -> inputs.Sampled:
        world = self._world
        scene = world.scene
        details = {"blocked": "nvmlDeviceGetMemoryInfo has not returned", "failing": "Unknown Error"}
        if scene.gpus and self.nvml == "ok":
            self._known = [self._reading(gpu) for gpu in self.gpus]
        elif self.nvml in details:
            self._known = [
                inputs.GpuReading(
                    index=known.index, uuid=known.uuid, state="failing", detail="not known", total=known.total,
                    used=known.used, free=known.free, processes=known.processes,
                )
                for known in self._known
            ]  # fmt: skip
        processes = [
            inputs.ProcessReading(
                incarnation=process.incarnation,
                pid=process.pid,
                rss=process.rss,
                state="D" if process.uninterruptible else "S",
            )
            for process in world.started_processes()
            if process.alive
        ]
        return inputs.Sampled(
            at=began,
            gpus=list(self._known),
            processes=processes,
            nvml=inputs.NvmlReading(state=self.nvml, detail=details.get(self.nvml, "")),
            host_total=scene.host_total if scene.host_known else None,
            host_available=max(0, self.host_available) if scene.host_known else None,
        )

    def _reading(self, gpu: Gpu) -> inputs.GpuReading:
        if gpu.lost:
            return inputs.GpuReading(
                index=gpu.index, uuid=gpu.uuid, state="lost", detail="GPU is lost", total=gpu.total
            )
        trust = self._world.scene.trust
        if trust == "blind":
            return inputs.GpuReading(index=gpu.index, uuid=gpu.uuid, total=gpu.total)
        processes: dict[int, int | None] = {}
        for pid, size in gpu.held.items():
            processes[pid] = size if trust == "process" else None
        return inputs.GpuReading(
            index=gpu.index, uuid=gpu.uuid, total=gpu.total, used=gpu.used, free=gpu.free, processes=processes
        )
