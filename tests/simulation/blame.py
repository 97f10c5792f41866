"""Which contents killed workers, counted beside the core: what has killed enough of them is not run again.

Of several jobs in one process a death counts for the one that is known to be its cause, and for none of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glmtts.daemon.core import inputs
from glmtts.daemon.core.exit_causes import POLICIES, Cause
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.workers.worker import Worker, WorkerState
from glmtts.protocol import worker as wire

from .rules import Rule, must
from .texts import name_of

if TYPE_CHECKING:
    from .world import World


class Blame:
    """Counts the deaths that are plain to see from outside; the core may count more (hangs), but never fewer."""

    def __init__(self, world: World, machine: Any) -> None:
        self._world = world
        self._context = machine.state.context
        self._live = machine.state.job_table.live
        self._pool = machine.state.pool
        self._quarantine = machine.scheduler.retries.quarantine
        #: By text: how many workers died of it, and until when that is held against it.
        self._deaths: dict[str, tuple[int, float]] = {}
        self._texts: dict[str, str] = {}
        self._before = self._deaths
        #: The jobs of a process that may have died of several, about which this step decides, and how often each was
        #: excused before; the one that the death counts for; and all deaths that were counted before.
        self._decided: list[tuple[Job, int]] = []
        self._culprit = ""
        self._suspects: Sequence[str] = []
        self._counted = 0

    def before(self, event: inputs.Input) -> None:
        """Somebody may be about to die, or to show that he did not."""
        self._before = self._deaths.copy()
        self._decided = []
        match event:
            case inputs.WorkerSaid(message=wire.Finished(job=id)) if id in self._live:
                self._deaths.pop(name_of(self._live[id].request.text), None)
            case inputs.WorkerSaid(message=wire.Failed(fatal=True, code="cuda_context") as said):
                named = [said.job] if said.job else said.suspects
                self._fails(event.incarnation, Cause.CUDA_CONTEXT, named)
            case inputs.WorkerGarbled(incarnation=incarnation):
                self._fails(incarnation, Cause.PROTOCOL)
            case inputs.RecorderRead(incarnation=incarnation, jobs=noted):
                self._ends(incarnation, noted)
            case inputs.ProcessEnded(incarnation=incarnation, jobs=noted):
                self._ends(incarnation, noted, event)

    def _fails(self, incarnation: int, cause: Cause, named: Sequence[str] = ()) -> None:
        """The core is about to fail a process, and decides at once where one job alone may be to blame."""
        worker = self._pool._by_incarnation.get(incarnation)
        if worker is None or worker.state not in (WorkerState.BUSY, WorkerState.DRAINING):
            return
        begun = worker.process.begun
        candidates = [id for id in begun if id in named] or begun
        if len(candidates) == 1:
            self._decides(worker, cause, candidates)

    def _ends(self, incarnation: int, noted: Sequence[str], ended: inputs.ProcessEnded | None = None) -> None:
        """A process has ended, or its recorder was read: the core decides now, unless it has done so before."""
        worker = self._pool._by_incarnation.get(incarnation)
        if worker is None or not worker.jobs:
            return
        process = worker.process
        if process.exit_reason is not None:
            cause = process.exit_reason.cause
        elif ended is not None:
            cause = process.unexpected_exit(ended.returncode, "", oom_killed=ended.oom_killed, now=0.0).cause
        else:
            return
        self._decides(worker, cause, process.begun if process.candidates is None else process.candidates, noted)

    def _decides(self, worker: Worker, cause: Cause, candidates: Sequence[str], noted: Sequence[str] = ()) -> None:
        blames = POLICIES[cause].blames_job
        if not blames and cause is not Cause.OUT_OF_MEMORY:
            return
        self._suspects = found = [id for id in candidates if id in noted] or candidates
        self._culprit = found[0] if len(found) == 1 and 1 in (len(candidates), len(noted)) else ""
        # Those that had only lain ready in it, or were put aside, are not to blame.
        jobs = [job for id in worker.jobs if (job := self._live.get(id)) is not None and job.ending is None]
        jobs = [job for job in jobs if job.attempt.begun and not job.attempt.suspended]
        if worker.process.shares:
            self._decided = [(job, job.excused) for job in jobs]
            self._counted = self._all_deaths()
        now = self._world.clocks.core_now
        for job in jobs:
            if blames and job.id == self._culprit:
                text = name_of(job.request.text)
                count, until = self._deaths.get(text, (0, 0.0))
                holds_s = self._context.settings.workers.restart.quarantine_s
                self._deaths[text] = (count + 1 if until > now else 1, now + holds_s)

    def _all_deaths(self) -> int:
        return sum(entry.deaths for entry in self._quarantine._entries.values())

    def unsure(self) -> None:
        """The step has met a bug: the core may not have counted a death."""
        self._deaths = self._before
        self._decided = []

    def after(self) -> None:
        """A step is over: the death of a process counts for one of its jobs, or excuses it."""
        for worker in self._pool.workers.values():
            alone = [id for id in worker.process.at_hand if id in self._live and self._live[id].alone]
            if alone and worker.process.shares:
                must(Rule.QUARANTINE, len(worker.process.at_hand) == 1, alone, "is to run alone, and does not")
        if not self._decided:
            return
        blamed = self._all_deaths() - self._counted
        must(Rule.QUARANTINE, blamed <= bool(self._culprit), "a death is held against", blamed, "contents")
        for job, excused in self._decided:
            right = job.excused == excused + (job.id != self._culprit)
            must(Rule.QUARANTINE, right, job.id, "pays for another's death, or not for its own")
            company = job.live and job.id in self._suspects and not job.alone
            must(Rule.QUARANTINE, not company, job.id, "may have killed a worker, and may kill its neighbours")

    def started(self, message: wire.SpeakJob) -> None:
        """No job that has killed enough workers is run again."""
        text = self._texts[message.job] = name_of(message.text)
        if not self._deaths:
            return
        count, until = self._deaths.get(text, (0, 0.0))
        limit = self._context.settings.workers.restart.quarantine_after
        refused = count >= limit and until > self._world.clocks.core_now + 1e-6
        must(Rule.QUARANTINE, not refused, text, "has killed", count, "workers and is run again")

    def forgiven(self, job: str | None) -> None:
        """An operator clears what is held against this job's content; None for all."""
        if job is None:
            self._deaths.clear()
        else:
            self._deaths.pop(self._texts.get(job, ""), None)
