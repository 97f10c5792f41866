"""Which contents killed workers, counted beside the core: what has killed enough of them is not run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from glmtts.daemon.core import inputs
from glmtts.daemon.core.workers.worker import WorkerState
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
        #: By text: how many workers died of it, and until when that is held against it.
        self._deaths: dict[str, tuple[int, float]] = {}
        self._texts: dict[str, str] = {}
        self._before = self._deaths

    def before(self, event: inputs.Input) -> None:
        """Somebody may be about to die, or to show that he did not."""
        self._before = self._deaths.copy()
        if isinstance(event, inputs.WorkerSaid):
            message = event.message
            if isinstance(message, wire.Finished):
                if message.job in self._live:
                    self._deaths.pop(name_of(self._live[message.job].request.text), None)
            elif isinstance(message, wire.Failed) and message.fatal and message.code == "cuda_context":
                self._died(event.incarnation, message.job)
        elif isinstance(event, inputs.WorkerGarbled) or _by_itself(event):
            self._died(event.incarnation)

    def unsure(self) -> None:
        """The step has met a bug: the core may not have counted a death."""
        self._deaths = self._before

    def _died(self, incarnation: int, culprit: str = "") -> None:
        worker = self._pool._by_incarnation.get(incarnation)
        if worker is None or worker.state not in (WorkerState.BUSY, WorkerState.DRAINING):
            return
        now = self._world.clocks.core_now
        had = [self._live[id] for id in worker.jobs if id in self._live]
        # What had only lain ready in it is not to blame.
        for text in dict.fromkeys(
            name_of(job.request.text)
            for job in had
            if job.attempt.begun and not job.attempt.suspended and job.ending is None and culprit in ("", job.id)
        ):
            count, until = self._deaths.get(text, (0, 0.0))
            holds_s = self._context.settings.workers.restart.quarantine_s
            self._deaths[text] = (count + 1 if until > now else 1, now + holds_s)

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


def _by_itself(event: inputs.Input) -> TypeGuard[inputs.ProcessEnded]:
    """Whether a process has ended for a reason that its job may have given it."""
    return isinstance(event, inputs.ProcessEnded) and not event.oom_killed and event.returncode != 71
