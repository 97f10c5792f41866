"""When a process may be started: enough places, free memory, a pause after faults, a breaker that lets it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.workers.circuit_breaker import BreakerState
from glmtts.daemon.core.workers.worker import Worker, WorkerState
from glmtts.protocol import worker as wire

from .processes import Process
from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: Older samples say nothing.
_FRESH_S = 10.0


@dataclass
class Seen:
    """What the core was told of a GPU: by a sample that began ``at``, and what each process held of it then."""

    at: float
    state: str
    free: int | None
    held: dict[int, int]


class Starts:
    """Counts processes, faults and memory beside the core."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._context = machine.state.context
        self._pool = machine.state.pool
        self._gpus = machine.state.gpus
        #: The process in each place.
        self.processes: dict[str, int] = {}
        self._seen: dict[int, Seen] = {}
        self._nvml = ""
        self._ended_at: dict[int, float] = {}
        #: By place: faults in a row, and when the last process ended.
        self._faults: dict[str, tuple[int, float]] = {}
        self._ready_at: dict[int, float] = {}
        self._spoke: set[int] = set()
        #: When faults were, since a worker has last shown that it works.
        self._recent: deque[float] = deque(maxlen=100)
        self._circuit_breaker = BreakerState.CLOSED
        self._half_open_at = 0.0
        self._generation = self._pool.generation
        self._samples_in_a_row = 0
        #: When a process last ended: for a while its memory may still be seen in use.
        self.ended_at = 0.0
        self.leak_deaths = 0

    # --- what is seen

    @property
    def gpus_seen(self) -> bool:
        """Whether the core has been shown a GPU."""
        return bool(self._seen)

    def asked_for_sample(self, event: inputs.Input) -> None:
        """The core wants a sample: not again and again because of the last one."""
        if isinstance(event, inputs.Sampled):
            self._samples_in_a_row += 1
            must(Rule.NO_SPIN, self._samples_in_a_row < 10, "each sample makes the core ask for the next")

    def sampled(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None:
        """A sample is handed in; ``truth`` is what each process held of each GPU then."""
        self._nvml = sampled.nvml.state
        for reading in sampled.gpus:
            if not self._seen:
                # What was started unseen, and is too much now, goes when its jobs are done.
                self._world.operators.lowered_at = self._world.clocks.core_now
            self._seen[reading.index] = Seen(sampled.at, reading.state, reading.free, truth[reading.index])

    def unsure(self, event: inputs.Input) -> None:
        """The step has met a bug: the core may not know a sample."""
        if isinstance(event, inputs.Sampled):
            self._seen.clear()

    def before(self, event: inputs.Input) -> None:
        """A process shows that it works, or ends."""
        if not isinstance(event, inputs.Sampled | inputs.Requested):
            self._samples_in_a_row = 0
        if isinstance(event, inputs.WorkerSaid):
            if isinstance(event.message, wire.Finished):
                self._finished(event.incarnation)
            elif isinstance(event.message, wire.Ready):
                worker = self._pool.by_incarnation(event.incarnation)
                if worker is not None and worker.state is WorkerState.STARTING:
                    self._ready_at[event.incarnation] = self._world.clocks.core_now
        elif isinstance(event, inputs.ProcessEnded | inputs.SpawnFailed):
            worker = self._pool._by_incarnation.get(event.incarnation)
            if worker is not None:
                self._ended(worker, event)

    def _finished(self, incarnation: int) -> None:
        worker = self._pool.by_incarnation(incarnation)
        if worker is not None and worker.state is not WorkerState.STOPPING:
            self._spoke.add(incarnation)
            # The core clears its count only for what it accepts: that is looked at after the step.

    def _ended(self, worker: Worker, event: inputs.ProcessEnded | inputs.SpawnFailed) -> None:
        now, restart = self._world.clocks.core_now, self._context.settings.workers.restart
        must(Rule.ROOM, self.processes.pop(worker.name, None) == event.incarnation, worker, "had another process")
        self.ended_at = now
        if worker.gpu is not None:
            self._ended_at[worker.gpu] = now
        process = self._world.processes.get(event.incarnation)
        if process is not None and process.memory.ran_out and process.memory.leaked:
            self._leaked_away(process)
        count = self._faults.get(worker.name, (0, 0.0))[0]
        asked_to = worker.state is WorkerState.STOPPING or (
            worker.process.exit_reason is not None and worker.process.exit_reason.cause == "requested"
        )
        if asked_to:
            now = -math.inf  # no fault: no pause is due
        else:
            ready_at = self._ready_at.get(event.incarnation)
            lasted = ready_at is not None and (worker.process.jobs_done > 0 or now - ready_at >= restart.backoff_max_s)
            count = 1 if lasted else count + 1
            self._recent.append(now)
        self._faults[worker.name] = (count, now)
        self._ready_at.pop(event.incarnation, None)
        self._spoke.discard(event.incarnation)

    def _leaked_away(self, process: Process) -> None:
        self.leak_deaths += 1
        leaked = process.memory.leaked
        # One that has only begun has no room because the one that it replaces has a chapter to finish.
        begun = leaked <= 2 * self._world.scene.leak
        must(
            Rule.LEAK_SEEN,
            begun or not self._world.scene.leak_must_be_seen,
            f"{process.name} ran out of memory: it had leaked {leaked >> 20} MiB, job by job, in plain sight",
        )

    # --- what is started

    def spawned(self, effect: effects.Spawn) -> None:
        """The core wants a process."""
        self._look_at_breaker()
        must(Rule.ROOM, effect.name in self._pool.workers, "a process for no worker")
        must(Rule.ROOM, effect.name not in self.processes, "a second process for", effect.name)
        self._look_at_places(effect)
        if effect.gpu is not None:
            self._look_at_memory(effect, effect.gpu)
        self._look_at_pause(effect)
        self.processes[effect.name] = effect.incarnation

    def _look_at_places(self, effect: effects.Spawn) -> None:
        workers = self._pool.workers
        lowered_at = self._world.operators.lowered_at
        held = [
            worker
            for name in self.processes
            if (worker := workers.get(name)) is not None
            # What can't be ended is counted apart, and so is what was allowed when it was started and finishes its job.
            and not worker.process.stuck
            and not (worker.retiring and worker.process.started_at <= lowered_at)
        ]
        new = workers[effect.name]
        replacing = any(worker.replaces is not None for worker in (*held, new))
        highest = self._world.operators.highest
        must(
            Rule.ROOM,
            len(held) + 1 <= highest + replacing,
            f"{len(held) + 1} workers where {highest} may be:",
            [(worker.name, worker.state.value) for worker in held],
        )
        if effect.gpu is None:
            return
        there = [worker for worker in held if worker.gpu == effect.gpu]
        per_gpu = self._context.settings.workers.per_gpu
        replacing = any(worker.replaces is not None for worker in (*there, new))
        must(
            Rule.ROOM,
            len(there) + 1 <= per_gpu + replacing,
            f"{len(there) + 1} workers on GPU {effect.gpu} where {per_gpu} may be:",
            [(worker.name, worker.state.value) for worker in there],
        )

    def _look_at_memory(self, effect: effects.Spawn, index: int) -> None:
        seen = self._seen.get(index)
        now = self._world.clocks.core_now
        must(Rule.ROOM, 0.0 <= effect.vram_share < 1.0, "a share of", effect.vram_share)
        if seen is None:
            return
        must(Rule.ROOM, seen.state != "lost", effect.name, "is started on GPU", index, "which is lost")
        if seen.state != "ok" or now - seen.at > _FRESH_S:
            return  # blind, as NVML can't tell
        must(
            Rule.ROOM,
            seen.at > self._ended_at.get(index, 0.0),
            effect.name,
            "is started on GPU",
            index,
            "before anybody looked whether its last process gave its memory back",
        )
        loading = [
            self._world.processes[incarnation]
            for name, incarnation in self.processes.items()
            if (worker := self._pool.workers.get(name)) is not None
            and worker.gpu == index
            and worker.state is WorkerState.STARTING
            and incarnation in self._world.processes
            and self._world.processes[incarnation].alive
        ]
        need = self._gpus.need
        if need is None:
            must(Rule.ROOM, not loading, "two processes at once measure what a worker needs on GPU", index)
            return
        if seen.free is None:
            return
        scene = self._world.scene
        coming = sum(max(0, need - seen.held.get(process.pid, 0)) for process in loading)
        must(
            Rule.ROOM,
            seen.free - coming >= need,
            f"{effect.name} is started on GPU {index} with {seen.free >> 20} MiB free,",
            f"of which {coming >> 20} are spoken for, and it needs {need >> 20}",
        )
        must(
            Rule.ROOM,
            need >= 0.9 * scene.load or scene.trust != "process",
            f"what a worker needs was measured as {need >> 20} MiB, and is {scene.load >> 20}",
        )

    def _look_at_pause(self, effect: effects.Spawn) -> None:
        worker = self._pool.workers[effect.name]
        if self._generation != self._pool.generation:
            # Settings have changed that processes are started with: what failed by the old ones is forgiven.
            self._generation = self._pool.generation
            self._faults.clear()
        if worker.restarts == 0:
            # Another place by an old name.
            self._faults.pop(effect.name, None)
        count, ended_at = self._faults.get(effect.name, (0, 0.0))
        if not count:
            return
        restart = self._context.settings.workers.restart
        if count > 1:
            pause = 0.75 * min(restart.backoff_max_s, restart.backoff_initial_s * 2.0 ** (count - 2))
            waited = self._world.clocks.core_now - ended_at
            must(
                Rule.NO_SPIN,
                waited >= pause - 1e-6,
                f"{effect.name} is started again {waited:.3f} s after {count} faults in a row, {pause:.3f} s at least",
            )
        circuit_breaker = self._pool.circuit_breaker
        must(
            Rule.NO_SPIN,
            circuit_breaker.state is not BreakerState.OPEN,
            effect.name,
            "is started while the breaker is open",
        )
        if circuit_breaker.state is BreakerState.HALF_OPEN:
            others = [
                other.name
                for other in self._pool.workers.values()
                if other is not worker
                and other.state is WorkerState.STARTING
                and other.faults
                # One that was under way when the breaker opened is no probe.
                and other.process.started_at >= self._half_open_at
            ]
            must(Rule.NO_SPIN, not others, "probes beside", effect.name, ":", others)

    def _look_at_breaker(self) -> None:
        if self._pool.circuit_breaker.state is not self._circuit_breaker:
            self._circuit_breaker = self._pool.circuit_breaker.state
            self._half_open_at = self._world.clocks.core_now

    # --- what is

    def between(self, event: inputs.Input) -> None:
        """After a step, or before the next one where an effect of it has failed."""
        if not isinstance(event, inputs.ProcessEnded | inputs.SpawnFailed) and not self._pool.circuit_breaker.faults:
            # What a process did, or time, may have shown that workers work; the end of one can't.
            self._recent.clear()

    def after(self, event: inputs.Input) -> None:
        """After a step."""
        self._look_at_breaker()
        self.between(event)
        if isinstance(event, inputs.ProcessEnded | inputs.SpawnFailed):
            restart = self._context.settings.workers.restart
            since = self._world.clocks.core_now - restart.breaker_window_s
            faults = sum(at >= since for at in self._recent)
            state = self._pool.circuit_breaker.state
            counted = self._pool.circuit_breaker.faults
            must(Rule.NO_SPIN, counted <= len(self._recent), "more faults are counted than there were:", counted)
            must(
                Rule.NO_SPIN,
                faults < restart.breaker_failures or state is not BreakerState.CLOSED,
                f"{faults} faults in a row, and the breaker is {state}",
            )
