"""What always holds: looked at after every step of the simulation, and once more at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs import Job
from glmtts.daemon.core.pool import AHEAD, WITH_PROCESS, WorkerState
from glmtts.protocol import worker as wire

from .hearing import Hearing, must

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
}
#: Timers that may stay behind when nothing is left to do.
_HARMLESS = {"expire", "positions"}
#: Every so many steps, everything is counted again.
_EVERY = 100


class Invariants:
    """Knows the core from inside, as only a test may."""

    def __init__(self, world: World) -> None:
        machine: Any = world.machine
        self._world = world
        self._context = machine._context
        self._ledger = machine._ledger
        self._queue = machine._queue
        self._pool = machine._pool
        self._dispatcher = machine._dispatcher
        self._steps = 0
        self._processes: dict[str, int] = {}
        #: By worker: false starts in a row, and when the last one ended.
        self._false_starts: dict[str, tuple[int, float]] = {}
        self._deaths: dict[str, int] = {}
        self._most_timers = 0

    @property
    def live(self) -> dict[str, Job]:
        """The jobs that have not ended."""
        return self._ledger.live  # type: ignore[no-any-return]

    # --- what happens

    def before(self, event: inputs.Input) -> None:
        """A process that ends by itself with a job counts against what the job says, until that was spoken."""
        if isinstance(event, inputs.WorkerSaid) and isinstance(event.message, wire.Finished):
            if event.message.job in self.live:
                self._deaths.pop(self.live[event.message.job].request.text, None)
            return
        if isinstance(event, inputs.ProcessEnded | inputs.SpawnFailed):
            worker = self._pool._by_spawn.get(event.spawn)
            if worker is None:
                return
            must(self._processes.pop(worker.name, None) == event.spawn, worker, "had another process")
            false_start = worker.ready is None and worker.state is not WorkerState.STOPPING
            count = self._false_starts.get(worker.name, (0, 0.0))[0] + 1 if false_start else 0
            self._false_starts[worker.name] = (count, self._world.now)
            if worker.state in (WorkerState.BUSY, WorkerState.DRAINING):
                had = [self.live[id] for id in worker.jobs if id in self.live]
                # What had only lain ready in it is not to blame.
                for text in dict.fromkeys(job.request.text for job in had if job.begun):
                    self._deaths[text] = self._deaths.get(text, 0) + 1

    def spawned(self, effect: effects.Spawn) -> None:
        """A worker has one process at a time, and false starts don't follow each other without end."""
        must(effect.name in self._pool.workers, "a process for no worker")
        must(effect.name not in self._processes, "a second process for", effect.name)
        self._processes[effect.name] = effect.spawn
        count, ended_at = self._false_starts.get(effect.name, (0, 0.0))
        if count > 1:
            restart = self._context.settings.workers.restart
            pause = 0.75 * min(restart.backoff_max_s, restart.backoff_initial_s * 2.0 ** (count - 2))
            must(self._world.now >= ended_at + pause - 1e-6, effect.name, "is started again without its pause")

    def started(self, message: wire.Job) -> None:
        """No job that has killed enough workers is run again."""
        limit = self._context.settings.workers.restart.quarantine_after
        must(self._deaths.get(message.text, 0) < limit, message.text, "has killed workers and is run again")

    # --- what is

    def after(self) -> None:
        """After every step."""
        self._steps += 1
        self._look_at_workers()
        timers = self._context.timers
        self._most_timers = max(self._most_timers, len(timers))
        must(len(timers._heap) <= 2 * self._most_timers + 66, "the heap of timers grows")
        queue = self._context.settings.queue
        must(self._ledger.result_bytes <= queue.keep_results_mib << 20, "results take more memory than they may")
        waiting = self._queue.length("interactive") + self._queue.length("vip")
        retried = len(self._pool.workers) * self._world.slots + AHEAD
        must(waiting <= queue.max_waiting + retried, "the queue is longer than it may be:", waiting)
        must(self._queue.length("batch") <= queue.max_waiting_batch + retried, "the batch queue is too long")
        if self._steps % _EVERY == 0:
            self.look_at_everything()

    def _look_at_workers(self) -> None:
        running = 0
        free = False
        timers = self._context.timers
        for worker in self._pool.workers.values():
            state = worker.state
            has = worker.name in self._processes
            must(has == (state in WITH_PROCESS), worker.name, state, "has a process:", has)
            must(not has or self._processes[worker.name] == worker.spawn, worker.name, "took another's process")
            needed = _TIMER.get(state)
            must(needed is None or (needed, worker.name) in timers, worker.name, state, "waits for nothing")
            must((state is WorkerState.BUSY) == bool(worker.jobs) or state in _MAY_HAVE_JOBS, worker.name, state)
            if state is WorkerState.BUSY:
                due = timers.due(("hang", worker.name))
                latest = worker.beat_at + self._context.settings.workers.hang_timeout_s
                must(due <= latest + 1e-6, worker.name, "may hang for longer than it may")
            free = free or state is WorkerState.READY
            for id in worker.jobs:
                job = self.live.get(id)
                if job is not None:
                    running += 1
                    must(job.state == "running" and job.worker == worker.name, job.id, "is on", worker.name, job.state)
        waiting = len(self._queue)
        must(running + waiting == len(self.live), f"{running} run and {waiting} wait of {len(self.live)} live jobs")
        must(not (free and waiting) or self._dispatcher.paused, "a worker is idle while jobs wait")

    def look_at_everything(self) -> None:
        """Count again what is kept as a sum."""
        live = self.live.values()
        of_client: dict[str, int] = {}
        of_connection: dict[int, set[str]] = {}
        for job in live:
            of_client[job.client.key] = of_client.get(job.client.key, 0) + 1
            for subscriber in job.subscribers:
                of_connection.setdefault(subscriber.to.connection, set()).add(job.id)
                must(self._world.connections[subscriber.to.connection].open, job.id, "is sent to nobody")
            timer = self._context.timers.due(("deadline", job.id))
            must(timer == job.deadline_at, job.id, "has no timer for its deadline")
        ledger = self._ledger
        must(dict(ledger.live_of_client) == of_client, "live_of_client", ledger.live_of_client, of_client)
        found = {connection: set(jobs) for connection, jobs in ledger._of_connection.items()}
        must(found == of_connection, "_of_connection", found, of_connection)
        must(ledger.recording_bytes == sum(len(job.recording or b"") for job in live), "recording_bytes")
        kept = [ended for ended in ledger._ended.values() if ended.body is not None]
        must(ledger.result_bytes == sum(ended.size for ended in kept), "result_bytes")
        must(list(ledger._with_result.values()) == kept, "results that nobody can find are kept")
        for priority, characters in self._queue.characters.items():
            must(characters == sum(len(j.request.text) for j in self._queue._lanes[priority].values()), "characters")
        counts = self._world.machine
        must(sum(self._dispatcher.outcomes.values()) + len(self.live) == counts._reception.accepted, "jobs are lost")

    def look_at_the_end(self) -> None:
        """The daemon has ended: everybody was answered, and nothing is left."""
        self.look_at_everything()
        must(not self.live, "jobs are left", self.live)
        must(not self._processes, "processes are left", self._processes)
        left = {key for key in self._context.timers._due if key[0] not in _HARMLESS}
        must(not left, "timers are left", left)
        for connection in self._world.connections.values():
            if connection.open:
                for heard in connection.heard.values():
                    answered = heard.ended if isinstance(heard, Hearing) else heard.answers
                    must(answered, heard, "was never answered")


#: Jobs are given back one by one while a worker ends.
_MAY_HAVE_JOBS = {WorkerState.DRAINING, WorkerState.STOPPING}
