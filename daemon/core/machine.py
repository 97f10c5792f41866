"""The daemon as a state machine: :meth:`Machine.step` takes what happened and the time, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from . import inputs
from .api.client_requests import ClientRequests
from .api.health import Health
from .api.lifecycle import Lifecycle, Phase, Summary
from .api.operator_requests import OperatorRequests
from .api.queue_report import QueueReport
from .api.recovery import Recovery
from .api.surroundings import Surroundings
from .api.usage_report import UsageReport
from .api.voice_requests import VoiceRequests
from .effects import Effect, Sample
from .metric_types import Family
from .monitoring.alert_evaluator import AlertEvaluator
from .monitoring.metrics import CoreMetrics
from .monitoring.problems import Problems
from .scheduling.deadlines import age, on_deadline
from .scheduling.scheduler import Scheduler
from .settings import Settings
from .state import Installation, State
from .timers import TimerKey
from .workers.report import publish_memory

#: Inputs and messages of workers that change nothing of what jobs and workers may do, and those that concern jobs
#: alone; whatever a handler changes beyond that, it marks.
_QUIET = frozenset({wire.AudioChunk, wire.Beats, wire.SegmentDone})
_QUIET |= {inputs.SurroundingsSeen, inputs.TimePassed}
_QUIET |= {inputs.JournalRemoved, inputs.OutputsMeasured, inputs.ConnectionsCrowded}
_OF_JOBS = frozenset({inputs.Requested, inputs.ConnectionClosed, inputs.ConnectionOverrun, inputs.StoredLost})
_OF_JOBS |= {inputs.JournalChanged, inputs.JournalAdded, inputs.JournalEnded, inputs.JournalFound}
_OF_JOBS |= {wire.Finished, wire.Failed, wire.Suspended}
_OPERATOR = inputs.Client("operator", "operator", operator=True)
#: Passes of one reconcile; two are common, and a bug must not make it endless.
_MOST_PASSES = 10
#: A wall clock that moves this far between two steps, in seconds, was set; less is the ordinary work of a time service.
SET_S = 60.0
#: After a standstill these come before StoodStill, which tells it from a clock that was set.
_BEFORE_A_STANDSTILL = (inputs.WorkerSaid, inputs.WorkerGarbled, inputs.EffectFailed, inputs.ConnectionOverrun)
#: For how long an alert says that the wall clock was set.
_CLOCK_ALERT_S = 3_600.0
#: A standstill from this length on has a line in the log.
_WORTH_A_LINE_S = 5.0
_STOOD_STILL = (
    "the machine was suspended, or the daemon was stopped or frozen or got no processor; workers get the time back, "
    "deadlines of jobs went on"
)
#: Seconds until a timer is due again whose handler raised an exception.
_AGAIN_S = 1.0


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
        voices: Sequence[inputs.StoredVoice] = (),
        paused_since: float | None = None,
    ) -> None:
        self.state = state = State(settings, installation, voices, now=now, wall=wall, seed=seed)
        self.scheduler = scheduler = Scheduler(state)
        self._context = state.context
        self._problems = Problems(state, scheduler)
        self._alert_evaluator = AlertEvaluator(state, scheduler.completion)
        self._core_metrics = CoreMetrics(state, scheduler)
        self._health = Health(state.context, state.pool, self._problems)
        self._client_requests = ClientRequests(state, scheduler, self._problems)
        self._voice_requests = VoiceRequests(state, scheduler.admission, self._client_requests)
        self._operator_requests = OperatorRequests(state, scheduler, self._client_requests, self._problems)
        self._usage_report = UsageReport(state)
        self.lifecycle = Lifecycle(
            state, scheduler, self._client_requests, self._voice_requests, paused_since=paused_since
        )
        self._surroundings = Surroundings(state, self.lifecycle)
        self._recovery = Recovery(
            state,
            scheduler,
            client_requests=self._client_requests,
            voice_requests=self._voice_requests,
            health=self._health,
            lifecycle=self.lifecycle,
            handle=self._on_input,
        )
        #: The date less the core's clock, as of the last step.
        self._ahead_s = wall - now
        self._inputs = self._input_handlers()
        self._requests = self._request_handlers()
        self._controls = self._control_handlers()
        self._timers = self._timer_handlers()

    # --- what handles what

    def _input_handlers(self) -> dict[type, Callable[[Any], object]]:
        pool, durable_jobs, messages = self.state.pool, self.scheduler.durable_jobs, self.scheduler.worker_messages
        return {
            inputs.Requested: lambda e: self._requests[type(e.request)](e, e.request),
            inputs.Controlled: lambda e: self._controls[type(e.request)](e, e.request),
            inputs.ConnectionClosed: self._client_requests.on_connection_closed,
            inputs.ConnectionOverrun: self._client_requests.on_overrun,
            inputs.Spawned: lambda e: pool.on_spawned(e.incarnation, e.pid),
            inputs.SpawnFailed: lambda e: pool.on_spawn_failed(e.incarnation, e.reason),
            inputs.WorkerSaid: self._on_worker_said,
            inputs.WorkerGarbled: self._on_worker_garbled,
            inputs.ProcessEnded: messages.on_ended,
            inputs.RecorderRead: messages.on_recorder_read,
            inputs.Sampled: self._on_sampled,
            inputs.MetricsServed: lambda e: self.state.alerts.set("metrics", e.problem),
            inputs.StopAsked: self.lifecycle.on_stop_asked,
            inputs.SettingsRead: self._operator_requests.on_settings,
            inputs.VoiceStored: self._voice_requests.on_stored,
            inputs.JournalChanged: self.lifecycle.on_journal_changed,
            inputs.JournalAdded: self._client_requests.on_journal_added,
            inputs.JournalEnded: self.scheduler.completion.on_written,
            inputs.JournalFound: durable_jobs.on_found,
            inputs.JournalRemoved: durable_jobs.on_removed,
            inputs.StoredLost: durable_jobs.on_lost,
            inputs.SurroundingsSeen: self._surroundings.on_seen,
            inputs.OutputsMeasured: self.scheduler.output_shares.on_measured,
            inputs.ConnectionsCrowded: lambda e: self.state.alerts.set("connections", e.problem),
            inputs.EffectFailed: self._recovery.on_effect_failed,
            inputs.StoodStill: self._on_stood_still,
            inputs.TimePassed: lambda _: None,
        }

    def _request_handlers(self) -> dict[type, Callable[[inputs.Requested, Any], None]]:
        client, voice = self._client_requests, self._voice_requests
        return {
            requests.Synthesize: client.synthesize,
            requests.Text: client.text,
            requests.Ping: client.ping,
            requests.Info: client.info,
            requests.Voices: voice.list,
            requests.VoiceAdd: voice.add,
            requests.VoiceRemove: voice.remove,
            requests.VoiceSample: voice.sample,
            requests.Cancel: lambda e, r: client.cancel(e.to, r, e.client),
            requests.GetJob: lambda e, r: client.job(e.to, r, e.client),
            requests.ListJobs: lambda e, r: client.jobs(e.to, r, e.client),
            requests.Wait: client.wait,
            requests.Leave: client.leave,
            requests.Usage: lambda e, r: self._usage_report.usage(e.to, r, e.client),
        }

    def _control_handlers(self) -> dict[type, Callable[[inputs.Controlled, Any], None]]:
        client, operator, lifecycle = self._client_requests, self._operator_requests, self.lifecycle
        report = QueueReport(self.state, self.scheduler)
        return {
            control.Status: lambda e, _: operator.status(e, lifecycle.name, lifecycle.paused_since),
            control.Health: lambda e, r: self._health.check(e, r, lifecycle.name),
            control.Logs: operator.logs,
            control.Workers: lambda e, _: operator.workers(e),
            control.Gpus: lambda e, _: operator.gpus(e),
            control.Queue: report.queue,
            control.GetLimits: report.limits,
            control.Usage: lambda e, r: self._usage_report.usage(e.to, r, None),
            control.Recycle: operator.recycle,
            control.Scale: operator.scale,
            control.Quarantine: operator.quarantine,
            control.Pause: lambda e, _: lifecycle.pause(e),
            control.Resume: lambda e, _: lifecycle.resume(e),
            control.Drain: lifecycle.drain,
            control.Stop: lambda e, _: lifecycle.on_stop(e),
            control.Reload: lambda e, _: operator.reload(e),
            control.SetLogLevel: operator.log_level,
            control.VoiceAdd: self._voice_requests.store,
            control.VoiceRemove: self._voice_requests.store,
            control.Metrics: lambda e, _: operator.metrics(e, self.measure()),
            control.GetConfig: lambda e, _: operator.config(e),
            requests.Ping: lambda e, r: client.ping(inputs.Requested(_OPERATOR, e.to, r), r),
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
            "steady": lambda name: state.pool.restarts.on_steady(state.pool.workers[name]),
            "age": state.recycler.on_age,
            "trim": state.recycler.on_trim_check,
            "unload": state.autoscaler.on_unload_check,
            "grow": lambda _: state.autoscaler.on_grow_due(),
            "look": lambda _: state.autoscaler.on_first_look_late(),
            "deadline": lambda id: on_deadline(state, completion, id),
            "expire": lambda _: completion.expire(),
            "usage": lambda _: completion.keep_usage(),
            "text": scheduler.text_pieces.on_timeout,
            "texts": scheduler.text_pieces.on_drain_timeout,
            "positions": lambda _: scheduler.notifications.tell_positions(),
            "judge": lambda _: self._alert_evaluator.judge(),
            "health": self._health.on_late,
            "drain": lifecycle.answer_drain,
            "stop": lambda _: lifecycle.on_stop_timeout(),
            "late": lambda _: completion.wait_no_more(),
            "reach": lambda _: self._surroundings.on_late(),
            "disk": lambda _: scheduler.durable_jobs.on_try_disk(),
            "clock": lambda _: self.state.alerts.set("clock", ""),
            "recover": lambda _: None,  # the step recovers, as the recovery before has failed
        }

    # --- for the shell

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._context.settings

    @property
    def stopping(self) -> bool:
        """Whether the daemon is about to end."""
        return self.lifecycle.stopping

    @property
    def next_due(self) -> float | None:
        """When a step with inputs.TimePassed is due, if nothing happens before."""
        return self._context.timers.next_due()

    @property
    def summary(self) -> Summary:
        """How the daemon is, now."""
        return self.lifecycle.summary

    @property
    def watched(self) -> bool:
        """Whether the events socket has a subscriber."""
        return self._context.watched

    @watched.setter
    def watched(self, watched: bool) -> None:
        self._context.watched = watched

    def describe(self) -> dict[str, int]:
        """How many entries everything has that grows with use."""
        waiting = {"waiting": len(self.state.queue), "disk": self.scheduler.durable_jobs.waiting}
        waiting["usage"] = len(self.state.usage)
        waiting |= self.state.voices.own.describe()
        return self.state.job_table.describe() | waiting | {"drains": self.lifecycle.drains}

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

    def step(self, event: inputs.Input, now: float, wall: float) -> list[Effect]:
        """Handle an input.

        Args:
            event: What happened.
            now: Seconds in which the daemon was running; a smaller value than before counts as the one before.
            wall: The date, in seconds since 1970.

        Returns:
            The effects, to be carried out in their order. An exception is one of them, and loses no other.
        """
        context = self._context
        context.now = max(now, context.now)
        context.wall = wall
        context.effects = []
        kind = type(event.message) if isinstance(event, inputs.WorkerSaid) else type(event)
        context.jobs_dirty = kind not in _QUIET
        context.workers_dirty = context.jobs_dirty and kind not in _OF_JOBS
        if not context.guarded(self._on_input, event):
            context.guarded(self._recovery.on_input_failed, event)
        ahead_s = wall - context.now
        if -SET_S < ahead_s - self._ahead_s < SET_S:
            self._ahead_s = ahead_s
        elif not isinstance(event, _BEFORE_A_STANDSTILL):
            context.guarded(self._on_clock_moved, event, ahead_s - self._ahead_s)
            self._ahead_s = ahead_s
        while (timer := context.timers.pop_due(context.now)) is not None:
            self._on_timer(timer)
            context.jobs_dirty = context.workers_dirty = True
        if context.jobs_dirty or context.workers_dirty:
            self._reconcile()
        if context.failed:
            self._recover()
        return context.effects

    def _on_input(self, event: inputs.Input) -> None:
        self._inputs[type(event)](event)

    def _on_timer(self, timer: TimerKey) -> None:
        """Run the handler of a timer. It can be repeated: after an exception it runs again, at once and then later."""
        purpose, whose = timer
        timers, handler = self._context.timers, self._timers[purpose]
        done = self._context.guarded(handler, whose) or self._context.guarded(handler, whose)
        if not done and timer not in timers:
            timers.set(timer, self._context.now + _AGAIN_S)

    def _reconcile(self) -> None:
        """Bring workers and waiting jobs in line with what the step has changed; every step ends with it, once."""
        context, state, guarded = self._context, self.state, self._context.guarded
        for _ in range(_MOST_PASSES):
            if context.workers_dirty:
                context.workers_dirty = False
                # Their number first: a worker that is to go gets no spare.
                guarded(state.autoscaler.reconcile)
                guarded(state.recycler.reconcile)
                guarded(state.pool.reconcile)
                guarded(self.scheduler.completion.refuse_if_unavailable)
            context.jobs_dirty = False
            guarded(self.scheduler.dispatcher.reconcile)
            if state.queue and not state.queue.paused:
                guarded(self._bring_workers)
            if self.lifecycle.phase is not Phase.RUNNING:
                guarded(self.lifecycle.reconcile)
            if not (context.jobs_dirty or context.workers_dirty):
                break
        if self._health.waiting:
            guarded(self._health.reconcile)

    def _bring_workers(self) -> None:
        """Jobs are left waiting: make a fresh process for one that needs it, or start one more worker."""
        if self.state.queue.wants_fresh:
            self.state.recycler.freshen()
        self.state.autoscaler.on_waiting()

    def _recover(self) -> None:
        """Finish what an exception has left half done; if this raises one too, a later step tries again."""
        context = self._context
        context.failed = False
        context.guarded(self.scheduler.completion.end_lost)
        context.guarded(self.state.pool.recover)
        context.jobs_dirty = context.workers_dirty = True
        self._reconcile()
        if context.failed:
            context.timers.set(("recover", ""), context.now + _AGAIN_S)

    # --- workers

    def _on_worker_said(self, event: inputs.WorkerSaid) -> None:
        worker = self.state.pool.by_incarnation(event.incarnation)
        if worker is not None:
            self.scheduler.worker_messages.on_message(worker, event.message, event.body)
            if isinstance(event.message, wire.Checked):
                self._health.on_checked(worker, event.message)

    def _on_worker_garbled(self, event: inputs.WorkerGarbled) -> None:
        worker = self.state.pool.by_incarnation(event.incarnation)
        if worker is not None:
            self.scheduler.worker_messages.violation(worker, event.what)

    # --- time

    def _on_stood_still(self, event: inputs.StoodStill) -> None:
        """Workers get the time back by a clock that did not count it; for jobs and clients it has passed."""
        age(self.state, event.seconds)
        self.scheduler.admission.age(event.seconds)
        if event.seconds >= _WORTH_A_LINE_S:
            self._context.log("warning", "daemon stood still", for_s=round(event.seconds, 3), means=_STOOD_STILL)

    def _on_clock_moved(self, event: inputs.Input, by_s: float) -> None:
        """The wall clock and the core's own went apart: it was set, or the daemon stood still meanwhile."""
        if isinstance(event, inputs.StoodStill):
            by_s -= event.seconds
        if abs(by_s) >= SET_S:
            self._context.log("warning", "the machine's clock was set", by_s=round(by_s, 3))
            self.state.alerts.set("clock", clock_was_set(by_s))
            self._context.timers.set(("clock", ""), self._context.now + _CLOCK_ALERT_S)

    def _on_sampled(self, event: inputs.Sampled) -> None:
        self.state.gpus.on_sampled(event, self.state.pool)
        self.state.recycler.on_sampled()
        self.state.autoscaler.on_sampled()
        publish_memory(self.state.pool, self._context)
        self._context.stir()


def clock_was_set(by_s: float) -> str:
    """The alert for a wall clock that was set."""
    days, seconds = divmod(round(abs(by_s)), 86_400)
    hours, seconds = divmod(seconds, 3_600)
    span = f"{days} d {hours} h" if days else f"{hours} h {seconds // 60} min" if hours else f"{seconds} s"
    return (
        f"the machine's clock was set {'forward' if by_s > 0 else 'back'} by {span} while the daemon ran: deadlines "
        "and the age of results and keys do not follow it, and nothing is removed because of it"
    )
