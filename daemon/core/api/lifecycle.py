"""Drain, stop, pause and resume: what the daemon still takes, and when it ends.

::

    running -> draining -> drained -> running      (drain, resume)
       `---------`-----------`----> stopping       (stop, SIGTERM, SIGINT; a second one: at once)
"""

from __future__ import annotations

import enum

from msgspec import Struct

from glmtts.protocol import control, events
from glmtts.protocol.errors import ErrorCode

from ..context import JUDGE
from ..effects import Exit, KeepPause
from ..inputs import Controlled, JournalChanged, ReplyTo, StopAsked
from ..jobs.job import Job
from ..scheduling.scheduler import Scheduler
from ..state import State
from ..workers.worker import WorkerState
from .client_requests import ClientRequests

#: How long a daemon that has to end waits for a disk that does not answer.
_DISK_S = 5.0

#: Characters of an alert's message that one line has room for.
_MAX_ALERT = 160


class Phase(enum.StrEnum):
    RUNNING = "running"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPING = "stopping"


class Summary(Struct, frozen=True):
    """``state`` as ``status`` says it; ``ready`` and ``starting`` of ``workers``; what raised alerts say."""

    state: str
    ready: int
    starting: int
    workers: int
    running: int
    waiting: int
    alerts: tuple[str, ...] = ()

    def in_words(self) -> str:
        """One line, such as ``1 of 2 workers ready; 1 job running, 3 waiting``."""
        state = [] if self.state == "running" else [self.state]
        jobs = f"{self.running} job{'' if self.running == 1 else 's'} running, {self.waiting} waiting"
        return "; ".join([*state, self._workers(), jobs, *self._alerts()])

    def _workers(self) -> str:
        if not self.workers:
            return "no worker, as none is needed now"
        words = f"{self.ready} of {self.workers} worker{'s' if self.workers > 1 else ''} ready"
        return f"{words}, {self.starting} loading" if self.starting else words

    def _alerts(self) -> list[str]:
        if not self.alerts:
            return []
        first = self.alerts[0] if len(self.alerts[0]) <= _MAX_ALERT else f"{self.alerts[0][:_MAX_ALERT]}..."
        return [f"alert: {first}" if len(self.alerts) == 1 else f"{len(self.alerts)} alerts: {first}"]


class Lifecycle:
    """Owns the phase of the daemon, and the operators who wait for the end of a drain. It exits once."""

    def __init__(
        self,
        state: State,
        scheduler: Scheduler,
        client_requests: ClientRequests,
        *,
        paused_since: float | None = None,
    ) -> None:
        """``paused_since``: when an operator paused the queue of an earlier daemon, in seconds since 1970."""
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool, self._alerts = state.queue, state.pool, state.alerts
        self._completion, self._durable_jobs = scheduler.completion, scheduler.durable_jobs
        self._client_requests = client_requests
        self.phase = Phase.RUNNING
        #: When an operator paused the queue, in seconds since 1970; None while it is not paused.
        self.paused_since = paused_since
        self._queue.paused = paused_since is not None
        #: Operators who wait for the end of a drain, by the name of the timer after which they get an answer anyway.
        self._drains: dict[str, tuple[ReplyTo, str]] = {}
        self._drains_asked = 0
        self._exited = False
        self._status = 0

    @property
    def name(self) -> str:
        """The state of the daemon as operators see it."""
        paused = self.phase is Phase.RUNNING and self._queue.paused
        return "paused" if paused else self.phase.value

    @property
    def stopping(self) -> bool:
        """Whether the daemon is about to end."""
        return self.phase is Phase.STOPPING

    @property
    def summary(self) -> Summary:
        """How the daemon is, now."""
        counts, waiting = self._pool.counts(), len(self._queue) + self._queue.without_text
        return Summary(
            state=self.name,
            ready=counts.get(WorkerState.READY, 0) + counts.get(WorkerState.BUSY, 0),
            starting=counts.get(WorkerState.STARTING, 0),
            workers=counts["total"],
            running=len(self._job_table.live) - waiting,
            waiting=waiting,
            alerts=self._alerts.messages,
        )

    def awaits(self, to: ReplyTo, id: str) -> bool:
        """Whether the end of a drain is going to answer this request."""
        return (to, id) in self._drains.values()

    @property
    def drains(self) -> int:
        """Operators who wait for the end of a drain."""
        return len(self._drains)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._context.log("info", f"daemon is {phase}")
        self._context.publish(f"daemon.{phase}")

    # --- pause, drain, resume

    def pause(self, event: Controlled) -> None:
        """Start no job until resumed."""
        if self.phase is not Phase.RUNNING:
            message = f"the daemon is {self.phase}: the queue can't be paused, or its jobs would never be done"
            self._context.refuse(event.to, event.request.id, ErrorCode.SHUTTING_DOWN, message)
            return
        if self.paused_since is None:
            self._keep_pause(round(self._context.wall, 3))
        self._queue.paused = True
        self._context.log("info", "queue paused by an operator")
        values = {"paused": True, "waiting": len(self._queue)}
        self._context.send(event.to, events.Result(id=event.request.id, values=values))

    def _keep_pause(self, since: float | None) -> None:
        """Note since when the queue is paused, for this daemon and the next one."""
        if since != self.paused_since:
            self.paused_since = since
            self._context.effects.append(KeepPause(since))

    def drain(self, event: Controlled, request: control.Drain) -> None:
        """Take no more jobs, and answer when the accepted ones are done."""
        if self.phase is Phase.RUNNING:
            self._client_requests.closed = "the daemon is draining: it finishes what it has accepted and takes no more"
            self._queue.paused = False
            self._keep_pause(None)
            self._enter(Phase.DRAINING)
        self._drains_asked += 1
        timer = str(self._drains_asked)
        self._drains[timer] = (event.to, request.id)
        if isinstance(request.timeout_s, float | int):
            self._context.timers.set(("drain", timer), self._context.now + request.timeout_s)

    def resume(self, event: Controlled) -> None:
        """Take and start jobs again."""
        if self.phase is Phase.STOPPING:
            self._context.refuse(event.to, event.request.id, ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
            return
        self._queue.paused = False
        self._keep_pause(None)
        self._client_requests.closed = ""
        for timer in list(self._drains):
            self.answer_drain(timer, resumed=True)
        self._enter(Phase.RUNNING)
        self._context.send(event.to, events.Result(id=event.request.id, values={"state": self.name}))

    def answer_drain(self, timer: str, *, resumed: bool = False) -> None:
        """Answer an operator now; a drain that is not over goes on, unless another operator has ``resumed``."""
        left = len(self._job_table.live)
        if timer in self._drains:
            to, id = self._drains.pop(timer)
            self._context.timers.cancel(("drain", timer))
            values = {"drained": not left, "left": left} | ({"resumed": True} if resumed else {})
            self._context.send(to, events.Result(id=id, values=values))

    def _answer_drains(self) -> None:
        for timer in list(self._drains):
            self.answer_drain(timer)

    # --- stop

    def on_stop(self, event: Controlled) -> None:
        """An operator stops the daemon."""
        self.stop("an operator")
        values = {"state": self.name, "left": len(self._job_table.live)}
        self._context.send(event.to, events.Result(id=event.request.id, values=values))

    def on_stop_asked(self, event: StopAsked) -> None:
        """A signal stops the daemon."""
        self.stop(event.signal)

    def stop(self, by: str, status: int = 0) -> None:
        """Finish the accepted jobs within drain_timeout_s; asked a second time, end at once."""
        context = self._context
        if self.phase is Phase.STOPPING:
            context.log("warning", "daemon stops at once", asked_by=by)
            self._end_jobs("the daemon was stopped at once")
            self._pool.stop_all(at_once=True)
            return
        self._status = status
        timeout_s = context.settings.daemon.drain_timeout_s
        context.log("info", "daemon stops", asked_by=by, jobs=len(self._job_table.live), drain_timeout_s=timeout_s)
        self._client_requests.closed = "the daemon is stopping; try again when it has been started again"
        # The accepted jobs are finished; the next daemon is paused as this one was.
        self._queue.paused = False
        context.timers.set(("stop", ""), context.now + timeout_s)
        self._enter(Phase.STOPPING)
        # Durable jobs that were not begun need not be waited for: the next daemon begins them. Those that are not on
        # disk yet were not accepted, and now are not.
        for job in [job for job in self._queue if job.durable]:
            self._completion.guarded(job, self._leave_or_fail, job, self._client_requests.closed)

    def _leave_or_fail(self, job: Job, message: str) -> None:
        if job.durable and job.ending is None and self._durable_jobs.is_accepted(job):
            self._completion.leave(job)
        else:
            self._completion.fail(job, ErrorCode.SHUTTING_DOWN, message)

    def on_stop_timeout(self) -> None:
        """drain_timeout_s is over."""
        self._end_jobs("the daemon stopped before the job was done")

    def _end_jobs(self, message: str) -> None:
        """No time is left: the next daemon takes up the accepted durable jobs, the others end here."""
        self._context.timers.set(("late", ""), self._context.now + _DISK_S)
        for job in list(self._job_table.live.values()):
            self._completion.guarded(job, self._leave_or_fail, job, message)

    def on_journal_changed(self, event: JournalChanged) -> None:
        """The journal can be used now, or can't any more. A daemon that stops leaves its jobs to the next one."""
        self._client_requests.on_journal_changed(
            JournalChanged(event.problem) if self.phase is Phase.STOPPING else event
        )

    def reconcile(self) -> None:
        """Enter the next stage of a drain or a stop when the one before is complete."""
        if self.phase is Phase.STOPPING:
            self._durable_jobs.leave()
        if self._job_table.live:
            return
        if self.phase is Phase.DRAINING:
            self._enter(Phase.DRAINED)
        self._answer_drains()
        if self.phase is Phase.STOPPING:
            self._context.timers.cancel(("stop", ""))
            self._context.timers.cancel(("late", ""))
            self._context.timers.cancel(("reach", ""))
            self._pool.stop_all(at_once=False)
            if self._pool.empty and not self._exited:
                self._exited = True
                self._context.timers.cancel(JUDGE)
                self._durable_jobs.refuse_lookups()
                self._context.effects.append(Exit(self._status))
