"""A world for the core: clients, worker processes, GPUs, operators and a clock, all by a seeded schedule.

The core is the real one. Everything else is played here, as badly as it can go; after every step invariants.py looks
whether what must always hold still does. The same seed makes the same schedule, effect by effect.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Iterable

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.protocol import control
from glmtts.protocol import worker as wire

from .accidents import KILLING, scene_of
from .clients import Clients
from .hardware import Hardware
from .invariants import Invariants
from .operators import Operators
from .processes import Process
from .rules import Rule, must

#: Virtual seconds in which everything has to come to its end, once nothing new happens.
PATIENCE_S = 600.0


class World:
    """Runs ``jobs`` requests for speech through one daemon's life, ``without`` some kinds of accidents."""

    def __init__(self, seed: int, jobs: int, without: Iterable[str] = ()) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.without = frozenset(without)
        self.scene = scene_of(self.random, self.without)
        self.now = 1_000.0
        #: No process gets ready.
        self.sick = False
        self.exited = False
        self.jobs_left = jobs
        #: How often a text was begun, in all.
        self.attempts: dict[str, int] = {}
        #: The job that wrote each output.
        self.files: dict[str, str] = {}
        #: Processes whose end the core was not told yet.
        self.processes: dict[int, Process] = {}
        #: How often a text was in a process that ended through no fault of it.
        self.innocent: dict[str, int] = {}
        self.steps = 0
        #: What processes died of, in the core's words.
        self.causes: set[str] = set()
        #: Processes that were started.
        self.starts = 0
        self._schedule: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._trace = hashlib.sha256()
        self.hardware = Hardware(self)
        self.machine = Machine(
            self.scene.settings, now=self.now, wall=1.7e9, seed=seed, boot="b", version="1", outputs_folder="/out"
        )
        self.machine.watched = seed % 4 == 0
        self.clients = Clients(self)
        self.operators = Operators(self)
        self.invariants = Invariants(self)

    # --- time

    @property
    def ending(self) -> bool:
        """Nothing new comes."""
        return self.jobs_left <= 0

    def id(self) -> str:
        """A new id for a request."""
        return f"r{next(self._ids)}"

    def after(self, delay: float, action: Callable[[], object]) -> None:
        """Do this later."""
        heapq.heappush(self._schedule, (self.now + delay, next(self._order), action))

    def run(self) -> None:
        """Live from the start to the exit. Raises Broken."""
        self._do(self.machine.open())
        self.hardware.open()
        self.after(0.0, self.clients.arrive)
        self.after(self.random.uniform(0, 10), self.operators.act)
        self._go_on(lambda: self.jobs_left <= 0)
        self.jobs_left = -1
        self.sick = False
        self.hardware.heal()
        self.operators.ask(control.Resume(id=self.id(), v=1))
        self._go_on(lambda: not self.invariants.live, "an accepted job did not end")
        self.invariants.look_at_everything()
        self.clients.ask_a_last_time()
        self.happen(inputs.StopAsked("SIGTERM"))
        if self.random.random() < 0.3:
            self.after(self.random.uniform(0, 0.2), lambda: self.happen(inputs.StopAsked("SIGINT")))
        self._go_on(lambda: self.exited, "the daemon did not end")
        self.invariants.look_at_the_end()

    def _go_on(self, until: Callable[[], bool], otherwise: str = "") -> None:
        give_up_at = self.now + PATIENCE_S
        stuck = 0
        while not until():
            due = self.machine.next_due
            at = self._schedule[0][0] if self._schedule else None
            must(Rule.ONE_END, due is not None or at is not None, "nothing will ever happen again;", otherwise)
            before = self.now
            if at is None or (due is not None and due <= at):
                self.now = max(self.now, due or 0.0)
                self.happen(inputs.TimePassed())
            else:
                self.now, _, action = heapq.heappop(self._schedule)
                action()
            stuck = stuck + 1 if self.now == before else 0
            must(Rule.NO_SPIN, stuck < 1_000, "time stands still: a timer is set again and again")
            must(Rule.ONE_END, not otherwise or self.now < give_up_at, otherwise)

    def happen(self, event: inputs.Input) -> None:
        """One step of the core."""
        self.steps += 1
        if isinstance(event, inputs.WorkerSaid):
            self._heard(event)
        self.invariants.before(event)
        self._do(self.machine.step(event, self.now))
        self.invariants.after()
        # Before anything else: the job's end must not overtake the news that a part of it was not sent.
        self.clients.report_overruns()

    def _heard(self, event: inputs.WorkerSaid) -> None:
        """A process is through with a job, as far as the core hears it."""
        message = event.message
        over = isinstance(message, wire.Finished) or (isinstance(message, wire.Failed) and not message.fatal)
        if over and event.spawn in self.processes and self.machine._pool.by_spawn(event.spawn) is not None:
            self.processes[event.spawn].has.pop(message.job, None)  # type: ignore[union-attr]

    @property
    def digest(self) -> str:
        """Of every effect until now, in order."""
        return self._trace.hexdigest()

    # --- effects

    def _do(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            if not isinstance(effect, effects.Publish | effects.Log):
                self._trace.update(_name(effect, self.now).encode())
            match effect:
                case effects.Send():
                    self.clients.sent(effect)
                case effects.Tell():
                    self._told(effect)
                case effects.Sample():
                    self.invariants.asked_for_sample()
                    self.hardware.ask()
                case effects.Spawn():
                    self.starts += 1
                    self.invariants.spawned(effect)
                    self.processes[effect.spawn] = Process(self, effect)
                case effects.Signal():
                    process = self.processes.get(effect.spawn)
                    if process is not None:
                        process.signal(effect.signal)
                case effects.ReadSettings():
                    self.after(0.01, lambda e=effect: self.operators.read_settings(e))  # type: ignore[misc]
                case effects.Exit():
                    must(Rule.ORDER, not self.exited, "exited twice")
                    self.exited = True

    def _told(self, effect: effects.Tell) -> None:
        if isinstance(effect.message, wire.Job):
            self.invariants.started(effect.message, effect.spawn)
        process = self.processes.get(effect.spawn)
        if process is not None:
            if isinstance(effect.message, wire.Job):
                process.has[effect.message.job] = effect.message.text
            # In their order, as one connection carries them.
            process.told_at = max(process.told_at, self.now + self.random.uniform(0, 0.005))
            self.after(process.told_at - self.now, lambda: process.told(effect.message))

    # --- the machine beneath

    def gone(self, process: Process, returncode: int, *, oom_killed: bool) -> None:
        """A process has ended, and its end is noticed."""
        for text in process.has.values():
            if text.split()[0] not in KILLING:
                self.innocent[text] = self.innocent.get(text, 0) + 1
        worker = self.machine._pool._by_spawn.get(process.spawn)
        self.happen(inputs.ProcessEnded(process.spawn, returncode, "its last line", oom_killed))
        self.processes.pop(process.spawn, None)
        if worker is not None and worker.last_death is not None:
            self.causes.add(worker.last_death.cause.value)

    def bad_luck(self, text: str) -> int:
        """How many processes ended, or are about to, while they had this, though it is healthy."""
        heard = self.machine._pool.by_spawn
        ending = [p for p in self.processes.values() if not p.healthy or heard(p.spawn) is None]
        return self.innocent.get(text, 0) + sum(text in process.has.values() for process in ending)

    def started_processes(self) -> list[Process]:
        """Processes that are there, as far as the core knows."""
        return list(self.processes.values())

    def sampled(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None:
        """A sample is handed in; ``truth`` is what each process held of each GPU then."""
        self.invariants.sampled(sampled, truth)
        self.happen(sampled)
        self._kill_largest()

    def _kill_largest(self) -> None:
        """The kernel makes room on the host."""
        alive = [process for process in self.processes.values() if process.alive and not process.uninterruptible]
        full = self.hardware.host_available < 0
        accident = self.scene.host_oom and not self.ending and self.random.random() < 0.01
        seen = self.scene.leak_must_be_seen
        must(Rule.LEAK_SEEN, not (full and seen), "the host ran out of memory, job by job, in plain sight")
        if alive and (full or accident):
            max(alive, key=lambda process: process.rss).die(-9, oom_killed=True)


def _name(effect: effects.Effect, now: float) -> str:
    """What tells an effect from others, in short."""
    match effect:
        case effects.Send():
            event = effect.event
            return f"{now} {type(event).__name__} {event.id} {effect.to.connection} {len(effect.body or b'')}"
        case effects.Tell():
            return f"{now} {type(effect.message).__name__} {effect.spawn} {getattr(effect.message, 'job', '')}"
        case _:
            return f"{now} {effect!r}"
