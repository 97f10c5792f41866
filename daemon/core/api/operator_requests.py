"""Requests of operators on the control socket; lifecycle.py has pause, drain and stop, queue_report.py the queue."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from glmtts.protocol import control, events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel

from ..effects import ChangeLogLevel, ReadLog, ReadSettings, UseSettings, WriteMetrics
from ..exit_causes import Cause
from ..inputs import Controlled, ReplyTo, SettingsRead
from ..metric_types import Family
from ..monitoring.problems import Problems
from ..reload import plan
from ..scheduling.admission import is_named
from ..scheduling.scheduler import Scheduler
from ..settings import Settings
from ..state import State
from ..workers.report import describe
from .client_requests import ClientRequests

#: Jobs that an answer names at most.
_NAMED = 100


class OperatorRequests:
    """Answers the control socket, and applies a new configuration while the daemon runs."""

    def __init__(self, state: State, scheduler: Scheduler, client_requests: ClientRequests, problems: Problems) -> None:
        self._state = state
        self._context, self._job_table = state.context, state.job_table
        self._queue, self._pool = state.queue, state.pool
        self._recycler, self._autoscaler = state.recycler, state.autoscaler
        self._scheduler = scheduler
        self._completion, self._retries = scheduler.completion, scheduler.retries
        self._client_requests = client_requests
        self._problems = problems

    def _answer(self, to: ReplyTo, id: str, **values: Any) -> None:
        self._context.send(to, events.Result(id=id, values=values))

    def status(self, event: Controlled, state: str, paused_since: float | None) -> None:
        """Answer with the whole daemon in one map."""
        paused = {} if paused_since is None else {"paused_since": paused_since}
        by_class = {name: self._queue.length(name) for name in ("vip", "interactive", "batch")}
        waiting = len(self._queue)
        workers: dict[str, int] = {"ready": 0, "busy": 0, "starting": 0, "failed": 0} | self._pool.counts()
        self._answer(
            event.to,
            event.request.id,
            state=state,
            ready=not self._problems.unready(state),
            **paused,
            version=self._state.installation.version,
            uptime_s=round(self._context.now - self._context.started_at, 3),
            engine=self._context.settings.engine.name,
            experimental=self._pool.engine.experimental if self._pool.engine else "",
            workers=workers,
            queue={
                "waiting": waiting,
                "running": len(self._job_table.live) - waiting,
                "suspended": sum(len(worker.process.suspended) for worker in self._pool),
                "by_class": by_class,
                "paused": self._queue.paused,
            },
            counts={
                "accepted": self._context.counters.accepted,
                "done": self._completion.outcomes.get("done", 0),
                "ended": dict(sorted(self._completion.outcomes.items())),
                "refused": dict(sorted(self._context.counters.refused.items())),
            },
            kept={
                "recordings_bytes": self._job_table.recording_bytes,
                "results_bytes": self._job_table.result_bytes,
            },
            journal=self._scheduler.durable_jobs.describe(),
            estimates={"jobs": self._state.estimator.compared, "within_30_percent": self._state.estimator.within},
            breaker=self._pool.circuit_breaker.state.value,
            quarantined=self._retries.quarantined_count(),
            alerts=self._state.alerts.describe(),
            attention=self._problems.describe(state, event.facts),
            **event.facts,
        )

    def workers(self, event: Controlled) -> None:
        """Every worker, and how many there are to be."""
        live = self._state.job_table.live
        workers = [
            describe(worker, self._context)
            | {"labels": {id: live[id].label for id in worker.jobs if id in live and live[id].label}}
            for worker in self._pool
        ]
        self._answer(event.to, event.request.id, workers=workers, bounds=self._autoscaler.bounds())

    def gpus(self, event: Controlled) -> None:
        """Every GPU and who uses its memory."""
        self._answer(event.to, event.request.id, **self._state.gpus.describe(list(self._pool)))

    def scale(self, event: Controlled, request: control.Scale) -> None:
        """Change how many workers there are."""
        lowest = None if request.min is msgspec.UNSET else request.min
        highest = None if request.max is msgspec.UNSET else request.max
        if problem := self._autoscaler.scale(lowest, highest):
            self._context.refuse(event.to, request.id, ErrorCode.BAD_REQUEST, problem)
        else:
            self._answer(event.to, request.id, **self._autoscaler.describe())

    def quarantine(self, event: Controlled, request: control.Quarantine) -> None:
        """List the quarantined contents, and clear one or all."""
        quarantine = self._retries.quarantine
        cleared = 0
        if request.clear == "all":
            cleared = quarantine.clear_all()
        elif request.clear is not msgspec.UNSET:
            cleared = int(quarantine.clear(request.clear))
            if not cleared:
                self._context.refuse(
                    event.to, request.id, ErrorCode.BAD_REQUEST, f"clear: {request.clear!r} is not quarantined"
                )
                return
        if cleared:
            self._context.log("info", "quarantine cleared by an operator", contents=cleared)
        limit = self._context.settings.workers.restart.quarantine_after
        found = quarantine.describe(self._context.now, limit) if limit else []
        self._answer(event.to, request.id, quarantined=found, cleared=cleared)

    def cancel(self, event: Controlled, request: control.Cancel) -> None:
        """End one job, or all jobs of a client."""
        if request.client is not msgspec.UNSET and request.job is msgspec.UNSET:
            self._cancel_client(event.to, request.id, request.client)
        elif request.job is not msgspec.UNSET and request.client is msgspec.UNSET:
            self._client_requests.cancel(event.to, Cancel(id=request.id, v=request.v, job=request.job), None)
        else:
            message = "job: name either a job or a client"
            self._context.refuse(event.to, request.id, ErrorCode.BAD_REQUEST, message)

    def _cancel_client(self, to: ReplyTo, id: str, client: str) -> None:
        """End the jobs of a client by any of its names; a gateway's user stands for all of its customers too."""
        found = [
            job for job in self._job_table.live.values() if client == job.client.user or is_named(job.client, [client])
        ]
        for job in found:
            message = "cancelled by an operator, with all jobs of its client"
            self._completion.guarded(job, self._completion.fail, job, ErrorCode.CANCELLED, message)
        self._answer(to, id, cancelled=len(found), jobs=[job.id for job in found[:_NAMED]])

    def recycle(self, event: Controlled, request: control.Recycle) -> None:
        """Replace the process of one worker, or of all."""
        if request.worker != "all" and request.worker not in self._pool.workers:
            names = ", ".join(self._pool.workers)
            self._context.refuse(
                event.to, request.id, ErrorCode.BAD_REQUEST, f"worker: {request.worker!r} is not one of {names}, all"
            )
            return
        chosen = [w for w in self._pool if request.worker in ("all", w.name)]
        asked = "asked for by an operator"
        recycled = [w.name for w in chosen if self._recycler.recycle(w, Cause.OPERATOR, asked, kind="operator")]
        self._answer(
            event.to, request.id, recycled=recycled, skipped=[w.name for w in chosen if w.name not in recycled]
        )

    def log_level(self, event: Controlled, request: control.SetLogLevel) -> None:
        """Log from this level on."""
        self._set_log_level(request.level)
        self._answer(event.to, request.id, level=request.level)

    def _set_log_level(self, level: control.LogLevel) -> None:
        self._context.set_log_level(level)
        self._context.effects.append(ChangeLogLevel(level))

    def config(self, event: Controlled) -> None:
        """Answer with the live configuration and its file: a tool's own environment may name others."""
        values = msgspec.to_builtins(self._context.settings)
        self._answer(
            event.to,
            event.request.id,
            config=values,
            file=self._state.installation.config_file,
            state_dir=self._state.installation.state_folder,
            restart_needed=self._problems.restart_needed,
        )

    def metrics(self, event: Controlled, families: list[Family]) -> None:
        """The metrics as Prometheus reads them; answered when they are written down."""
        self._context.effects.append(WriteMetrics(event.to, event.request.id, families))

    def logs(self, event: Controlled, request: control.Logs) -> None:
        """Lines of the log; the shell has them."""
        self._context.effects.append(ReadLog(event.to, request))

    def reload(self, event: Controlled) -> None:
        """Read the configuration again; answered when that is done."""
        self._context.effects.append(ReadSettings(event.to, event.request.id))

    def on_settings(self, read: SettingsRead) -> None:
        """Apply what can be applied; a wrong configuration changes nothing."""
        context = self._context
        if read.settings is None:
            words = "; ".join(read.problems)
            context.log("error", "configuration is wrong, the old one stays in force", problems=words)
            self._state.alerts.set(
                "configuration", f"the new configuration is wrong, so the old one stays in force: {words}"
            )
            if read.to is not None:
                context.refuse(read.to, read.id, ErrorCode.BAD_REQUEST, "\n".join(read.problems))
            return
        self._state.alerts.set("configuration", "")
        found = plan(context.settings, read.settings)
        self._apply(found.settings)
        renewed = (
            self._recycler.renew(f"the configuration has changed: {', '.join(found.workers)}") if found.workers else []
        )
        self._problems.restart_needed = found.restart
        answer = {
            "applied": found.live,
            "rolling": found.workers,
            "workers": renewed,
            "restart_needed": found.restart,
        }
        context.log("info", "configuration read again", **answer)
        if read.to is not None:
            self._answer(read.to, read.id, **answer, authorised_keys=read.authorised_keys or None)

    def _apply(self, settings: Settings) -> None:
        old = self._context.settings.workers
        new = settings.workers
        bounds_changed = (old.min, old.max, old.per_gpu) != (new.min, new.max, new.per_gpu)
        self._context.settings = settings
        # An exception in one of these must not leave the others with the old settings.
        guarded = self._context.guarded
        guarded(self._context.effects.append, UseSettings(settings))
        guarded(self._set_log_level, settings.daemon.log_level)
        guarded(self._queue.set_weights, settings.queue.classes)
        guarded(self._scheduler.admission.apply)
        guarded(self._pool.timers.apply, self._pool)
        guarded(partial(self._autoscaler.apply, bounds_changed=bounds_changed))
        guarded(self._completion.expire)
