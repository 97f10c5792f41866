"""The core's metrics as families of samples; daemon/metrics/exposition.py writes them as text.

They are read from the same state, at the same instant, as the answers to ``status``, ``workers`` and ``gpus``: the two
can't disagree. No label names a user or a job, so the number of series is bounded by workers, GPUs and classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from glmtts.protocol import VERSION
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import PRIORITIES

from ..alerts import Alerts
from ..context import Context
from ..jobs.estimates import Estimator
from ..jobs.job_table import JobTable
from ..jobs.queue import WaitingQueue
from ..metric_types import Family, Kind, Value, kept, labelled, one_of, single
from ..scheduling.completion import Completion
from ..scheduling.durable import DurableJobs
from ..scheduling.retry import Retries
from ..workers.autoscaler import Autoscaler
from ..workers.circuit_breaker import BreakerState
from ..workers.gpu_attribution import others
from ..workers.gpus import Gpus
from ..workers.pool import Pool
from ..workers.worker import Worker, WorkerState
from .alert_table import ALERTS

#: The ends of a job: ``done`` and the codes of errors.
OUTCOMES = ("done", *(code.value for code in ErrorCode))
STATES = ("running", "paused", "draining", "drained", "stopping")
_NVML_STATES = ("ok", "absent", "failing", "blocked")


class CoreMetrics:
    """Reads the core's parts and changes nothing."""

    def __init__(
        self,
        context: Context,
        job_table: JobTable,
        queue: WaitingQueue,
        pool: Pool,
        *,
        autoscaler: Autoscaler,
        gpus: Gpus,
        completion: Completion,
        durable_jobs: DurableJobs,
        estimator: Estimator,
        retries: Retries,
        alerts: Alerts,
        version: str,
    ) -> None:
        self._context = context
        self._job_table = job_table
        self._queue = queue
        self._pool = pool
        self._autoscaler = autoscaler
        self._gpus = gpus
        self._completion = completion
        self._durable_jobs = durable_jobs
        self._estimator = estimator
        self._retries = retries
        self._alerts = alerts
        self._version = version

    def take(self, state: str) -> list[Family]:
        """Every metric of the core; ``state`` is that of the daemon."""
        return [
            *self._daemon(state),
            *self._jobs(),
            *self._speech(),
            *self._workers(),
            *self._memory(),
            *self._machine(),
        ]

    def _daemon(self, state: str) -> list[Family]:
        context = self._context
        about = {
            "version": self._version,
            "protocol": str(VERSION),
            "engine": context.settings.engine.name,
            "python": ".".join(map(str, sys.version_info[:3])),
        }
        raised = dict.fromkeys(self._alerts.names(), 1.0)
        alerts = {(name, ""): 0.0 for name, alert in ALERTS.items() if not alert.of} | raised
        return [
            Family(
                "glmtts_build_info",
                "gauge",
                "Version and engine of the daemon.",
                tuple(about),
                [(tuple(about.values()), 1.0)],
            ),
            one_of("glmtts_state", "State of the daemon.", "state", STATES, state),
            Family(
                "glmtts_alert_active",
                "gauge",
                "Whether the daemon has raised this alert; of: its GPU or worker.",
                ("alert", "of"),
                list(alerts.items()),
            ),
        ]

    def _jobs(self) -> list[Family]:
        outcomes, refused = self._completion.outcomes, self._context.counters.refused
        live = self._job_table.live
        at_hand = [live[id] for worker in self._pool.workers.values() for id in worker.jobs if id in live]
        running = dict.fromkeys(PRIORITIES, 0.0)
        suspended = dict.fromkeys(PRIORITIES, 0.0)
        for job in at_hand:
            (suspended if job.suspended else running)[job.request.priority] += 1
        waiting = ((priority, float(self._queue.length(priority))) for priority in PRIORITIES)
        ended = ((outcome, float(outcomes.get(outcome, 0))) for outcome in OUTCOMES)
        turned_away = ((code.value, float(refused.get(code.value, 0))) for code in ErrorCode)
        return [
            single("glmtts_jobs_accepted_total", "counter", "Accepted jobs.", self._context.counters.accepted),
            labelled("glmtts_jobs_ended_total", "counter", "Ended jobs by outcome.", "outcome", ended),
            labelled("glmtts_jobs_refused_total", "counter", "Refused requests for speech.", "code", turned_away),
            single(
                "glmtts_job_retries_total",
                "counter",
                "Further attempts at jobs whose worker had failed.",
                self._context.counters.retries,
            ),
            labelled("glmtts_jobs_waiting", "gauge", "Jobs waiting for a worker.", "class", waiting),
            labelled(
                "glmtts_jobs_running",
                "gauge",
                "Jobs held by workers, suspended ones excluded.",
                "class",
                running.items(),
            ),
            labelled(
                "glmtts_jobs_suspended",
                "gauge",
                "Jobs suspended in their worker for more urgent ones.",
                "class",
                suspended.items(),
            ),
            single("glmtts_queue_paused", "gauge", "Whether an operator has paused the queue.", self._queue.paused),
            single("glmtts_kept_results_bytes", "gauge", "Memory of kept results.", self._job_table.result_bytes),
            single(
                "glmtts_kept_recordings_bytes",
                "gauge",
                "Memory of recordings of live jobs.",
                self._job_table.recording_bytes,
            ),
            single(
                "glmtts_quarantined_contents",
                "gauge",
                "Texts that are refused because workers died of them.",
                self._retries.quarantined_count(),
            ),
            *self._journal(),
        ]

    def _journal(self) -> list[Family]:
        durable_jobs = self._durable_jobs
        return [
            single("glmtts_journal_up", "gauge", "Whether durable jobs are accepted.", not durable_jobs.problem),
            single(
                "glmtts_journal_unfinished_jobs", "gauge", "Durable jobs that have not ended.", self._job_table.durable
            ),
            single(
                "glmtts_journal_recovered_total",
                "counter",
                "Durable jobs recovered from an earlier daemon.",
                durable_jobs.recovered,
            ),
        ]

    def _speech(self) -> list[Family]:
        counters = self._context.counters
        by_class = (
            ("glmtts_job_wait_seconds", "From a job's acceptance until a worker begins it.", counters.wait),
            ("glmtts_job_first_audio_seconds", "From a job's acceptance until its first audio.", counters.first_audio),
            (
                "glmtts_job_duration_seconds",
                "From a job's acceptance until its end is sent.",
                counters.duration,
            ),
        )
        return [
            *(
                labelled(name, "histogram", help, "class", ((of, kept(values)) for of, values in each.items()))
                for name, help, each in by_class
            ),
            single(
                "glmtts_job_real_time_factor",
                "histogram",
                "Seconds of synthesis per second of speech, by job.",
                kept(counters.real_time_factor),
            ),
            single("glmtts_job_audio_seconds", "histogram", "Seconds of speech of each job.", kept(counters.audio)),
            single(
                "glmtts_synthesis_seconds_total", "counter", "Seconds of synthesis by workers.", counters.synthesis_s
            ),
            single("glmtts_speech_seconds_total", "counter", "Seconds of speech made.", counters.spoken_s),
            single(
                "glmtts_wait_estimate_error_seconds",
                "histogram",
                "Difference between the estimated wait of a job and the real one.",
                kept(counters.estimate_error),
            ),
            single(
                "glmtts_wait_estimates_good_ratio",
                "gauge",
                "Share of the last 1,000 estimates within 30 % of the real wait.",
                self._estimator.within,
            ),
        ]

    def _workers(self) -> list[Family]:
        counters, bounds = self._context.counters, self._autoscaler.bounds()
        counts = self._pool.counts()
        states = ((state.value, float(counts.get(state.value, 0))) for state in WorkerState)
        circuit_breaker = self._pool.circuit_breaker.state.value
        return [
            labelled("glmtts_workers", "gauge", "Workers by state.", "state", states),
            labelled(
                "glmtts_workers_bound",
                "gauge",
                "Least, most and wanted number of workers.",
                "bound",
                _floats(bounds.items()),
            ),
            single("glmtts_worker_starts_total", "counter", "Worker processes started.", self._pool.starts),
            single(
                "glmtts_worker_restarts_total",
                "counter",
                "Worker processes started in place of another.",
                counters.restarts,
            ),
            labelled(
                "glmtts_worker_deaths_total",
                "counter",
                "Worker processes that ended, by cause.",
                "cause",
                _floats(counters.deaths.items()),
            ),
            labelled(
                "glmtts_worker_recycles_total",
                "counter",
                "Worker processes replaced, by reason.",
                "reason",
                _floats(counters.recycles.items()),
            ),
            one_of(
                "glmtts_breaker_state",
                "State of the circuit breaker on worker starts.",
                "state",
                (state.value for state in BreakerState),
                circuit_breaker,
            ),
        ]

    def _memory(self) -> list[Family]:
        workers = [worker for worker in self._pool.workers.values() if worker.pid is not None]
        host: list[tuple[tuple[str, ...], Value]] = []
        torch: list[tuple[tuple[str, ...], Value]] = []
        trends: list[tuple[tuple[str, ...], Value]] = []
        for worker in workers:
            memory, trend = worker.memory, worker.watch.trend
            trends.append(((worker.name,), trend.per_job if trend else 0.0))
            if memory is not None:
                host.append(((worker.name,), memory.rss))
                for kind, held in (("allocated", memory.torch_allocated), ("reserved", memory.torch_reserved)):
                    if held is not None:
                        torch.append(((worker.name, kind), held))
        on_gpu = [
            ((w.name, str(w.gpu), w.share.trust), float(w.share.vram)) for w in workers if w.share.vram is not None
        ]
        return [
            Family("glmtts_worker_memory_bytes", "gauge", "Host memory of a worker process.", ("worker",), host),
            Family(
                "glmtts_worker_gpu_memory_bytes",
                "gauge",
                "GPU memory of a worker; trust: its source (process: NVML, device: derived, torch: a lower bound).",
                ("worker", "gpu", "trust"),
                on_gpu,
            ),
            Family(
                "glmtts_worker_torch_bytes",
                "gauge",
                "GPU memory of a worker by torch's own count.",
                ("worker", "kind"),
                torch,
            ),
            Family(
                "glmtts_worker_memory_trend_bytes",
                "gauge",
                "Growth of a worker's memory per job; 0: none.",
                ("worker",),
                trends,
            ),
        ]

    def _machine(self) -> list[Family]:
        gpus = self._gpus
        readings = [(str(index), gpu.reading) for index in gpus.indices if (gpu := gpus.find(index)) is not None]
        ours: dict[str, list[Worker]] = {}
        for worker in self._pool.workers.values():
            if worker.pid is not None:
                ours.setdefault(str(worker.gpu), []).append(worker)

        def of(name: str, help: str, value: Any, kind: Kind = "gauge") -> Family:
            values = ((gpu, value(gpu, reading)) for gpu, reading in readings)
            return labelled(name, kind, help, "gpu", ((gpu, float(v)) for gpu, v in values if v is not None))

        def percent(value: int | None) -> float | None:
            return None if value is None else value / 100

        xids = [
            ((gpu, kind), float(count))
            for gpu, r in readings
            for kind, count in (("program", r.xids.of_programs), ("gpu", r.xids.of_gpu))
        ]
        return [
            one_of("glmtts_nvml_state", "State of NVML.", "state", _NVML_STATES, gpus.nvml.state),
            Family(
                "glmtts_gpu_info",
                "gauge",
                "Name and uuid of a GPU.",
                ("gpu", "name", "uuid"),
                [((gpu, r.name, r.uuid), 1.0) for gpu, r in readings],
            ),
            of("glmtts_gpu_up", "Whether the GPU answers NVML.", lambda _, r: r.state == "ok"),
            of("glmtts_gpu_memory_total_bytes", "Memory of the GPU.", lambda _, r: r.total),
            of("glmtts_gpu_memory_used_bytes", "Memory of the GPU in use.", lambda _, r: r.used),
            of(
                "glmtts_gpu_memory_others_bytes",
                "Memory of the GPU in use by other programs.",
                lambda gpu, r: others(r, [worker.share for worker in ours.get(gpu, [])]),
            ),
            of("glmtts_gpu_utilization_ratio", "Utilization of the GPU, 0 to 1.", lambda _, r: percent(r.utilization)),
            of("glmtts_gpu_temperature_celsius", "Temperature of the GPU.", lambda _, r: r.temperature),
            of("glmtts_gpu_last_xid", "The newest Xid of the GPU; 0: none.", lambda _, r: r.xids.last),
            Family(
                "glmtts_gpu_xid_errors_total",
                "counter",
                "Xids of the GPU: caused by programs, and faults of its own.",
                ("gpu", "kind"),
                xids,
            ),
            single("glmtts_host_memory_total_bytes", "gauge", "Memory of the host or control group.", gpus.host_total),
            single(
                "glmtts_host_memory_available_bytes",
                "gauge",
                "Available memory of the host or control group.",
                gpus.host_available,
            ),
        ]


def _floats(items: Iterable[tuple[str, int]]) -> Iterable[tuple[str, Value]]:
    return ((name, float(value)) for name, value in items)
