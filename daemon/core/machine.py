"""The daemon as a state machine: :meth:`Machine.step` takes what happened and the time, and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from glmtts.protocol import control, requests
from glmtts.protocol.worker import AudioChunk, Beat, Checked, Failed, Finished, SegmentDone, Suspended

from .api.client_requests import ClientRequests
from .api.health import Health
from .api.lifecycle import Lifecycle, Phase
from .api.operator_requests import OperatorRequests
from .api.queue_report import QueueReport
from .effects import Effect, Sample
from .inputs import (
    Client,
    ConnectionClosed,
    ConnectionOverrun,
    Controlled,
    Input,
    JournalAdded,
    JournalChanged,
    JournalEnded,
    JournalFound,
    MetricsServed,
    ProcessEnded,
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
from .metric_types import Family
from .monitoring.alert_evaluator import AlertEvaluator
from .monitoring.metrics import CoreMetrics
from .monitoring.problems import Problems
from .scheduling.deadlines import on_deadline
from .scheduling.scheduler import Scheduler
from .settings import Settings
from .state import Installation, State
from .workers.worker import WorkerState

#: Inputs and messages of workers that change nothing of what jobs and workers may do, and those that concern jobs
#: alone; whatever a handler changes beyond that, it marks.
_QUIET = frozenset({AudioChunk, Beat, TimePassed})
_OF_JOBS = frozenset(
    {Requested, SegmentDone, Finished, Failed, Suspended, JournalChanged, JournalAdded, JournalEnded}
    | {JournalFound, StoredLost, ConnectionClosed, ConnectionOverrun}
)
_OPERATOR = Client("operator", "operator", operator=True)
#: Characters of an alert's message that one line has room for.
_MAX_ALERT = 160


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


class Machine:
    """All state of the daemon and every decision on it. ``seed`` decides what little is random."""

    def __init__(
        self,
        settings: Settings,
        installation: Installation,
        *,
        now: float,
        wall: float,
        seed: int,
        voices: dict[str, StoredVoice] | None = None,
    ) -> None:
        self.state = state = State(settings, installation, dict(voices or {}), now=now, wall=wall, seed=seed)
        self.scheduler = scheduler = Scheduler(state)
        self._context = state.context
        self._problems = Problems(state, scheduler)
        self._alert_evaluator = AlertEvaluator(state, scheduler.completion)
        self._core_metrics = CoreMetrics(state, scheduler)
        self._health = Health(state.context, state.pool, self._problems)
        self._client_requests = ClientRequests(state, scheduler, self._problems)
        self._operator_requests = OperatorRequests(state, scheduler, self._client_requests, self._problems)
        self.lifecycle = Lifecycle(state, scheduler, self._client_requests)
        self._inputs = self._input_handlers()
        self._requests = self._request_handlers()
        self._controls = self._control_handlers()
        self._timers = self._timer_handlers()

    # --- what handles what

    def _input_handlers(self) -> dict[type, Callable[[Any], object]]:
        pool, durable_jobs, messages = self.state.pool, self.scheduler.durable_jobs, self.scheduler.worker_messages
        return {
            Requested: lambda e: self._requests[type(e.request)](e, e.request),
            Controlled: lambda e: self._controls[type(e.request)](e, e.request),
            ConnectionClosed: self._client_requests.on_connection_closed,
            ConnectionOverrun: self._client_requests.on_overrun,
            Spawned: lambda e: pool.on_spawned(e.incarnation, e.pid),
            SpawnFailed: lambda e: pool.on_spawn_failed(e.incarnation, e.reason),
            WorkerSaid: self._on_worker_said,
            WorkerGarbled: self._on_worker_garbled,
            ProcessEnded: messages.on_ended,
            Sampled: self._on_sampled,
            MetricsServed: lambda e: self.state.alerts.set("metrics", e.problem),
            StopAsked: self.lifecycle.on_stop_asked,
            SettingsRead: self._operator_requests.on_settings,
            VoiceStored: self._operator_requests.on_voice_stored,
            JournalChanged: self.lifecycle.on_journal_changed,
            JournalAdded: self._client_requests.on_journal_added,
            JournalEnded: self.scheduler.completion.on_written,
            JournalFound: durable_jobs.on_found,
            StoredLost: durable_jobs.on_lost,
            TimePassed: lambda _: None,
        }

    def _request_handlers(self) -> dict[type, Callable[[Requested, Any], None]]:
        client = self._client_requests
        return {
            requests.Synthesize: client.synthesize,
            requests.Ping: client.ping,
            requests.Info: client.info,
            requests.Voices: client.list_voices,
            requests.Cancel: lambda e, r: client.cancel(e.to, r, e.client),
            requests.GetJob: lambda e, r: client.job(e.to, r, e.client),
            requests.ListJobs: lambda e, r: client.jobs(e.to, r, e.client),
            requests.Wait: client.wait,
        }

    def _control_handlers(self) -> dict[type, Callable[[Controlled, Any], None]]:
        client, operator, lifecycle = self._client_requests, self._operator_requests, self.lifecycle
        report = QueueReport(self.state, self.scheduler)
        return {
            control.Status: lambda e, _: operator.status(e, lifecycle.name),
            control.Health: lambda e, r: self._health.check(e, r, lifecycle.name),
            control.Logs: operator.logs,
            control.Workers: lambda e, _: operator.workers(e),
            control.Gpus: lambda e, _: operator.gpus(e),
            control.Queue: report.queue,
            control.Limits: report.limits,
            control.Recycle: operator.recycle,
            control.Scale: operator.scale,
            control.Quarantine: operator.quarantine,
            control.Pause: lambda e, _: lifecycle.pause(e),
            control.Resume: lambda e, _: lifecycle.resume(e),
            control.Drain: lifecycle.drain,
            control.Stop: lambda e, _: lifecycle.on_stop(e),
            control.Reload: lambda e, _: operator.reload(e),
            control.SetLogLevel: operator.log_level,
            control.VoiceAdd: operator.store_voice,
            control.VoiceRemove: operator.store_voice,
            control.Metrics: lambda e, _: operator.metrics(e, self.measure()),
            control.GetConfig: lambda e, _: operator.config(e),
            requests.Ping: lambda e, r: client.ping(Requested(_OPERATOR, e.to, r), r),
            control.Cancel: operator.cancel,
            requests.GetJob: lambda e, r: client.job(e.to, r, None),
            requests.ListJobs: lambda e, r: client.jobs(e.to, r, None),
        }

    def _timer_handlers(self) -> dict[str, Callable[[str], object]]:
        state, scheduler, lifecycle = self.state, self.scheduler, self.lifecycle
        completion = scheduler.completion
        return {
            "start": scheduler.worker_messages.on_start_timeout,
            "hang": scheduler.worker_messages.on_hang_check,
            "kill": state.pool.on_kill_due,
            "backoff": state.pool.on_backoff_over,
            "wait": lambda _: None,  # the reconcile after it looks at every waiting worker
            "breaker": lambda _: state.pool.circuit_breaker.pause_over(),
            "steady": state.pool.on_steady,
            "age": state.recycler.on_age,
            "trim": state.recycler.on_trim_check,
            "unload": state.autoscaler.on_unload_check,
            "grow": lambda _: state.autoscaler.on_grow_due(),
            "look": lambda _: state.autoscaler.on_first_look_late(),
            "deadline": lambda id: on_deadline(state, completion, id),
            "expire": lambda _: completion.expire(),
            "positions": lambda _: scheduler.notifications.tell_positions(),
            "judge": lambda _: self._alert_evaluator.judge(),
            "health": self._health.on_late,
            "drain": lifecycle.answer_drain,
            "stop": lambda _: lifecycle.on_stop_timeout(),
            "late": lambda _: completion.wait_no_more(),
            "disk": lambda _: scheduler.durable_jobs.on_try_disk(),
        }

    # --- for the shell

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._context.settings

    @property
    def stopping(self) -> bool:
        """Whether the daemon is about to end."""
        return self.lifecycle.phase is Phase.STOPPING

    @property
    def next_due(self) -> float | None:
        """When a step with TimePassed is due, if nothing happens before."""
        return self._context.timers.next_due()

    @property
    def summary(self) -> Summary:
        """How the daemon is, now."""
        counts = self.state.pool.counts()
        waiting = len(self.state.queue)
        return Summary(
            state=self.lifecycle.name,
            ready=counts.get(WorkerState.READY, 0) + counts.get(WorkerState.BUSY, 0),
            starting=counts.get(WorkerState.STARTING, 0),
            workers=counts["total"],
            running=len(self.state.job_table.live) - waiting,
            waiting=waiting,
            alerts=self.state.alerts.messages,
        )

    @property
    def watched(self) -> bool:
        """Whether the events socket has a subscriber."""
        return self._context.watched

    @watched.setter
    def watched(self, watched: bool) -> None:
        self._context.watched = watched

    def measure(self) -> list[Family]:
        """Every metric, as of the last step."""
        return self._core_metrics.take(self.lifecycle.name)

    def open(self) -> list[Effect]:
        """Start the workers: at once, or when the GPUs have been sampled."""
        self._context.effects = [Sample()]
        self._context.stir()
        self.state.autoscaler.open()
        self._context.workers_dirty = True
        self._reconcile()
        return self._context.effects

    def step(self, event: Input, now: float) -> list[Effect]:
        """Something happened: decide, and return what is to be done, in order."""
        context = self._context
        context.now = max(now, context.now)
        effects: list[Effect] = []
        context.effects = effects
        kind = type(event.message) if isinstance(event, WorkerSaid) else type(event)
        context.jobs_dirty = kind not in _QUIET
        context.workers_dirty = context.jobs_dirty and kind not in _OF_JOBS
        self._inputs[type(event)](event)
        while (timer := context.timers.pop_due(context.now)) is not None:
            purpose, whose = timer
            self._timers[purpose](whose)
            context.jobs_dirty = context.workers_dirty = True
        self._reconcile()
        return effects

    def _reconcile(self) -> None:
        """Bring workers and waiting jobs in line with what the step has changed; every step ends with it, once."""
        context, state = self._context, self.state
        while context.jobs_dirty or context.workers_dirty:
            context.jobs_dirty = False
            if context.workers_dirty:
                context.workers_dirty = False
                state.recycler.reconcile()
                state.autoscaler.reconcile()
                state.pool.reconcile()
                self.scheduler.completion.refuse_if_unavailable()
            self.scheduler.dispatcher.reconcile()
            if state.queue and not state.queue.paused:
                if state.queue.wants_fresh:
                    state.recycler.freshen()
                state.autoscaler.on_waiting()
            self.lifecycle.reconcile()
        if self._health.waiting:
            self._health.reconcile()

    # --- workers

    def _on_worker_said(self, event: WorkerSaid) -> None:
        worker = self.state.pool.by_incarnation(event.incarnation)
        if worker is not None:
            self.scheduler.worker_messages.on_message(worker, event.message, event.body)
            if isinstance(event.message, Checked):
                self._health.on_checked(worker, event.message)

    def _on_worker_garbled(self, event: WorkerGarbled) -> None:
        worker = self.state.pool.by_incarnation(event.incarnation)
        if worker is not None:
            self.scheduler.worker_messages.violation(worker, event.what)

    def _on_sampled(self, event: Sampled) -> None:
        self.state.gpus.on_sampled(event, self.state.pool)
        self.state.recycler.on_sampled()
        self.state.autoscaler.on_sampled()
        self.state.pool.tell_memory()
        self._context.stir()
