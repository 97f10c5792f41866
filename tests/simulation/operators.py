"""Operators as the simulation plays them, and what they may change under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.context import INTERNAL_ERROR
from glmtts.protocol import control, requests
from glmtts.protocol.events import Result

from .clients import Connection
from .hearing import Question

if TYPE_CHECKING:
    from .world import World


class Operators:
    """One operator, who does something now and then, and puts it right after a while."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._connection = self._connect()
        self._said: int | None = None
        self._most = 0
        self._last = 0
        #: When there last came to be fewer: those that are too many since then finish their jobs.
        self.lowered_at = 0.0

    def _connect(self) -> Connection:
        operator = inputs.Client("operator", "root", operator=True)
        return self._world.clients.connect(operator, number=(1 << 40) + self._world.daemon)

    def begin_again(self) -> None:
        """Another daemon: what the last one was told is forgotten."""
        self._connection.open = False
        self._connection = self._connect()
        self._said = None
        self.note()

    @property
    def places(self) -> int:
        """Places for workers, by the configuration. GPUs that nobody has seen count as a machine without any."""
        workers, gpus = self._world.machine.settings.workers, self._world.scene.gpus
        without = workers.max or max(workers.per_gpu, workers.min)
        if not gpus:
            return without
        places = workers.per_gpu * gpus
        places = min(workers.max, places) if workers.max else places
        unseen = workers.gpus == "all" and not self._world.invariants.starts.gpus_seen
        return max(places, without) if unseen else places

    @property
    def highest(self) -> int:
        """How many workers there may be."""
        return self.places if self._said is None else self._said

    def note(self) -> None:
        """Something may have changed how many there may be."""
        if self.highest < (self._last or self.highest + 1):
            self.lowered_at = self._world.clocks.core_now
        self._last = 0

    @property
    def most_ever(self) -> int:
        """How many there may have been at some time."""
        self._most = max(self._most, self.highest)
        return self._most

    def ask(self, request: control.ControlRequest) -> Any:
        """One operation on the control socket; returns its answer, if there is one at once."""
        question = Question(self._connection.number, request.id)
        self._world.clients.put(self._connection, question)
        self._world.happen(inputs.Controlled(self._connection.to, request))
        return question.answer

    def act(self) -> None:
        """Do something, and come back later."""
        world = self._world
        if world.ending:
            return
        if "operators" not in world.without:
            self._operate()
        world.after(world.random.expovariate(0.1), self.act)

    def _operate(self) -> None:
        world = self._world
        rng, id = world.random, world.id
        resume = False
        calm = world.scene.gapless or world.scene.leak_must_be_seen
        match rng.randrange(13):
            case 0:
                self.ask(control.Pause(id=id(), v=1))
                resume = True
            case 1:
                self.ask(
                    control.Drain(id=id(), v=1) if rng.random() < 0.3 else control.Drain(id=id(), v=1, timeout_s=0.5)
                )
                resume = True
            case 2:
                self.ask(control.Recycle(id=id(), v=1, worker=rng.choice(["all", "w0"])))
            case 3:
                self.ask(control.Reload(id=id(), v=1))
            case 4:
                self.ask(control.Status(id=id(), v=1))
                self.ask(control.Workers(id=id(), v=1))
                self.ask(control.Gpus(id=id(), v=1))
                self.ask(control.Queue(id=id(), v=1))
                self.ask(control.GetLimits(id=id(), v=1))
            case 5:
                self.ask(requests.ListJobs(id=id(), v=1, limit=50))
            case 6:
                world.happen(inputs.SettingsRead(None, ["a wrong file"]))
            case 7 if "sickness" not in world.without and world.scene.violence:
                world.sick = True
                world.after(rng.uniform(1, 15), self._heal)
            case 8 | 9 if not calm:
                self._scale()
            case 10 | 11:
                self._quarantine()
        if resume:
            world.later(rng.expovariate(0.5), lambda: self.ask(control.Resume(id=id(), v=1)))

    def _heal(self) -> None:
        self._world.sick = False

    def _scale(self) -> None:
        world = self._world
        rng = world.random
        lowest, highest = rng.randint(0, 4), rng.randint(1, 5)
        request = control.Scale(id=world.id(), v=1, max=highest)
        if rng.random() < 0.5:
            request.min = lowest
        before = self._said
        # Until the answer is there, either may hold.
        self._said = max(highest, self.highest)
        answer = self.ask(request)
        if isinstance(answer, Result):
            self._said = answer.values["max"]
        elif answer is None or answer.message != INTERNAL_ERROR:
            self._said = before
        self.note()

    def _quarantine(self) -> None:
        world = self._world
        answer = self.ask(control.Quarantine(id=world.id(), v=1))
        held = answer.values["quarantined"] if isinstance(answer, Result) else []
        if not held:
            return
        if world.random.random() < 0.3:
            world.invariants.forgiven(None)
            self.ask(control.Quarantine(id=world.id(), v=1, clear="all"))
        elif world.random.random() < 0.3:
            entry = world.random.choice(held)
            world.invariants.forgiven(entry["job"])
            self.ask(control.Quarantine(id=world.id(), v=1, clear=entry["content"]))

    def read_settings(self, effect: effects.ReadSettings) -> None:
        """The file as it is now."""
        world = self._world
        rng, old = world.random, world.machine.settings
        if effect.to is not None:
            world.owed.discard((effect.to.connection, effect.id))
        if "reloads" in world.without:
            world.happen(inputs.SettingsRead(old, [], effect.to, effect.id))
            return
        hang_timeout_s = 2.0 if world.scene.gapless else rng.choice([0.5, 2.0])
        workers = replace(old.workers, hang_timeout_s=hang_timeout_s, start_timeout_s=rng.choice([2.0, 4.0]))
        if rng.random() < 0.3 and not (world.scene.gapless or world.scene.leak_must_be_seen):
            workers = replace(workers, max=rng.randint(1, 4), min=rng.randint(0, 1))
        bounds = (workers.min, workers.max)
        if bounds != (old.workers.min, old.workers.max):
            self._said = None
        # What processes are started with is changed as well: each is then replaced while everything goes on.
        words = (
            rng.choice(["a", "b"])
            if rng.random() < 0.05 and not world.scene.leak_must_be_seen
            else old.engine.warmup_text
        )
        new = replace(
            old,
            engine=replace(old.engine, warmup_text=words),
            workers=workers,
            queue=replace(
                old.queue,
                keep_results_s=rng.choice([2.0, 20.0]),
                default_deadline_s=rng.choice([0.0, 0.0, 3.0]),
                classes=replace(
                    old.queue.classes, interactive=replace(old.queue.classes.interactive, weight=rng.choice([1, 4, 50]))
                ),
            ),
        )
        world.happen(inputs.SettingsRead(new, [], effect.to, effect.id))
        self.note()
