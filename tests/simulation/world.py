"""A world for the core: clients, worker processes, operators and a clock, all by a seeded schedule.

The core is the real one. Everything else is played here, as badly as it can go; after every step invariants.py looks
whether what must always hold still does. The same seed makes the same schedule, effect by effect.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import (
    EngineSettings,
    QueueSettings,
    RecycleSettings,
    RestartSettings,
    Settings,
    WorkersSettings,
)
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire
from glmtts.protocol.events import Audio

from .hearing import Hearing, Question, must
from .invariants import Invariants
from .processes import Process, plan

#: Virtual seconds in which everything has to come to its end, once nothing new happens.
PATIENCE_S = 600.0


@dataclass
class Connection:
    """A client's connection; ``slow`` ones don't read their streams."""

    number: int
    client: inputs.Client
    envelope: tuple[bytes, ...]
    slow: bool
    open: bool = True
    heard: dict[str, Hearing | Question] = field(default_factory=dict)


def settings_of(rng: random.Random) -> Settings:
    """A configuration in which everything happens within seconds."""
    return Settings(
        engine=EngineSettings(name="fault"),
        workers=WorkersSettings(
            gpus="none",
            max=rng.randint(1, 4),
            start_timeout_s=4.0,
            hang_timeout_s=2.0,
            stop_timeout_s=0.5,
            recycle=RecycleSettings(
                max_jobs=rng.choice([0, 0, 25]), max_age_s=rng.choice([0.0, 0.0, 20.0]), idle_trim_s=rng.choice([0, 1])
            ),
            restart=RestartSettings(backoff_max_s=8.0, breaker_failures=rng.randint(1, 4)),
        ),
        queue=QueueSettings(
            max_waiting=rng.randint(2, 20), max_waiting_batch=40, keep_results_s=20.0, keep_results_mib=1
        ),
        limits=replace(Settings().limits, rate=rng.choice(["", "", "300/minute"])),
    )


class World:
    """Runs ``jobs`` requests for speech through one daemon's life."""

    def __init__(self, seed: int, jobs: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 1_000.0
        self.sick = False
        self.attempts: dict[str, int] = {}
        self.processes: dict[int, Process] = {}
        self.exited = False
        self.accepted = 0
        self.hearings: list[Hearing] = []
        self.spawned: dict[str, list[float]] = {}
        self._jobs_left = jobs
        self._overruns: list[inputs.Input] = []
        self._schedule: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._trace = hashlib.sha256()
        self.settings = settings_of(self.random)
        self.slots = self.random.choice((1, 1, 2))
        #: What processes say that a job took: with the brief one, jobs lie ready in the only worker.
        self.synthesis_s = self.random.choice((0.1, 0.001))
        self.machine = Machine(
            self.settings, now=self.now, wall=1.7e9, seed=seed, boot="b", version="1", outputs_folder="/out"
        )
        self.machine.watched = True
        self.connections: dict[int, Connection] = {}
        self.operator = self._connect(inputs.Client("operator", "root", operator=True), number=1 << 40)
        self._open: list[Connection] = []
        for number in range(10):
            self._open.append(self._connect(_client(number % 4), envelope=(b"",) if number % 5 == 4 else ()))
        self.invariants = Invariants(self)

    # --- time

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Do this later."""
        heapq.heappush(self._schedule, (self.now + delay, next(self._order), action))

    def run(self) -> None:
        """Live from the start to the exit. Raises Broken."""
        self._do(self.machine.open([None] * self.settings.workers.max))
        self.after(0.0, self._arrive)
        self.after(self.random.uniform(0, 10), self._operate)
        self._go_on(lambda: not self._jobs_left)
        self._jobs_left = -1
        self.sick = False
        self.operate(control.Resume(id=self.id(), v=1))
        self._go_on(lambda: not self.invariants.live, "an accepted job did not end")
        self.invariants.look_at_everything()
        for _ in range(5):
            self._request(self.random.choice(self._open))
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
            must(due is not None or at is not None, "nothing will ever happen again;", otherwise)
            before = self.now
            if at is None or (due is not None and due <= at):
                self.now = max(self.now, due or 0.0)
                self.happen(inputs.TimePassed())
            else:
                self.now, _, action = heapq.heappop(self._schedule)
                action()
            stuck = stuck + 1 if self.now == before else 0
            must(stuck < 1_000, "time stands still: a timer is set again and again")
            must(not otherwise or self.now < give_up_at, otherwise)

    def happen(self, event: inputs.Input) -> None:
        """One step of the core."""
        self.invariants.before(event)
        self._do(self.machine.step(event, self.now))
        self.invariants.after()
        # Before anything else: the job's end must not overtake the news that a part of it was not sent.
        while self._overruns:
            self.happen(self._overruns.pop(0))

    @property
    def digest(self) -> str:
        """Of every effect until now, in order."""
        return self._trace.hexdigest()

    # --- effects

    def _do(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            self._trace.update(_name(effect, self.now).encode())
            match effect:
                case effects.Send():
                    self._sent(effect)
                case effects.Tell():
                    self._told(effect)
                case effects.Spawn():
                    self.invariants.spawned(effect)
                    self.processes[effect.spawn] = Process(self, effect.spawn, effect.name)
                case effects.Signal():
                    process = self.processes.get(effect.spawn)
                    if process is not None:
                        process.signal(effect.signal)
                case effects.ReadSettings():
                    self.after(0.01, lambda e=effect: self._read_settings(e))  # type: ignore[misc]
                case effects.Exit():
                    must(not self.exited, "exited twice")
                    self.exited = True

    def _sent(self, effect: effects.Send) -> None:
        connection = self.connections[effect.to.connection]
        if not connection.open or (connection.envelope and not effect.event.final):
            return
        must(effect.to.envelope == connection.envelope, "an answer without its envelope")
        heard = connection.heard.get(effect.event.id)
        must(heard is not None, "an event for a request that was not made:", effect)
        if connection.slow and isinstance(effect.event, Audio) and isinstance(heard, Hearing):
            heard.lossy = True
            self._overruns.append(inputs.ConnectionOverrun(connection.number, effect.event.job))
        elif heard is not None:
            heard.hear(effect.event, effect.body, self.now)  # type: ignore[arg-type]

    def _told(self, effect: effects.Tell) -> None:
        if isinstance(effect.message, wire.Job):
            self.invariants.started(effect.message)
        process = self.processes.get(effect.spawn)
        if process is not None:
            # In their order, as one connection carries them.
            process.told_at = max(process.told_at, self.now + self.random.uniform(0, 0.005))
            self.after(process.told_at - self.now, lambda: process.told(effect.message))

    def gone(self, process: Process, returncode: int) -> None:
        """A process has ended, and its end is noticed."""
        event = inputs.ProcessEnded(process.spawn, returncode, "its last line")
        self.happen(event)

    # --- clients

    def id(self) -> str:
        """A new id for a request."""
        return f"r{next(self._ids)}"

    def _connect(
        self, client: inputs.Client, envelope: tuple[bytes, ...] = (), number: int | None = None
    ) -> Connection:
        slow = number is None and self.random.random() < 0.05
        connection = Connection(number or next(self._numbers), client, envelope, slow)
        self.connections[connection.number] = connection
        return connection

    def _arrive(self) -> None:
        """A client does something, and the next one will."""
        if self._jobs_left <= 0:
            return
        rng = self.random
        place = rng.randrange(len(self._open))
        if rng.random() < 0.02:
            old = self._open[place]
            self._open[place] = self._connect(old.client, old.envelope)
            old.open = False
            self.happen(inputs.ConnectionClosed(old.number))
        if self._jobs_left > 0:
            self._jobs_left -= 1
            self._request(self._open[place])
        # Busy hours and quiet ones.
        busy = self.settings.workers.max * (4.0 if int(self.now / 10) % 3 else 2.0)
        self.after(rng.expovariate(busy), self._arrive)

    def _request(self, connection: Connection) -> None:
        rng = self.random
        text = f"{plan(rng)} {next(self._ids)}"
        killer = rng.random() < 0.02
        stream = not killer and rng.random() < 0.4
        deadline = rng.uniform(0.05, 5) if not killer and rng.random() < 0.2 else None
        request = requests.Synthesize(
            id=self.id(),
            v=1,
            text=f"exit killer{rng.randrange(3)}" if killer else text,
            stream=stream,
            events="final" if rng.random() < 0.2 else "all",
            priority=rng.choices(("interactive", "batch"), (3, 1))[0],
            deadline_s=UNSET if deadline is None else deadline,
            prompt=requests.Prompt(text="x") if not killer and rng.random() < 0.1 else UNSET,
            output=f"{next(self._ids)}.wav" if not killer and not stream and rng.random() < 0.1 else UNSET,
            key=f"k{rng.randrange(10**9)}" if rng.random() < 0.1 else UNSET,
        )
        self._ask(connection, request, joined=False)
        if request.key is not UNSET:
            again = replace(request, text=f"ok {next(self._ids)}" if rng.random() < 0.1 else request.text)
            self.after(rng.expovariate(1), lambda: self._ask(rng.choice(self._open), replace(again, id=self.id())))

    def _ask(self, connection: Connection, request: requests.Synthesize, *, joined: bool = True) -> None:
        if not connection.open:
            return
        all_events = request.events == "all" and not connection.envelope
        hearing = Hearing(
            connection.number, request.id, request.text, all_events, request.stream and all_events, joined
        )
        if request.deadline_s is not UNSET:
            hearing.deadline_at = self.now + request.deadline_s
        self._put(connection, hearing)
        recording = None if request.prompt is UNSET else bytes(1_000)
        self.happen(inputs.Requested(connection.client, _to(connection), request, recording))
        self.accepted += bool(hearing.job)
        if hearing.job and not joined:
            self._follow(connection, hearing)

    def _put(self, connection: Connection, heard: Hearing | Question) -> None:
        connection.heard[heard.id] = heard
        if isinstance(heard, Hearing):
            self.hearings.append(heard)

    def _follow(self, connection: Connection, hearing: Hearing) -> None:
        """What clients do about a job that was accepted: theirs, and now and then somebody else's."""
        rng = self.random
        own = [c for c in self._open if c.client.key == connection.client.key] or [connection]
        what = rng.random()
        other = rng.choice(own if rng.random() < 0.8 else self._open)
        if what < 0.12:
            self.after(rng.expovariate(3), lambda: self._question(other, requests.Cancel(id="", v=1, job=hearing.job)))
        elif what < 0.3:
            self.after(rng.expovariate(1), lambda: self._wait(other, hearing))
        elif what < 0.4:
            self.after(rng.expovariate(1), lambda: self._question(other, requests.GetJob(id="", v=1, job=hearing.job)))
        elif what < 0.43:
            self.after(rng.expovariate(1), lambda: self._question(other, requests.ListJobs(id="", v=1, limit=20)))

    def _question(self, connection: Connection, request: requests.Cancel | requests.GetJob | requests.ListJobs) -> None:
        if connection.open:
            request = replace(request, id=self.id())
            self._put(connection, Question(connection.number, request.id))
            self.happen(inputs.Requested(connection.client, _to(connection), request))

    def _wait(self, connection: Connection, of: Hearing) -> None:
        if not connection.open:
            return
        request = requests.Wait(id=self.id(), v=1, job=of.job, events=self.random.choice(("all", "final")))
        all_events = request.events == "all" and not connection.envelope
        hearing = Hearing(connection.number, request.id, of.text, all_events, of.streams and all_events, True, of.job)
        self._put(connection, hearing)
        self.happen(inputs.Requested(connection.client, _to(connection), request))
        mine = connection.client.key == self.connections[of.connection].client.key
        must(mine or hearing.code == "job_not_found", hearing, "hears a job of somebody else")

    # --- operators

    def operate(self, request: control.ControlRequest) -> None:
        """One operation on the control socket."""
        self._put(self.operator, Question(self.operator.number, request.id))
        self.happen(inputs.Controlled(_to(self.operator), request))

    def _operate(self) -> None:
        """An operator does something now and then, and puts it right after a while."""
        if self._jobs_left <= 0:
            return
        rng, id = self.random, self.id
        resume = False
        match rng.randrange(9):
            case 0:
                self.operate(control.Pause(id=id(), v=1))
                resume = True
            case 1:
                self.operate(
                    control.Drain(id=id(), v=1) if rng.random() < 0.3 else control.Drain(id=id(), v=1, timeout_s=0.5)
                )
                resume = True
            case 2:
                self.operate(control.Recycle(id=id(), v=1, worker=rng.choice(["all", "w0"])))
            case 3:
                self.operate(control.Reload(id=id(), v=1))
            case 4:
                self.operate(control.Status(id=id(), v=1))
                self.operate(control.Workers(id=id(), v=1))
            case 5:
                self.operate(requests.ListJobs(id=id(), v=1, limit=50))
            case 6:
                self.happen(inputs.SettingsRead(None, ["a wrong file"]))
            case 7:
                self.sick = True
                self.after(rng.uniform(1, 15), self._heal)
        if resume:
            self.after(rng.expovariate(0.5), lambda: self.operate(control.Resume(id=id(), v=1)))
        self.after(rng.expovariate(0.1), self._operate)

    def _heal(self) -> None:
        self.sick = False

    def _read_settings(self, effect: effects.ReadSettings) -> None:
        rng, old = self.random, self.machine.settings
        new = replace(
            old,
            workers=replace(old.workers, hang_timeout_s=rng.choice([0.5, 2.0]), start_timeout_s=rng.choice([2.0, 4.0])),
            queue=replace(
                old.queue,
                keep_results_s=rng.choice([2.0, 20.0]),
                default_deadline_s=rng.choice([0.0, 0.0, 3.0]),
                classes=replace(
                    old.queue.classes, interactive=replace(old.queue.classes.interactive, weight=rng.choice([1, 4, 50]))
                ),
            ),
        )
        self.happen(inputs.SettingsRead(new, [], effect.to, effect.id))


def _name(effect: effects.Effect, now: float) -> str:
    """What tells an effect from others, in short."""
    match effect:
        case effects.Send():
            event = effect.event
            return f"{now} {type(event).__name__} {event.id} {effect.to.connection} {len(effect.body or b'')}"
        case effects.Tell():
            return f"{now} {type(effect.message).__name__} {effect.spawn} {getattr(effect.message, 'job', '')}"
        case effects.Publish() | effects.Log():
            return ""
        case _:
            return f"{now} {effect!r}"


def _client(number: int) -> inputs.Client:
    return inputs.Client(f"uid:{1000 + number}", f"user{number}")


def _to(connection: Connection) -> inputs.ReplyTo:
    return inputs.ReplyTo(connection.number, connection.envelope)
