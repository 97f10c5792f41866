"""What always holds: looked at after every step of the simulation, and once more at the end. rules.py has the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.exit_causes import Cause
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.workers.worker import WITH_PROCESS, Worker, WorkerState
from glmtts.protocol import requests
from glmtts.protocol import worker as wire

from .aside import Aside
from .blame import Blame
from .bounds import Bounds
from .fairness import Fairness
from .hearing import Hearing
from .limits import Limits
from .neighbours import Neighbours
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
_HARMLESS = {"expire", "positions", "grow", "look", "clock"}
#: Jobs are given back one by one while a worker ends.
_MAY_HAVE_JOBS = {WorkerState.DRAINING, WorkerState.STOPPING}
#: After so long the memory of a process is back, and was looked at.
_SEEN_FREE_S = 4.0
#: No segment takes so long.
_PATIENT_S = 2.0
#: Every so many steps, everything is counted again.
_EVERY = 100


class Invariants:
    """Knows the core from inside, as only a test may."""

    def __init__(self, world: World) -> None:
        machine: Any = world.machine
        self._world = world
        self._machine = machine
        self._context = machine.state.context
        self._job_table = machine.state.job_table
        self._queue = machine.state.queue
        self._pool = machine.state.pool
        self._completion = machine.scheduler.completion
        self._durable_jobs = machine.scheduler.durable_jobs
        self.starts = Starts(world, machine)
        self._blame = Blame(world, machine)
        self._fairness = Fairness(world, machine)
        self._limits = Limits(world, machine)
        self._aside = Aside(world, machine)
        self._bounds = Bounds(world, machine)
        self._neighbours = Neighbours(world, machine)
        self._event: inputs.Input = inputs.TimePassed()
        self._served = False
        #: Workers that had failed by the last step.
        self._failed: set[str] = set()

    @property
    def live(self) -> dict[str, Job]:
        """The jobs that have not ended."""
        return self._job_table.live  # type: ignore[no-any-return]

    @property
    def accepted(self) -> int:
        """How many jobs this daemon has taken from clients, though the journal may still refuse some."""
        return self._machine.state.context.counters.created  # type: ignore[no-any-return]

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

    def between(self) -> None:
        """An effect of a step has failed, of which the core is about to hear."""
        self.starts.between(self._event)

    def unsure(self) -> None:
        """The step has met a bug."""
        self._blame.unsure()
        self.starts.unsure(self._event)

    def sampled(self, sampled: inputs.Sampled, truth: dict[int, dict[int, int]]) -> None:
        """The core is about to be told of a sample."""
        self.starts.sampled(sampled, truth)

    def asked_for_sample(self) -> None:
        """The core wants a sample."""
        self.starts.asked_for_sample(self._event)

    def spawned(self, effect: effects.Spawn) -> None:
        """The core has a process started."""
        self.starts.spawned(effect)

    def started(self, message: wire.SpeakJob, incarnation: int) -> None:
        """The core hands a job to a worker."""
        self._blame.started(message)
        self._fairness.started(message.job, incarnation)
        self._limits.started(message.job, self._event)

    def admitted(self, client: inputs.Client, request: requests.Synthesize) -> None:
        """The core has taken a job."""
        self._limits.admitted(client, request)

    def forgiven(self, job: str | None) -> None:
        """An operator clears the quarantine."""
        self._blame.forgiven(job)

    # --- what is

    def after(self) -> None:
        """After every step."""
        must(
            Rule.NO_IDLENESS,
            not (self._context.jobs_dirty or self._context.workers_dirty),
            "a step ended before workers and jobs were in line with it",
        )
        self._look_at_workers()
        self._blame.after()
        self.starts.after(self._event)
        self._fairness.after()
        self._aside.after(self._event)
        self._bounds.look()
        if self._world.floods:
            self._neighbours.look()
        if self._world.steps % _EVERY == 0:
            self.look_at_everything()

    def _look_at_workers(self) -> None:
        running = serving = with_batch = 0
        free = open_slot = False
        timers = self._context.timers
        timeout_s = self._context.settings.workers.hang_timeout_s
        processes = self.starts.processes
        live = self._job_table.live
        for name, worker in self._pool.workers.items():
            state = worker.state
            has = name in processes
            if has != (state in WITH_PROCESS) or (has and processes[name] != worker.incarnation):
                must(Rule.ROOM, False, name, state, "has a process:", has)
            needed = _TIMER.get(state)
            # Those that wait for text wait for their clients.
            if needed == "hang" and set(worker.jobs) == set(worker.process.without_text):
                needed = None
            if needed is not None and (needed, name) not in timers:
                must(Rule.ONE_END, self._pool.stopping, name, state, "waits for nothing")
            if state is WorkerState.FAILED and name not in self._failed:
                self._look_at_failure(worker)
            if worker.jobs and state is WorkerState.FAILED:
                asked = worker.incarnation in self._world.reading
                must(Rule.ONE_END, asked, name, "has failed, and nothing decides about", worker.jobs)
            elif (state is WorkerState.BUSY) != bool(worker.jobs):
                must(Rule.ORDER, state in _MAY_HAVE_JOBS, name, state, "with jobs", worker.jobs)
            if state is WorkerState.BUSY:
                serving += 1
                if worker.process.moved and worker.process.begun:
                    latest = min(at for at, _ in worker.process.moved.values()) + timeout_s
                    due = timers.due(("hang", name))
                    must(Rule.ONE_END, due <= latest + 1e-6, name, "may hang for longer than it may")
            elif state is WorkerState.READY:
                serving += 1
                free = True
            for id in worker.jobs:
                job = live.get(id)
                if job is not None and job.ending is None:
                    running += 1
                    right = job.state == "running" and job.attempt.worker == name
                    must(Rule.ORDER, right, id, "is on", name, job.state)
            if state is WorkerState.BUSY:
                # One that is put aside counts too: its worker is going to go on with it.
                suspended = set(worker.process.without_text)
                jobs = [live[id] for id in worker.jobs if id in live and id not in suspended]
                with_batch += min(worker.process.slots, sum(job.request.priority == "batch" for job in jobs))
                free = free or set(worker.jobs) == suspended
                process, kept_empty = worker.process, name == self._pool.reserved and self._queue.wants_alone
                if not kept_empty and not process.may_resume and len(process.at_hand) < process.slots:
                    open_slot = True
        waiting = len(self._queue) + self._queue.without_text
        ending = sum(job.ending is not None for job in live.values()) if running + waiting != len(live) else 0
        if running + waiting + ending != len(live):
            must(Rule.ONE_END, False, f"{running} run, {waiting} wait and {ending} end of {len(live)} live jobs")
        if free and waiting and not self._queue.paused:
            class_queues = self._queue._class_queues
            slots = sum(worker.process.slots for worker in self._pool.workers.values() if worker.serving)
            kept = min(self._context.settings.queue.interactive_workers, slots - 1)
            urgent = len(class_queues["vip"]) + len(class_queues["interactive"])
            batch = len(class_queues["batch"]) if with_batch < slots - kept else 0
            must(Rule.NO_IDLENESS, not urgent and not batch, "a worker is idle while jobs wait")
            fresh = self._queue.wants_fresh and self._pool.fresh()
            must(Rule.NO_IDLENESS, not fresh, "a fresh worker is idle while a job waits for one")
            alone = self._queue.wants_alone and self._pool.vacant()
            must(Rule.NO_IDLENESS, not alone, "a worker is idle while a job waits that runs alone")
        if open_slot and not self._queue.paused:
            urgent = sum(len(self._queue._class_queues[priority]) for priority in ("vip", "interactive"))
            must(Rule.NO_IDLENESS, not urgent, "a slot is empty while jobs wait")
        if self._served and not serving and self._world.scene.gapless:
            # Where another process has just ended, its memory may not be seen free yet.
            seen = self._world.clocks.core_now - self.starts.ended_at > _SEEN_FREE_S
            must(Rule.NO_GAP, self._pool.stopping or not seen, "nobody serves, though there was room for a spare")
        self._served = serving > 0
        self._failed = {worker.name for worker in self._pool.workers.values() if worker.state is WorkerState.FAILED}

    def _look_at_failure(self, worker: Worker) -> None:
        """A process has failed: for its silence only if it was its own."""
        process = self._world.processes.get(worker.incarnation)
        late = worker.exit_reason.cause in (Cause.HUNG, Cause.START_TIMEOUT) if worker.exit_reason else False
        # Shorter than that a healthy process may really be late.
        patient = self._context.settings.workers.hang_timeout_s >= _PATIENT_S
        if late and patient and process is not None and not self._world.scene.bugs:
            must(Rule.QUARANTINE, process.silent, worker.name, "works, and is taken for hung:", process.has)

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
            self._look_at_deadline(job)
        job_table = self._job_table
        must(
            Rule.BOUNDED,
            dict(job_table.live_of_client) == of_client,
            "live_of_client",
            job_table.live_of_client,
            of_client,
        )
        found = {connection: set(jobs) for connection, jobs in job_table._of_connection.items()}
        must(Rule.BOUNDED, found == of_connection, "_of_connection", found, of_connection)
        held = sum(len(job.recording or b"") for job in live) + self._machine.state.voices.own.recording_bytes
        must(Rule.BOUNDED, job_table.recording_bytes == held, "recording_bytes")
        kept = [ended for ended in job_table._ended.values() if ended.ending.body is not None]
        must(Rule.BOUNDED, job_table.result_bytes == sum(ended.size for ended in kept), "result_bytes")
        results = {id for rows in job_table._results._of_client.values() for id in rows}
        must(Rule.BOUNDED, results == {ended.info.job for ended in kept}, "results that nobody can find are kept")
        self._look_at_sums()
        ended = sum(self._completion.outcomes.values()) + self._completion.left
        taken = self.accepted - self._context.counters.withdrawn + self._durable_jobs.recovered
        must(Rule.ONE_END, ended + len(self.live) == taken, "jobs are lost")
        stopping = self._machine.stopping
        self._world.promises.look(self.live, leaving=stopping)
        self._bounds.look_closely()

    def _look_at_deadline(self, job: Job) -> None:
        timer = self._context.timers.due(("deadline", job.id))
        if job.deadline_at is None or job.ending is not None:
            must(Rule.ORDER, timer is None, job.id, "has a timer for a deadline that it does not have")
        elif job.id in self._queue._held:
            must(Rule.ONE_END, timer is None or timer <= job.deadline_at, job.id, "may miss its deadline unnoticed")
        else:
            in_time = timer is not None and timer <= job.deadline_at
            must(Rule.ONE_END, in_time, job.id, "has no timer for its deadline")
            must(Rule.ONE_END, not job.attempt.begun or timer == job.deadline_at, job.id, "is given up too early")

    def _look_at_sums(self) -> None:
        queue = self._queue
        for priority, class_queue in queue._class_queues.items():
            apart = [*queue._for_fresh.values(), *queue._alone.values(), *queue._held.values()]
            without_text = queue._without_text
            jobs = [j for j in queue if j.request.priority == priority and j.id not in without_text]
            inside = [j for j in jobs if all(j is not other for other in apart)]
            must(Rule.ORDER, queue.length(priority) == len(jobs), "length of", priority)
            must(Rule.ORDER, len(class_queue) == len(inside), "length of the lane of", priority)
            work_s = sum(job.account.cost_s for job in inside)
            must(Rule.ORDER, abs(class_queue.work_s - work_s) < 1e-6, "work of", priority, class_queue.work_s, work_s)
            of_clients = {key: (len(flow.jobs), flow.work_s) for key, flow in class_queue._flows.items()}
            for key, (count, flow_s) in of_clients.items():
                own = [job.account.cost_s for job in inside if job.client.key == key]
                right = count == len(own) and abs(flow_s - sum(own)) < 1e-6
                must(Rule.ORDER, right, "jobs of", key)
            must(Rule.ORDER, sum(count for count, _ in of_clients.values()) == len(inside), "clients of", priority)
            must(Rule.ORDER, bool(inside) == (priority in queue._classes), priority, "waits, or not")

    def look_at_the_end(self) -> None:
        """The daemon has ended: everybody was answered, and nothing is left."""
        self.look_at_everything()
        must(Rule.ONE_END, not self.live, "jobs are left", self.live)
        # What nothing can end does not keep the daemon from ending.
        stuck = {worker.name for worker in self._pool.workers.values() if worker.process.stuck}
        processes = set(self.starts.processes) - stuck
        must(Rule.ROOM, not processes, "processes are left", processes)
        left = {key for key in self._context.timers if key[0] not in _HARMLESS and key != ("kill", key[1])}
        left |= {key for key in self._context.timers if key[0] == "kill" and key[1] not in stuck}
        must(Rule.ORDER, not left, "timers are left", left)
        for connection in self._world.clients.connections.values():
            if connection.open:
                for heard in connection.heard.values():
                    answered = heard.ended if isinstance(heard, Hearing) else heard.answers
                    owed = (connection.number, heard.id) in self._world.owed
                    must(Rule.ONE_END, answered or owed, heard, "was never answered")
