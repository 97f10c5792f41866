"""Jobs that are put aside in their worker: never too many, never forgotten, and none goes on while another should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import inputs
from glmtts.daemon.core.workers.worker import WorkerState
from glmtts.protocol import worker as wire

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World

#: Seconds in which what was said during a standstill arrives.
_JUST_S = 0.2


class Aside:
    """Looks at every worker that has put a job aside."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._context = machine.state.context
        self._live = machine.state.job_table.live
        self._pool = machine.state.pool
        self._queue = machine.state.queue
        #: For how many borders a job that could be put aside has run on while an urgent one waited and had not had
        #: its share.
        self._passed: dict[str, int] = {}

    def after(self, event: inputs.Input) -> None:
        """After every step."""
        for worker in self._pool.workers.values():
            if worker.process.suspended:
                self._look_at(worker)
        if isinstance(event, inputs.WorkerSaid):
            if isinstance(event.message, wire.SegmentDone):
                self._at_border(event.message)
            elif isinstance(event.message, wire.Suspended):
                self._passed.pop(event.message.job, None)

    def _look_at(self, worker: Any) -> None:
        must(
            Rule.ORDER,
            set(worker.process.suspended) <= set(worker.jobs),
            worker.name,
            "has put aside what it does not have",
        )
        suspended = [self._live[id] for id in worker.process.suspended if id in self._live]
        must(
            Rule.ORDER,
            all(job.attempt.suspended or job.ending for job in suspended),
            worker.name,
            "speaks what it has put aside",
        )
        waits = [job.id for job in suspended if job.ending is None and not job.attempt.waits_for_text]
        # A slot may be kept free of batch jobs.
        kept = worker.process.slots > 1 and worker.process.at_hand and self._context.settings.queue.interactive_workers
        waits = [id for id in waits if not kept or self._live[id].request.priority != "batch"]
        # One that runs alone goes on when nothing else is at hand.
        if worker.process.at_hand and any(job.alone for job in suspended):
            waits = []
        if worker.process.may_resume and waits and worker.state in (WorkerState.BUSY, WorkerState.DRAINING):
            must(Rule.ONE_END, False, worker.name, "does nothing, and has put aside", waits)
        must(
            Rule.ORDER,
            # With nothing else to do, it owes the ends of those that were cancelled.
            not (worker.process.at_hand or any(j.ending is None and not j.attempt.waits_for_text for j in suspended))
            or not set(worker.process.moved) & set(worker.process.suspended),
            worker.name,
            "may hang in what it has put aside",
        )

    def _at_border(self, message: wire.SegmentDone) -> None:
        """A batch job has come to a border: does it run on though another should come before it?"""
        workers = list(self._pool.workers.values())
        job = self._live.get(message.job)
        settings = self._context.settings.queue
        # What it has spoken while the daemon stood still, it could not be kept from.
        just_thawed = self._world.now - self._world.clocks.thawed_at < _JUST_S
        paused = self._queue.paused or just_thawed
        if len(workers) != 1 or not settings.preempt or job is None or job.ending is not None or paused:
            self._passed.clear()
            return
        worker = workers[0]
        process = worker.process
        could = worker.state is WorkerState.BUSY and not process.shares and not process.replace_reason
        others = [id for id in worker.process.suspended if id not in self._live or self._live[id].pieces is None]
        alone = list(worker.process.at_hand) == [job.id] and len(others) < 3
        goes_on = message.segment < message.segments - 1
        if not (could and alone and goes_on and job.request.priority == "batch" and self._owed()):
            self._passed.pop(message.job, None)
            return
        # It may be told so at this border, and hear of it at the next one.
        passed = self._passed[job.id] = self._passed.get(job.id, 0) + 1
        must(Rule.FAIR, passed <= 3, job.id, "runs on while an urgent one waits, which has had less than its share")

    def _owed(self) -> bool:
        """Whether an urgent class waits that has had less than its weight, whatever is still charged to batch."""
        classes, live = self._queue._classes, self._live
        ahead = sum(
            max(0.0, job.account.charged_s - job.attempt.active_s(self._context.now))
            for job in live.values()
            if job.attempt.begun and job.request.priority == "batch"
        )
        had = classes.had("batch") - ahead / classes.weight("batch")
        return any(p in classes and classes.tag(p) < had - 1e-6 for p in ("vip", "interactive"))
