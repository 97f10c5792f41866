"""The daemon as a state machine: :meth:`Machine.step` takes what happened and the time, and says what to do.

::

    running -> draining -> drained -> running      (drain, resume)
       `---------`-----------`----> stopping       (stop, SIGTERM, SIGINT; a second one: at once)
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire
from glmtts.protocol.errors import ErrorCode

from .alerts import Alerts
from .api.client_requests import ClientRequests
from .api.health import Health
from .api.inspection import Inspection
from .api.operator_requests import OperatorRequests
from .context import INTERNAL_ERROR, JUDGE, Context, request_of
from .effects import Effect, Exit, JournalAdd, JournalEnd, Sample, Send, Signal, Spawn, Tell
from .inputs import (
    Client,
    ConnectionClosed,
    ConnectionOverrun,
    Controlled,
    EffectFailed,
    Input,
    JournalAdded,
    JournalChanged,
    JournalEnded,
    JournalFound,
    MetricsServed,
    ProcessEnded,
    ReplyTo,
    Requested,
    Sampled,
    SettingsRead,
    Spawned,
    SpawnFailed,
    StopAsked,
    StoredLost,
    StoredVoice,
    TimePassed,
    VoiceStored,
    WorkerGarbled,
    WorkerSaid,
)
from .jobs.estimates import Estimator
from .jobs.job import Job
from .jobs.job_table import JobTable
from .jobs.queue import WaitingQueue
from .metric_types import Family
from .monitoring.alert_evaluator import AlertEvaluator
from .monitoring.metrics import CoreMetrics
from .monitoring.problems import Problems
from .scheduling.admission import Admission
from .scheduling.completion import Completion
from .scheduling.dispatcher import Dispatcher
from .scheduling.durable import DurableJobs
from .scheduling.forecast import Forecast
from .scheduling.notifications import Notifications
from .scheduling.retry import Retries
from .settings import Settings
from .summary import Summary
from .timers import TimerKey
from .workers.autoscaler import Autoscaler
from .workers.gpus import Gpus
from .workers.pool import Pool
from .workers.recycler import Recycler
from .workers.worker import WorkerState


class Phase(enum.StrEnum):
    RUNNING = "running"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPING = "stopping"


class Machine:
    """All state of the daemon and every decision on it. ``seed`` decides what little is random."""

    def __init__(
        self,
        settings: Settings,
        *,
        now: float,
        wall: float,
        seed: int,
        boot: str,
        version: str,
        config_file: str = "",
        state_folder: str = "",
        outputs_folder: str = "",
        results_folder: str = "",
        voices: dict[str, StoredVoice] | None = None,
    ) -> None:
        self._context = Context(settings, now, wall, seed)
        self._voices: dict[str, StoredVoice] = dict(voices or {})
        self._job_table = JobTable()
        self._queue = WaitingQueue(settings.queue.classes)
        self._alerts = Alerts(self._context)
        self._gpus = Gpus(self._context, self._alerts)
        self._pool = Pool(self._context, self._gpus, self._alerts)
        self._recycler = Recycler(self._context, self._pool, self._gpus)
        self._autoscaler = Autoscaler(self._context, self._pool, self._gpus, self._queue)
        shared = (self._context, self._job_table, self._queue)
        self._estimator = Estimator()
        self._forecast = Forecast(*shared, self._pool, self._estimator)
        self._notifications = Notifications(*shared, self._forecast)
        self._completion = Completion(*shared, self._pool)
        self._retries = Retries(*shared, self._completion)
        self._durable_jobs = DurableJobs(*shared, completion=self._completion, alerts=self._alerts)
        self._dispatcher = Dispatcher(
            *shared,
            self._pool,
            completion=self._completion,
            retries=self._retries,
            forecast=self._forecast,
            estimator=self._estimator,
            notifications=self._notifications,
            durable_jobs=self._durable_jobs,
            recycler=self._recycler,
            autoscaler=self._autoscaler,
            voices=self._voices,
            results_folder=results_folder,
        )
        self._admission = Admission(*shared, self._pool, self._forecast)
        self._client_requests = ClientRequests(
            *shared,
            self._pool,
            self._dispatcher,
            admission=self._admission,
            notifications=self._notifications,
            durable_jobs=self._durable_jobs,
            completion=self._completion,
            retries=self._retries,
            forecast=self._forecast,
            voices=self._voices,
            version=version,
            boot=boot,
            outputs_folder=outputs_folder,
        )
        self._durable_jobs.take_up = self._client_requests.recovered
        self._durable_jobs.go_on = self._dispatcher.take_up
        self._problems = Problems(
            self._context,
            self._queue,
            self._pool,
            autoscaler=self._autoscaler,
            gpus=self._gpus,
            durable_jobs=self._durable_jobs,
            retries=self._retries,
            alerts=self._alerts,
        )
        self._health = Health(self._context, self._pool, self._problems)
        self._operator_requests = OperatorRequests(
            *shared,
            self._pool,
            self._dispatcher,
            client_requests=self._client_requests,
            admission=self._admission,
            durable_jobs=self._durable_jobs,
            completion=self._completion,
            estimator=self._estimator,
            retries=self._retries,
            recycler=self._recycler,
            autoscaler=self._autoscaler,
            gpus=self._gpus,
            alerts=self._alerts,
            problems=self._problems,
            voices=self._voices,
            version=version,
            config_file=config_file,
            state_folder=state_folder,
        )
        self._alert_evaluator = AlertEvaluator(
            self._context,
            self._alerts,
            queue=self._queue,
            pool=self._pool,
            autoscaler=self._autoscaler,
            gpus=self._gpus,
            completion=self._completion,
        )
        self._core_metrics = CoreMetrics(
            *shared,
            self._pool,
            autoscaler=self._autoscaler,
            gpus=self._gpus,
            completion=self._completion,
            durable_jobs=self._durable_jobs,
            estimator=self._estimator,
            retries=self._retries,
            alerts=self._alerts,
            version=version,
        )
        self._inspection = Inspection(*shared, self._pool, forecast=self._forecast, admission=self._admission)
        self.phase = Phase.RUNNING
        #: Operators who wait for the end of a drain, by the name of the timer after which they don't any more.
        self._drains: dict[str, tuple[ReplyTo, str]] = {}
        self._drains_asked = 0
        self._exited = False
        self._inputs: dict[type, Callable[[Any], None]] = {
            Requested: self._on_requested,
            Controlled: self._on_controlled,
            ConnectionClosed: self._on_connection_closed,
            ConnectionOverrun: self._on_overrun,
            Spawned: lambda e: self._pool.on_spawned(e.incarnation, e.pid),
            SpawnFailed: self._on_spawn_failed,
            WorkerSaid: self._on_worker_said,
            WorkerGarbled: self._on_worker_garbled,
            ProcessEnded: self._on_process_ended,
            Sampled: self._on_sampled,
            MetricsServed: lambda e: self._alerts.set("metrics", e.problem),
            StopAsked: self._on_stop_asked,
            SettingsRead: self._operator_requests.on_settings,
            VoiceStored: self._operator_requests.on_voice_stored,
            JournalChanged: self._on_journal_changed,
            JournalAdded: self._client_requests.on_journal_added,
            JournalEnded: self._on_journal_ended,
            JournalFound: self._durable_jobs.on_found,
            StoredLost: self._durable_jobs.on_lost,
            EffectFailed: self._on_effect_failed,
            TimePassed: lambda _: None,
        }
        self._requests: dict[type, Callable[[Requested, Any], None]] = {
            requests.Synthesize: self._client_requests.synthesize,
            requests.Ping: self._client_requests.ping,
            requests.Info: self._client_requests.info,
            requests.Voices: self._client_requests.list_voices,
            requests.Cancel: lambda e, r: self._client_requests.cancel(e.to, r, e.client),
            requests.GetJob: lambda e, r: self._client_requests.job(e.to, r, e.client),
            requests.ListJobs: lambda e, r: self._client_requests.jobs(e.to, r, e.client),
            requests.Wait: self._client_requests.wait,
        }
        operations = self._operator_requests
        self._controls: dict[type, Callable[[Controlled, Any], None]] = {
            control.Status: lambda e, _: operations.status(e, self._state),
            control.Health: lambda e, r: self._health.check(e, r, self._state),
            control.Logs: operations.logs,
            control.Workers: lambda e, _: operations.workers(e),
            control.Gpus: lambda e, _: operations.gpus(e),
            control.Queue: self._inspection.queue,
            control.GetLimits: self._inspection.limits,
            control.Recycle: operations.recycle,
            control.Scale: self._scale,
            control.Quarantine: operations.quarantine,
            control.Pause: lambda e, _: self._pause(e),
            control.Resume: lambda e, _: self._resume(e),
            control.Drain: self._drain,
            control.Stop: lambda e, _: self._stop_by_operator(e),
            control.Reload: lambda e, _: operations.reload(e),
            control.SetLogLevel: operations.log_level,
            control.VoiceAdd: operations.store_voice,
            control.VoiceRemove: operations.store_voice,
            control.Metrics: lambda e, _: operations.metrics(e, self.measure()),
            control.GetConfig: lambda e, _: operations.config(e),
            requests.Ping: lambda e, r: self._client_requests.ping(Requested(_OPERATOR, e.to, r), r),
            control.Cancel: operations.cancel,
            requests.GetJob: lambda e, r: self._client_requests.job(e.to, r, None),
            requests.ListJobs: lambda e, r: self._client_requests.jobs(e.to, r, None),
        }
        self._timers: dict[str, Callable[[str], None]] = {
            "start": self._dispatcher.on_start_timeout,
            "hang": self._dispatcher.on_hang_check,
            "kill": self._on_kill_due,
            "backoff": self._pool.on_backoff_over,
            "wait": self._on_wait_due,
            "breaker": lambda _: self._pool.on_breaker_pause_over(),
            "steady": self._pool.on_steady,
            "age": self._recycler.on_age,
            "trim": self._recycler.on_trim_check,
            "unload": self._autoscaler.on_unload_check,
            "grow": lambda _: self._autoscaler.on_grow_due(),
            "look": lambda _: self._autoscaler.on_first_look_late(),
            "deadline": self._dispatcher.on_deadline,
            "expire": lambda _: self._completion.expire(),
            "positions": lambda _: self._notifications.tell_positions(),
            "judge": lambda _: self._alert_evaluator.judge(),
            "health": self._health.on_late,
            "drain": self._on_drain_timeout,
            "stop": lambda _: self._end_jobs("the daemon stopped before the job was done"),
            "late": lambda _: self._completion.wait_no_more(),
            "disk": lambda _: self._durable_jobs.on_try_disk(),
        }

    # --- for the shell

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._context.settings

    @property
    def next_due(self) -> float | None:
        """When a step with TimePassed is due, if nothing happens before."""
        return self._context.timers.next_due()

    @property
    def summary(self) -> Summary:
        """How the daemon is, now."""
        counts = self._pool.counts()
        waiting = len(self._queue)
        return Summary(
            state=self._state,
            ready=counts.get(WorkerState.READY, 0) + counts.get(WorkerState.BUSY, 0),
            starting=counts.get(WorkerState.STARTING, 0),
            workers=counts["total"],
            running=len(self._job_table.live) - waiting,
            waiting=waiting,
            alerts=self._alerts.messages,
        )

    @property
    def watched(self) -> bool:
        """Whether somebody listens on the events socket."""
        return self._context.watched

    @watched.setter
    def watched(self, watched: bool) -> None:
        self._context.watched = watched

    def measure(self) -> list[Family]:
        """Every metric, as of the last step."""
        return self._core_metrics.take(self._state)

    def open(self) -> list[Effect]:
        """Start the workers: at once, or when the GPUs have been looked at."""
        self._context.effects = [Sample()]
        self._context.stir()
        self._autoscaler.open()
        return self._context.effects

    def step(self, event: Input, now: float) -> list[Effect]:
        """Something happened: decide, and return what is to be done, in order."""
        context = self._context
        context.now = max(now, context.now)
        context.effects, context.failed = [], False
        if not context.guarded(self._on_input, event):
            context.guarded(self._give_up, event)
        while (timer := context.timers.pop_due(context.now)) is not None:
            self._on_timer(timer)
            self._dispatcher.schedule()
        self._reconcile()
        if context.failed:
            self._recover()
        return context.effects

    # --- internal errors

    def _on_input(self, event: Input) -> None:
        self._inputs[type(event)](event)

    def _give_up(self, event: Input) -> None:
        """The handler of an input raised an exception: answer its request, end its job, or call the handler again."""
        match event:
            case Requested(to=to, request=request) | Controlled(to=to, request=request):
                self._answer_at_last(to, request.id)
            case JournalFound(to=to, request=request):
                self._answer_at_last(to, request.id)
            case StoredLost(to=to, id=id) | VoiceStored(to=to, id=id) | SettingsRead(to=ReplyTo() as to, id=id):
                self._answer_at_last(to, id)
            case WorkerSaid(incarnation=incarnation, message=message):
                worker = self._pool.by_incarnation(incarnation)
                if worker is not None and isinstance(message, wire.Finished | wire.Failed):
                    self._dispatcher.is_through(worker, message.job)
                self._end_in_internal_error(getattr(message, "job", ""))
            case JournalAdded(job=job):
                self._end_in_internal_error(job)
            case StopAsked() if self.phase is not Phase.STOPPING:
                self._on_input(event)
            case (
                ConnectionClosed()
                | ConnectionOverrun()
                | SpawnFailed()
                | ProcessEnded()
                | JournalChanged()
                | JournalEnded()
            ):
                # This input does not come again. Its handler can be repeated: steps that are done are not done twice.
                self._on_input(event)
            case _:
                pass

    def _answer_at_last(self, to: ReplyTo, id: str) -> None:
        awaited = self._job_table.awaits(to, id) or self._health.awaits(to, id) or (to, id) in self._drains.values()
        if not awaited and not self._context.answers(to, id):
            self._context.refuse(to, id, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def _end_in_internal_error(self, id: str) -> None:
        if (job := self._job_table.live.get(id)) is not None:
            self._completion.fail(job, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)

    def _on_timer(self, timer: TimerKey) -> None:
        """Run the handler of a timer. It can be repeated: after an exception it runs again, at once and then later."""
        purpose, whose = timer
        timers, handler = self._context.timers, self._timers[purpose]
        done = self._context.guarded(handler, whose) or self._context.guarded(handler, whose)
        if not done and timer not in timers:
            timers.set(timer, self._context.now + _AGAIN_S)

    def _reconcile(self) -> None:
        if self._health.waiting:
            self._context.guarded(self._health.settle)
        if self.phase is not Phase.RUNNING:
            self._context.guarded(self._go_on_ending)

    def _recover(self) -> None:
        """Finish what an exception in this step has left half done, for jobs and for workers."""
        self._context.guarded(self._completion.end_lost)
        self._context.guarded(self._pool.recover)
        self._settle()
        self._reconcile()

    def _on_effect_failed(self, event: EffectFailed) -> None:
        """An effect was not carried out: answer the request, job or worker that waits for it."""
        effect = event.effect
        # If even this error can't be sent, there is nothing left to send.
        hopeless = isinstance(effect, Send) and getattr(effect.event, "message", "") == INTERNAL_ERROR
        if not hopeless and (request := request_of(effect)) is not None:
            self._context.refuse(*request, ErrorCode.UNAVAILABLE, INTERNAL_ERROR)
        match effect:
            case Send(to=to, event=said) if not said.final:
                if (missed := self._job_table.live.get(getattr(said, "job", ""))) is not None:
                    self._cut_off(to.connection, missed, ErrorCode.UNAVAILABLE, _EVENT_LOST)
            case Spawn(incarnation=incarnation):
                # The process may exist all the same.
                self._context.effects.append(Signal(incarnation, "kill"))
                self._pool.on_spawn_failed(incarnation, event.problem)
            case Tell(incarnation=incarnation, message=message):
                if (worker := self._pool.by_incarnation(incarnation)) is not None:
                    self._dispatcher.on_not_told(worker, message)
                if isinstance(message, wire.SuspendJob):
                    # A later step asks again. This step would repeat the same failure without end.
                    return
            case JournalAdd(row=row):
                self._client_requests.on_journal_added(JournalAdded(row.job, event.problem))
            case JournalEnd(job=id):
                self._completion.on_written(JournalEnded(id, event.problem))
            case _:
                pass  # nothing waits for it, or a timer does
        self._settle()

    # --- clients and operators

    def _on_requested(self, event: Requested) -> None:
        self._requests[type(event.request)](event, event.request)

    def _on_controlled(self, event: Controlled) -> None:
        self._controls[type(event.request)](event, event.request)

    def _on_connection_closed(self, event: ConnectionClosed) -> None:
        """Nobody hears a stream whose client is gone; any other job goes on, for a ``wait`` after a reconnect."""
        for job in self._job_table.drop_connection(event.connection):
            if job.request.stream and not job.durable and not job.subscribers:
                self._completion.guarded(job, self._completion.fail, job, ErrorCode.CANCELLED, "its client went away")
        self._dispatcher.schedule()

    def _on_overrun(self, event: ConnectionOverrun) -> None:
        if (job := self._job_table.live.get(event.job)) is not None:
            self._cut_off(event.connection, job, ErrorCode.SLOW_CONSUMER, TOO_SLOW)
            self._problems.does_not_read(job.client.key)

    def _cut_off(self, connection: int, job: Job, code: ErrorCode, message: str) -> None:
        """A connection missed some of a job's events: end its subscription with an error."""
        if job.ending is not None and isinstance(job.ending.event, events.Error):
            return
        # A durable one goes on, and is fetched when it is done.
        if job.durable or any(s.to.connection != connection for s in job.subscribers):
            # Other subscribers keep theirs.
            gone = self._job_table.unsubscribe(job, connection)
            told = [Send(s.to, events.Error.of(s.id, code, message, job=job.id)) for s in gone]
            self._context.effects.extend(told)
        else:
            self._completion.fail(job, code, message)
            # It may have been the batch job that kept others of its class waiting.
            self._dispatcher.schedule()

    # --- workers

    def _on_worker_said(self, event: WorkerSaid) -> None:
        worker = self._pool.by_incarnation(event.incarnation)
        if worker is not None:
            self._dispatcher.on_message(worker, event.message, event.body)
            self._dispatcher.schedule()
            if isinstance(event.message, wire.Checked):
                self._health.on_checked(worker, event.message)
            if isinstance(event.message, wire.Ready):
                self._give_up_waiting()

    def _on_worker_garbled(self, event: WorkerGarbled) -> None:
        worker = self._pool.by_incarnation(event.incarnation)
        if worker is not None:
            self._dispatcher.violation(worker, event.what)
            self._dispatcher.schedule()

    def _on_process_ended(self, event: ProcessEnded) -> None:
        self._dispatcher.on_ended(event)
        self._settle()

    def _on_spawn_failed(self, event: SpawnFailed) -> None:
        self._pool.on_spawn_failed(event.incarnation, event.reason)
        self._settle()

    def _on_sampled(self, event: Sampled) -> None:
        self._gpus.on_sampled(event, self._pool)
        self._recycler.on_sampled()
        self._autoscaler.on_sampled()
        self._settle()
        self._pool.tell_memory()
        self._context.stir()

    def _on_kill_due(self, name: str) -> None:
        self._pool.on_kill_due(name)
        self._autoscaler.settle()

    def _on_wait_due(self, name: str) -> None:
        self._pool.look_again(name)
        self._settle()

    def _settle(self) -> None:
        """After a process has gone, or could not come: others may take its place, and those who wait are told."""
        guarded = self._context.guarded
        guarded(self._recycler.settle)
        guarded(self._autoscaler.settle)
        # What it held may be what another one waits for.
        guarded(self._pool.look_again)
        self._dispatcher.schedule()
        guarded(self._give_up_waiting)

    def _on_journal_changed(self, event: JournalChanged) -> None:
        if self.phase is Phase.STOPPING:
            # What is only handed over now is left to the next daemon, as what waited was.
            event = JournalChanged(event.problem)
        self._durable_jobs.on_changed(event)
        self._dispatcher.schedule()

    def _on_journal_ended(self, event: JournalEnded) -> None:
        self._completion.on_written(event)
        # It may have been the batch job that kept others of its class waiting.
        self._dispatcher.schedule()

    def _scale(self, event: Controlled, request: control.Scale) -> None:
        self._operator_requests.scale(event, request)
        self._dispatcher.schedule()

    def _give_up_waiting(self) -> None:
        """Nobody is kept waiting for a worker that is not to be had."""
        unavailable = self._pool.unavailable()
        if unavailable:
            reason, retry_after_s = unavailable
            self._completion.fail_waiting(ErrorCode.UNAVAILABLE, reason, retry_after_s=retry_after_s)
        self._alerts.set("unavailable", unavailable[0] if unavailable else "")

    # --- the end

    @property
    def _state(self) -> str:
        paused = self.phase is Phase.RUNNING and self._queue.paused
        return "paused" if paused else self.phase.value

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._context.log("info", f"daemon is {phase}")
        self._context.publish(f"daemon.{phase}")

    def _drain(self, event: Controlled, request: control.Drain) -> None:
        if self.phase is Phase.RUNNING:
            self._client_requests.closed = "the daemon is draining: it finishes what it has accepted and takes no more"
            self._queue.paused = False
            self._enter(Phase.DRAINING)
            self._dispatcher.schedule()
        self._drains_asked += 1
        timer = str(self._drains_asked)
        self._drains[timer] = (event.to, request.id)
        if isinstance(request.timeout_s, float | int):
            self._context.timers.set(("drain", timer), self._context.now + request.timeout_s)

    def _pause(self, event: Controlled) -> None:
        if self.phase is Phase.RUNNING:
            self._operator_requests.pause(event)
        else:
            message = f"the daemon is {self.phase}: what it has accepted has to be started, or it would never be done"
            self._context.refuse(event.to, event.request.id, ErrorCode.SHUTTING_DOWN, message)

    def _resume(self, event: Controlled) -> None:
        if self.phase is Phase.STOPPING:
            self._context.refuse(event.to, event.request.id, ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
            return
        self._queue.paused = False
        self._client_requests.closed = ""
        self._answer_drains()
        self._enter(Phase.RUNNING)
        self._context.send(event.to, events.Result(id=event.request.id, values={"state": self._state}))
        self._dispatcher.schedule()

    def _stop_by_operator(self, event: Controlled) -> None:
        self._stop("an operator")
        left = len(self._job_table.live)
        self._context.send(event.to, events.Result(id=event.request.id, values={"state": self._state, "left": left}))

    def _on_stop_asked(self, event: StopAsked) -> None:
        self._stop(event.signal)

    def _stop(self, by: str) -> None:
        """Finish what was accepted, for so long as is allowed; asked a second time, end at once."""
        context = self._context
        if self.phase is Phase.STOPPING:
            context.log("warning", "daemon stops at once", asked_by=by)
            self._end_jobs("the daemon was stopped at once")
            self._pool.stop_all(at_once=True)
            return
        timeout_s = context.settings.daemon.drain_timeout_s
        context.log("info", "daemon stops", asked_by=by, jobs=len(self._job_table.live), drain_timeout_s=timeout_s)
        self._client_requests.closed = "the daemon is stopping; try again when it has been started again"
        self._queue.paused = False
        context.timers.set(("stop", ""), context.now + timeout_s)
        self._enter(Phase.STOPPING)
        self._leave_waiting()
        self._dispatcher.schedule()

    def _on_drain_timeout(self, timer: str) -> None:
        """The drain goes on; this operator does not wait for its end any more."""
        self._answer_drain(timer)

    def _end_jobs(self, message: str) -> None:
        """No time is left: what the journal has goes on with the next daemon, the rest has ended."""
        self._context.timers.set(("late", ""), self._context.now + _DISK_S)
        for job in list(self._job_table.live.values()):
            self._completion.guarded(job, self._leave_or_fail, job, message)

    def _leave_waiting(self) -> None:
        """Durable jobs that were not begun need not be waited for: the next daemon begins them.

        Those that are not on disk yet were not accepted, and now are not.
        """
        for job in [job for job in self._queue if job.durable]:
            self._completion.guarded(job, self._leave_or_fail, job, self._client_requests.closed)

    def _leave_or_fail(self, job: Job, message: str) -> None:
        if job.durable and job.ending is None and self._durable_jobs.is_accepted(job):
            self._completion.leave(job)
        else:
            self._completion.fail(job, ErrorCode.SHUTTING_DOWN, message)

    def _answer_drains(self) -> None:
        for timer in list(self._drains):
            self._answer_drain(timer)

    def _answer_drain(self, timer: str) -> None:
        left = len(self._job_table.live)
        if timer in self._drains:
            to, id = self._drains.pop(timer)
            self._context.timers.cancel(("drain", timer))
            self._context.send(to, events.Result(id=id, values={"drained": not left, "left": left}))

    def _go_on_ending(self) -> None:
        """The next stage of a drain or a stop, when the one before is complete."""
        if self.phase is Phase.STOPPING:
            self._durable_jobs.leave()
        if self._job_table.live:
            return
        if self.phase is Phase.DRAINING:
            self._enter(Phase.DRAINED)
        if self.phase is Phase.DRAINED:
            self._answer_drains()
        if self.phase is Phase.STOPPING:
            self._answer_drains()
            self._context.timers.cancel(("stop", ""))
            self._context.timers.cancel(("late", ""))
            self._pool.stop_all(at_once=False)
            if self._pool.empty and not self._exited:
                self._exited = True
                self._context.timers.cancel(JUDGE)
                self._context.effects.append(Exit(0))


#: Seconds until a timer is due again whose handler raised an exception.
_AGAIN_S = 1.0
#: How long a daemon that has to end waits for a disk that does not answer.
_DISK_S = 5.0
#: What a client is told whose unread events had to be thrown away.
TOO_SLOW = "the client does not read, and the buffer for what it leaves unread is full ([limits] send_buffer_mib)"
#: The message to a client that was not sent an event because of an internal error.
_EVENT_LOST = "an internal error of the daemon, which is in its log: an event was not sent; a durable job goes on"
_OPERATOR = Client(key="operator", user="operator", operator=True)
