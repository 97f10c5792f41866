"""A world for the core: clients, worker processes, GPUs, a journal, operators and a clock, all by a seeded schedule.

The core is the real one. Everything else is played here, as badly as it can go; after every step invariants.py looks
whether what must always hold still does. The same seed makes the same schedule, effect by effect. A life has one daemon
after the other: some are killed, some are stopped, and the journal is all that the next one knows of them.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.core.state import Installation
from glmtts.protocol import control
from glmtts.protocol import worker as wire
from glmtts.protocol.events import VoiceSampleAnswer

from .accidents import KILLING, scene_of
from .bugs import Bugs, Injected
from .clients import Clients
from .clocks import Clocks
from .folders import Folders
from .hardware import Hardware
from .invariants import Invariants
from .journal import Journal
from .neighbours import MALLORY, Flood, small_tables
from .operators import Operators
from .pieces import Pieces
from .processes import Process
from .promises import Promises
from .rules import Rule, must
from .texts import name_of, pace
from .trace import name_of_effect
from .voices import Voices

#: Jobs take tenths of a second here, and so does what a class may have before others.
HEAD_START_S = 0.1
#: Virtual seconds in which everything has to come to its end, once nothing new happens.
PATIENCE_S = 600.0


class World:
    """Runs ``jobs`` requests for speech through daemons' lives, ``without`` some kinds of accidents.

    ``floods``: one client more floods the tables that all share, which are small then.
    """

    def __init__(self, seed: int, jobs: int, without: Iterable[str] = (), *, floods: bool = False) -> None:
        self.seed = seed
        self.floods = floods
        self.random = random.Random(seed)
        self.without = frozenset(without)
        self.scene = scene_of(self.random, self.without)
        if floods:
            limits = self.scene.settings.limits
            limits = replace(limits, gateways=[*limits.gateways, MALLORY.user])
            self.scene.settings = replace(self.scene.settings, limits=limits)
        #: The machine's clock, which nobody can set.
        self.now = 1_000.0
        self.clocks = Clocks(self)
        #: No process gets ready.
        self.sick = False
        self.exited = False
        #: Which daemon of this life it is, and whether it was killed.
        self.daemon = 0
        self.dead = False
        self._kill_next = False
        #: No other daemon comes after this one.
        self.last = False
        self.jobs_left = jobs
        #: How often a text was begun, in all.
        self.attempts: dict[str, int] = {}
        #: The job that wrote each output.
        self.files: dict[str, str] = {}
        #: Outputs that still have the mark by which another attempt at their job knows them.
        self.marks: set[tuple[str, str]] = set()
        #: Processes whose end the core was not told yet.
        self.processes: dict[int, Process] = {}
        #: How often a text was in a process that ended through no fault of it.
        self.innocent: dict[str, int] = {}
        #: Processes whose flight recorder the core has asked for.
        self.reading: set[int] = set()
        self.steps = 0
        #: What processes died of, in the core's words.
        self.causes: set[str] = set()
        #: Questions that the shell has not answered yet: by connection and id.
        self.owed: set[tuple[int, str]] = set()
        #: Daemons that were killed, and those that were told to stop.
        self.kills = self.stops = 0
        #: How often a job was put aside.
        self.suspended = 0
        #: Processes that were started.
        self.starts = 0
        self._schedule: list[tuple[float, int, Callable[[], object], Process | None]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._pids = itertools.count(10_000)
        self._trace = hashlib.sha256()
        self.hardware = Hardware(self)
        self.bugs = Bugs(seed, self.scene, self.without)
        self.folders = Folders(self, seed, self.scene, self.without)
        self.voices = Voices(self, seed)
        self._failed: deque[inputs.Input] = deque()
        self.machine = self._machine(self.scene.settings)
        self._removals = 0
        self.journal = Journal(self)
        self.promises = Promises(self)
        self.clients = Clients(self)
        self.flood = Flood(self)
        self.pieces = Pieces(self)
        #: The texts that workers have spoken to their end, by job.
        self.spoken: dict[str, str] = {}
        self.operators = Operators(self)
        self.invariants = Invariants(self)

    def _machine(self, settings: Settings) -> Machine:
        machine = Machine(
            settings,
            Installation(boot=f"{self.daemon:x}b", version="1", outputs_folder="/out", results_folder="/results"),
            now=self.clocks.core_now,
            wall=self.clocks.wall,
            seed=self.seed + self.daemon,
            voices=list(self.voices.disk.values()),
        )
        machine.watched = self.seed % 4 == 0
        self.bugs.beset(machine)
        classes = machine.state.queue._classes
        classes._handicaps = {name: HEAD_START_S * rank for name, rank in classes._ranks.items()}
        return machine

    @property
    def removals(self) -> int:
        """Rows of shared tables that the daemons of this life have removed early."""
        return self._removals + sum(self.machine.state.removals.counts.values())

    # --- time

    @property
    def ending(self) -> bool:
        """Nothing new comes."""
        return self.jobs_left <= 0

    @property
    def _quiet(self) -> bool:
        """All that was asked for has come to its end, over all daemons."""
        return not (self.dead or self.exited or self.machine.stopping or self.invariants.live) and self.journal.idle

    def id(self) -> str:
        """A new id for a request."""
        return f"r{next(self._ids)}"

    def pid(self) -> int:
        """The number of a new process."""
        return next(self._pids)

    def after(self, delay: float, action: Callable[[], object], process: Process | None = None) -> None:
        """Do this later; ``process``: what does it."""
        heapq.heappush(self._schedule, (self.now + delay, next(self._order), action, process))

    def later(self, delay: float, action: Callable[[], object], process: Process | None = None) -> None:
        """Do this later, unless the daemon has ended by then."""
        daemon = self.daemon
        self.after(delay, lambda: action() if self.daemon == daemon and not self.dead else None, process)

    def run(self) -> None:
        """Live from the start to the exit. Raises Broken."""
        with small_tables() if self.floods else nullcontext():
            self._live()

    def _live(self) -> None:
        self._do(self.machine.open())
        self.hardware.open()
        self.journal.open()
        if self.scene.daemon_ends:
            self.after(self.random.expovariate(1 / self.scene.daemon_ends), self._end_daemon)
        self.clocks.open()
        self.folders.open()
        self.after(0.0, self.clients.arrive)
        self.after(0.0, self.voices.act)
        self.after(self.random.uniform(0, 10), self.operators.act)
        self._go_on(lambda: self.jobs_left <= 0)
        self.jobs_left = -1
        self.sick = False
        self.hardware.heal()
        self.journal.heal()
        self.folders.heal()
        self.operators.ask(control.Resume(id=self.id(), v=1))
        self._kill_next = False
        self._go_on(lambda: self._quiet, "an accepted job did not end")
        self.invariants.look_at_everything()
        self.promises.look_at_the_end()
        self.clients.ask_a_last_time()
        self.last = True
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
            due = None if due is None else self.clocks.real(due)
            at = self._schedule[0][0] if self._schedule else None
            thaws_at = self.clocks.frozen_until
            if thaws_at is not None and (at is None or at >= thaws_at):
                self.clocks.thaw()
                continue
            must(Rule.ONE_END, due is not None or at is not None, "nothing will ever happen again;", otherwise)
            before = self.now
            if thaws_at is None and (at is None or (due is not None and due <= at)):
                self.now = max(self.now, due or 0.0)
                self.happen(inputs.TimePassed())
            else:
                due, order, action, process = heapq.heappop(self._schedule)
                if (waits := self.clocks.holds(process, max(self.now, due))) is not None:
                    heapq.heappush(self._schedule, (waits, order, action, process))
                    continue
                # What should have happened while no daemon ran happens now.
                self.now = max(self.now, due)
                action()
            if self.dead or (self.exited and not self.last):
                self._start_again()
            stuck = stuck + 1 if self.now == before else 0
            # What workers have said while the daemon stood still comes all at once.
            must(
                Rule.NO_SPIN,
                stuck < (20_000 * self.scene.slots if self.clocks.freezes else 1_000),
                "time stands still: a timer is set again and again",
            )
            must(Rule.ONE_END, not otherwise or self.now < give_up_at, otherwise)

    def happen(self, event: inputs.Input) -> None:
        """One step of the core; nothing happens to one that is dead."""
        if self.dead or self.exited:
            return
        self._step(event)
        # At once, as the shell does it: what failed is not seen as it was left.
        while self._failed and not self.dead:
            self.invariants.between()
            self._step(self._failed.popleft())
        if self.dead:
            return
        self.invariants.after()
        # Before anything else: the job's end must not overtake the news that a part of it was not sent.
        self.clients.report_overruns()

    def _step(self, event: inputs.Input) -> None:
        self.steps += 1
        if isinstance(event, inputs.WorkerSaid):
            self._heard(event)
        known = event
        if not isinstance(event, inputs.EffectFailed | inputs.StoodStill):
            self.bugs.draw()
        elif isinstance(event, inputs.EffectFailed) and isinstance(event.effect, effects.Spawn):
            known = inputs.SpawnFailed(event.effect.incarnation, "")
        self.invariants.before(known)
        todo = self.machine.step(event, self.clocks.core_now, self.clocks.wall)
        self.bugs.quiet()
        if self._kill_next:
            # SIGKILL: some of it is done.
            self.dead = True
            todo = todo[: self.random.randrange(len(todo) + 1)]
        self._do(todo)

    # --- daemons

    def _end_daemon(self) -> None:
        """The daemon is killed in the middle of a step to come, or told to stop; later it happens to the next one."""
        if self.ending:
            return
        if self.random.random() < 0.5:
            self._kill_next = True
        else:
            self.stops += 1
            self.happen(inputs.StopAsked("SIGTERM"))
            if self.random.random() < 0.3:
                self.later(self.random.uniform(0, 3), lambda: self.happen(inputs.StopAsked("SIGINT")))
        self.after(self.random.expovariate(1 / self.scene.daemon_ends), self._end_daemon)

    def _start_again(self) -> None:
        """The next daemon: processes and connections are gone, and what was under way is lost."""
        clean = not self.dead
        if clean:
            self.invariants.look_at_the_end()
        else:
            self.kills += 1
        for process in self.processes.values():
            process.orphaned()
        self.processes.clear()
        self.clients.cut_off()
        self.journal.close(clean=clean)
        self.owed.clear()
        self.reading.clear()
        self.now += self.random.choice((0.0, 0.5, 4.0)) * self.random.random()
        self.daemon += 1
        self._removals = self.removals
        self.dead = self.exited = self._kill_next = False
        self.machine = self._machine(self.machine.settings)
        self.operators.begin_again()
        self.voices.begin_again()
        self.invariants = Invariants(self)
        self._do(self.machine.open())
        self.hardware.begin_again()
        self.journal.open()
        self.clients.come_back()

    def _heard(self, event: inputs.WorkerSaid) -> None:
        """A process is through with a job, as far as the core hears it."""
        message = event.message
        self.suspended += isinstance(message, wire.Suspended)
        over = isinstance(message, wire.Finished) or (isinstance(message, wire.Failed) and not message.fatal)
        if (
            over
            and event.incarnation in self.processes
            and self.machine.state.pool.by_incarnation(event.incarnation) is not None
        ):
            self.processes[event.incarnation].has.pop(message.job, None)  # type: ignore[union-attr]

    @property
    def digest(self) -> str:
        """Of every effect until now, in order."""
        return self._trace.hexdigest()

    # --- effects

    def _do(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            if isinstance(effect, effects.Send) and effect.id:
                effect.event = replace(effect.event, id=effect.id)
            if not isinstance(effect, effects.Publish | effects.Log):
                self._trace.update(name_of_effect(effect, self.now).encode())
            if self.bugs.breaks(effect):
                self._failed.append(inputs.EffectFailed(effect, "a bug of the shell"))
                self._not_done(effect)
                continue
            match effect:
                case effects.InternalError():
                    if not isinstance(effect.error, Injected):
                        raise effect.error
                    self.invariants.unsure()
                case effects.Send():
                    self.promises.sent(effect)
                    self.clients.sent(effect)
                case effects.Tell():
                    self._told(effect)
                case effects.Sample():
                    self.invariants.asked_for_sample()
                    self.hardware.ask()
                case effects.Spawn():
                    self.starts += 1
                    self.invariants.spawned(effect)
                    self.processes[effect.incarnation] = Process(self, effect)
                case effects.ReadRecorder():
                    self.reading.add(effect.incarnation)
                    self.later(0.0, lambda e=effect: self._read_recorder(e))  # type: ignore[misc]
                case effects.Signal():
                    process = self.processes.get(effect.incarnation)
                    if process is not None:
                        process.signal(effect.signal)
                case effects.ReadSettings():
                    if effect.to is not None:
                        self.owed.add((effect.to.connection, effect.id))
                    self.later(0.01, lambda e=effect: self.operators.read_settings(e))  # type: ignore[misc]
                case effects.JournalAdd() | effects.JournalStart() | effects.JournalEnd() | effects.JournalFind():
                    self.promises.asked(effect)
                    self.journal.ask(effect)
                case effects.SendStored():
                    self._send_stored(effect)
                case effects.StoreVoice():
                    self.voices.store(effect)
                case effects.SettleOutput():
                    self.later(self.random.uniform(0, 0.02), lambda e=effect: self._settle(e))  # type: ignore[misc]
                case effects.Exit():
                    must(Rule.ORDER, not self.exited, "exited twice")
                    self.exited = True

    def _not_done(self, effect: effects.Effect) -> None:
        """An effect has met a bug: what that means for what is counted here."""
        match effect:
            case effects.Send():
                self.clients.missed(effect)
            case effects.Spawn():
                self.invariants.spawned(effect)
            case effects.JournalStart():
                self.promises.asked(effect)
            case effects.JournalEnd():
                self.journal.never_ends(effect.job)
            case _:
                pass

    def _told(self, effect: effects.Tell) -> None:
        if isinstance(effect.message, wire.SpeakJob):
            self.invariants.started(effect.message, effect.incarnation)
            if (job := self.machine.state.job_table.live.get(effect.message.job)) is not None:
                self.voices.started(effect.message, job.client.key)
        process = self.processes.get(effect.incarnation)
        if process is not None:
            if isinstance(effect.message, wire.SpeakJob):
                process.has[effect.message.job] = name_of(effect.message.text)
            # In their order, as one connection carries them.
            process.told_at = max(process.told_at, self.now + self.random.uniform(0, 0.005) * pace(self.scene))
            self.after(process.told_at - self.now, lambda: process.told(effect.message), process)

    def _send_stored(self, effect: effects.SendStored) -> None:
        """Read a result, and send it; somebody may have dropped it meanwhile."""
        owed = (effect.to.connection, effect.event.id)
        self.owed.add(owed)

        def read() -> None:
            self.owed.discard(owed)
            if isinstance(effect.event, VoiceSampleAnswer):
                self.clients.sent(effects.Send(effect.to, effect.event, b"RIFF"))
                return
            body = self.journal.results.get(effect.path)
            if body is None:
                job = effect.event.job
                self.happen(inputs.StoredLost(effect.to, effect.event.id, job, "No such file or directory"))
            else:
                done = effects.Send(effect.to, effect.event, body)
                self.promises.sent(done)
                self.clients.sent(done)

        self.later(self.random.uniform(0, 0.01), read)

    def _read_recorder(self, effect: effects.ReadRecorder) -> None:
        self.reading.discard(effect.incarnation)
        if (process := self.processes.get(effect.incarnation)) is not None:
            self.happen(inputs.RecorderRead(effect.incarnation, "step", process.recorder.note()))

    def _settle(self, effect: effects.SettleOutput) -> None:
        """It is known for good how a job ended: its output stays, or goes, and needs no mark any more."""
        mark = (effect.path, effect.job)
        if mark in self.marks:
            self.marks.remove(mark)
            if not effect.wanted:
                self.files.pop(effect.path, None)

    # --- the machine beneath

    def gone(self, process: Process, returncode: int, *, oom_killed: bool) -> None:
        """A process has ended, and its end is noticed."""
        for text in process.has.values():
            if text.split()[0] not in KILLING and process.may_blame(text):
                self.innocent[text] = self.innocent.get(text, 0) + 1
        worker = self.machine.state.pool._by_incarnation.get(process.incarnation)
        note = process.recorder.note()
        self.happen(inputs.ProcessEnded(process.incarnation, returncode, "its last line", oom_killed, "step", note))
        if self.processes.get(process.incarnation) is process:
            del self.processes[process.incarnation]
        if worker is not None and worker.last_exit is not None:
            self.causes.add(worker.last_exit.cause.value)

    def bad_luck(self, text: str) -> int:
        """How many processes ended, or are about to, while they had this, though it is healthy."""
        heard = self.machine.state.pool.by_incarnation
        ending = [p for p in self.processes.values() if not p.healthy or heard(p.incarnation) is None]
        return self.innocent.get(text, 0) + sum(process.may_blame(text) for process in ending)

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
