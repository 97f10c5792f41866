"""What always holds: looked at after every step of the simulation, and once more at the end. rules.py has the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs import Job
from glmtts.daemon.core.workers import WITH_PROCESS, WorkerState
from glmtts.protocol import worker as wire

from .blame import Blame
from .bounds import Bounds
from .fairness import Fairness
from .hearing import Hearing
from .rules import Rule, must
from .starts import Starts

if TYPE_CHECKING:
    from .world import World

#: The timer that each state needs, so that no worker is forgotten in it.
_TIMER = {
    WorkerState.STARTING: "start",
    WorkerState.BUSY: "hang",
    WorkerState.DRAINING: "hang",
    WorkerState.FAILED: "kill",
    WorkerState.STOPPING: "kill",
    WorkerState.BACKOFF: "backoff",
    WorkerState.WAITING: "wait",
}
#: Timers that may stay behind when nothing is left to do.
_HARMLESS = {"expire", "positions", "grow", "look"}
#: Jobs are given back one by one while a worker ends.
_MAY_HAVE_JOBS = {WorkerState.DRAINING, WorkerState.STOPPING}
#: After so long the memory of a process is back, and was looked at.
_SEEN_FREE_S = 4.0
#: Every so many steps, everything is counted again.
_EVERY = 100


class Invariants:
    """Knows the core from inside, as only a test may."""

    def __init__(self, world: World) -> None:
        machine: Any = world.machine
        self._world = world
        self._machine = machine
        self._context = machine._context
        self._ledger = machine._ledger
        self._queue = machine._queue
        self._pool = machine._pool
        self._dispatcher = machine._dispatcher
        self.starts = Starts(world, machine)
        self._blame = Blame(world, machine)
        self._fairness = Fairness(machine)
        self._bounds = Bounds(world, machine)
        self._event: inputs.Input = inputs.TimePassed()
        self._served = False

    @property
    def live(self) -> dict[str, Job]:
        """The jobs that have not ended."""
        return self._ledger.live  # type: ignore[no-any-return]

    @property
    def accepted(self) -> int:
        """How many jobs were accepted."""
        return self._machine._reception.accepted  # type: ignore[no-any-return]

    @property
    def quarantine_after(self) -> int:
        """So many workers have to die of a content."""
        return self._context.settings.workers.restart.quarantine_after  # type: ignore[no-any-return]

    # --- what happens

    def before(self, event: inputs.Input) -> None:
        """Before a step."""
        self._event = event
        self._blame.before(event)
        self.starts.before(event)

    def sampled(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None:
        """The core is about to be told of a sample."""
        self.starts.sampled(sampled, truth)

    def asked_for_sample(self) -> None:
        """The core wants a sample."""
        self.starts.asked_for_sample(self._event)

    def spawned(self, effect: effects.Spawn) -> None:
        """The core has a process started."""
        self.starts.spawned(effect)

    def started(self, message: wire.Job, spawn: int) -> None:
        """The core hands a job to a worker."""
        self._blame.started(message)
        self._fairness.started(message.job, spawn)

    def forgiven(self, job: str | None) -> None:
        """An operator clears the quarantine."""
        self._blame.forgiven(job)

    # --- what is

    def after(self) -> None:
        """After every step."""
        self._look_at_workers()
        self.starts.after(self._event)
        self._fairness.after()
        self._bounds.look()
        if self._world.steps % _EVERY == 0:
            self.look_at_everything()

    def _look_at_workers(self) -> None:
        running = serving = 0
        free = False
        timers = self._context.timers
        timeout_s = self._context.settings.workers.hang_timeout_s
        processes = self.starts.processes
        live = self._ledger.live
        for name, worker in self._pool.workers.items():
            state = worker.state
            has = name in processes
            if has != (state in WITH_PROCESS) or (has and processes[name] != worker.spawn):
                must(Rule.ROOM, False, name, state, "has a process:", has)
            needed = _TIMER.get(state)
            if state is WorkerState.DRAINING and not worker.jobs:
                needed = None
            if needed is not None and (needed, name) not in timers:
                must(Rule.ONE_END, self._pool.stopping, name, state, "waits for nothing")
            if (state is WorkerState.BUSY) != bool(worker.jobs):
                must(Rule.ORDER, state in _MAY_HAVE_JOBS, name, state, "with jobs", worker.jobs)
            if state is WorkerState.BUSY:
                serving += 1
                if worker.moved:
                    latest = min(at for at, _ in worker.moved.values()) + timeout_s
                    due = timers.due(("hang", name))
                    must(Rule.ONE_END, due <= latest + 1e-6, name, "may hang for longer than it may")
            elif state is WorkerState.READY:
                serving += 1
                free = True
            for id in worker.jobs:
                job = live.get(id)
                if job is not None:
                    running += 1
                    right = job.state == "running" and job.worker == name
                    must(Rule.ORDER, right, id, "is on", name, job.state)
        waiting = len(self._queue)
        if running + waiting != len(live):
            must(Rule.ONE_END, False, f"{running} run and {waiting} wait of {len(live)} live jobs")
        if free and waiting and not self._dispatcher.paused:
            for_all = waiting - len(self._queue._for_fresh)
            must(Rule.NO_IDLENESS, not for_all and not self._pool.fresh(), "a worker is idle while jobs wait")
        if self._served and not serving and self._world.scene.gapless:
            # Where another process has just ended, its memory may not be seen free yet.
            seen = self._world.now - self.starts.ended_at > _SEEN_FREE_S
            must(Rule.NO_GAP, self._pool.stopping or not seen, "nobody serves, though there was room for a spare")
        self._served = serving > 0

    def look_at_everything(self) -> None:
        """Count again what is kept as a sum."""
        live = self.live.values()
        of_client: dict[str, int] = {}
        of_connection: dict[int, set[str]] = {}
        connections = self._world.clients.connections
        for job in live:
            of_client[job.client.key] = of_client.get(job.client.key, 0) + 1
            for subscriber in job.subscribers:
                of_connection.setdefault(subscriber.to.connection, set()).add(job.id)
                must(Rule.OWN_AUDIO, connections[subscriber.to.connection].open, job.id, "is sent to nobody")
            timer = self._context.timers.due(("deadline", job.id))
            must(Rule.ONE_END, timer == job.deadline_at, job.id, "has no timer for its deadline")
        ledger = self._ledger
        must(Rule.BOUNDED, dict(ledger.live_of_client) == of_client, "live_of_client", ledger.live_of_client, of_client)
        found = {connection: set(jobs) for connection, jobs in ledger._of_connection.items()}
        must(Rule.BOUNDED, found == of_connection, "_of_connection", found, of_connection)
        held = sum(len(job.recording or b"") for job in live)
        must(Rule.BOUNDED, ledger.recording_bytes == held, "recording_bytes")
        kept = [ended for ended in ledger._ended.values() if ended.body is not None]
        must(Rule.BOUNDED, ledger.result_bytes == sum(ended.size for ended in kept), "result_bytes")
        must(Rule.BOUNDED, list(ledger._with_result.values()) == kept, "results that nobody can find are kept")
        waiting = dict.fromkeys(self._queue.characters, 0)
        for job in self._queue:
            waiting[job.request.priority] += len(job.request.text)
        must(Rule.ORDER, waiting == self._queue.characters, "characters", waiting, self._queue.characters)
        ended = sum(self._dispatcher.outcomes.values())
        must(Rule.ONE_END, ended + len(self.live) == self.accepted, "jobs are lost")
        self._bounds.look_closely()

    def look_at_the_end(self) -> None:
        """The daemon has ended: everybody was answered, and nothing is left."""
        self.look_at_everything()
        must(Rule.ONE_END, not self.live, "jobs are left", self.live)
        # What nothing can end does not keep the daemon from ending.
        stuck = {worker.name for worker in self._pool.workers.values() if worker.stuck}
        processes = set(self.starts.processes) - stuck
        must(Rule.ROOM, not processes, "processes are left", processes)
        left = {key for key in self._context.timers._due if key[0] not in _HARMLESS and key != ("kill", key[1])}
        left |= {key for key in self._context.timers._due if key[0] == "kill" and key[1] not in stuck}
        must(Rule.ORDER, not left, "timers are left", left)
        for connection in self._world.clients.connections.values():
            if connection.open:
                for heard in connection.heard.values():
                    answered = heard.ended if isinstance(heard, Hearing) else heard.answers
                    must(Rule.ONE_END, answered, heard, "was never answered")
