"""The core's metrics as families of samples; daemon/metrics/exposition.py writes them as text.

They are read from the same state, at the same instant, as the answers to ``status``, ``workers`` and ``gpus``: the two
can't disagree. No label names a user or a job, so the number of series is bounded by workers, GPUs and classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from glmtts.protocol import VERSION
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import PRIORITIES

from ..metric_types import Family, Histogram, Kind, Value, kept
from ..scheduling.scheduler import Scheduler
from ..state import State
from ..workers.circuit_breaker import BreakerState
from ..workers.gpu_attribution import others
from ..workers.worker import WorkerState
from .alert_table import ALERTS

#: The ends of a job: ``done`` and the codes of errors.
OUTCOMES = ("done", *(code.value for code in ErrorCode))
STATES = ("running", "paused", "draining", "drained", "stopping")
_NVML_STATES = ("ok", "absent", "failing", "blocked")

#: Help and labels of each metric. One that ends in ``_total`` is a counter.
_METRICS: dict[str, tuple[str, ...]] = {
    "glmtts_build_info": ("Version and engine of the daemon.", "version", "protocol", "engine", "python"),
    "glmtts_state": ("State of the daemon.", "state"),
    "glmtts_alert_active": (
        "Whether the daemon has raised this alert; of: its GPU, its worker, or the thing that is gone.",
        "alert",
        "of",
    ),
    "glmtts_jobs_accepted_total": ("Accepted jobs.",),
    "glmtts_jobs_ended_total": ("Ended jobs by outcome.", "outcome"),
    "glmtts_jobs_refused_total": ("Refused requests for speech.", "code"),
    "glmtts_job_retries_total": ("Further attempts at jobs whose worker had failed.",),
    "glmtts_jobs_waiting": ("Jobs waiting for a worker.", "class"),
    "glmtts_jobs_running": ("Jobs held by workers, suspended ones excluded.", "class"),
    "glmtts_jobs_suspended": ("Jobs suspended in their worker for more urgent ones.", "class"),
    "glmtts_queue_paused": ("Whether an operator has paused the queue.",),
    "glmtts_kept_results_bytes": ("Memory of kept results.",),
    "glmtts_kept_recordings_bytes": ("Memory of recordings of live jobs.",),
    "glmtts_quarantined_contents": ("Texts that are refused because workers died of them.",),
    "glmtts_journal_up": ("Whether durable jobs are accepted.",),
    "glmtts_journal_unfinished_jobs": ("Durable jobs that have not ended.",),
    "glmtts_journal_recovered_total": ("Durable jobs recovered from an earlier daemon.",),
    "glmtts_job_wait_seconds": ("From a job's acceptance until a worker begins it.", "class"),
    "glmtts_job_first_audio_seconds": ("From a job's acceptance until its first audio.", "class"),
    "glmtts_job_duration_seconds": ("From a job's acceptance until its end is sent.", "class"),
    "glmtts_job_real_time_factor": ("Seconds of synthesis per second of speech, by job.",),
    "glmtts_job_audio_seconds": ("Seconds of speech of each job.",),
    "glmtts_synthesis_seconds_total": ("Seconds of synthesis by workers.",),
    "glmtts_speech_seconds_total": ("Seconds of speech made.",),
    "glmtts_wait_estimate_error_seconds": ("Difference between the estimated wait of a job and the real one.",),
    "glmtts_wait_estimates_good_ratio": ("Share of the last 1,000 estimates within 30 % of the real wait.",),
    "glmtts_workers": ("Workers by state.", "state"),
    "glmtts_workers_bound": ("Least, most and wanted number of workers.", "bound"),
    "glmtts_worker_starts_total": ("Worker processes started.",),
    "glmtts_worker_restarts_total": ("Worker processes started in place of another.",),
    "glmtts_worker_deaths_total": ("Worker processes that ended, by cause.", "cause"),
    "glmtts_worker_recycles_total": ("Worker processes replaced, by reason.", "reason"),
    "glmtts_breaker_state": ("State of the circuit breaker on worker starts.", "state"),
    "glmtts_worker_memory_bytes": ("Host memory of a worker process.", "worker"),
    "glmtts_worker_gpu_memory_bytes": (
        "GPU memory of a worker; trust: its source (process: NVML, device: derived, torch: a lower bound).",
        *("worker", "gpu", "trust"),
    ),
    "glmtts_worker_torch_bytes": ("GPU memory of a worker by torch's own count.", "worker", "kind"),
    "glmtts_worker_memory_trend_bytes": ("Growth of a worker's memory per job; 0: none.", "worker"),
    "glmtts_nvml_state": ("State of NVML.", "state"),
    "glmtts_gpu_info": ("Name and uuid of a GPU.", "gpu", "name", "uuid"),
    "glmtts_gpu_up": ("Whether the GPU answers NVML.", "gpu"),
    "glmtts_gpu_memory_total_bytes": ("Memory of the GPU.", "gpu"),
    "glmtts_gpu_memory_used_bytes": ("Memory of the GPU in use.", "gpu"),
    "glmtts_gpu_memory_others_bytes": ("Memory of the GPU in use by other programs.", "gpu"),
    "glmtts_gpu_utilization_ratio": ("Utilization of the GPU, 0 to 1.", "gpu"),
    "glmtts_gpu_temperature_celsius": ("Temperature of the GPU.", "gpu"),
    "glmtts_gpu_last_xid": ("The newest Xid of the GPU; 0: none.", "gpu"),
    "glmtts_gpu_xid_errors_total": ("Xids of the GPU: caused by programs, and faults of its own.", "gpu", "kind"),
    "glmtts_host_memory_total_bytes": ("Memory of the host or control group.",),
    "glmtts_host_memory_available_bytes": ("Available memory of the host or control group.",),
}

#: A value, or one for each label or tuple of labels; None where it is unknown.
Measured: TypeAlias = Value | Mapping[Any, Value | None] | None


class CoreMetrics:
    """Reads the core's parts and changes nothing."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def take(self, state: str) -> list[Family]:
        """Every metric of the core; ``state`` is that of the daemon."""
        parts = (self._daemon(state), self._jobs(), self._speech(), self._workers(), self._memory(), self._machine())
        return [_family(name, measured) for part in parts for name, measured in part.items()]

    def _daemon(self, state: str) -> dict[str, Measured]:
        python = ".".join(map(str, sys.version_info[:3]))
        about = (self._state.installation.version, str(VERSION), self._state.context.settings.engine.name, python)
        raised = dict.fromkeys(self._state.alerts.names(), 1.0)
        return {
            "glmtts_build_info": {about: 1.0},
            "glmtts_state": _one_of(STATES, state),
            "glmtts_alert_active": {(name, ""): 0.0 for name, alert in ALERTS.items() if not alert.of} | raised,
        }

    def _jobs(self) -> dict[str, Measured]:
        counters, job_table, queue = self._state.context.counters, self._state.job_table, self._state.queue
        durable_jobs, outcomes = self._scheduler.durable_jobs, self._scheduler.completion.outcomes
        running, suspended = dict.fromkeys(PRIORITIES, 0.0), dict.fromkeys(PRIORITIES, 0.0)
        for worker in self._state.pool.workers.values():
            for id in worker.jobs:
                if job := job_table.live.get(id):
                    (suspended if job.attempt.suspended else running)[job.request.priority] += 1
        return {
            "glmtts_jobs_accepted_total": counters.accepted,
            "glmtts_jobs_ended_total": {of: outcomes.get(of, 0) for of in OUTCOMES},
            "glmtts_jobs_refused_total": {code.value: counters.refused.get(code.value, 0) for code in ErrorCode},
            "glmtts_job_retries_total": counters.retries,
            "glmtts_jobs_waiting": {priority: queue.length(priority) for priority in PRIORITIES},
            "glmtts_jobs_running": running,
            "glmtts_jobs_suspended": suspended,
            "glmtts_queue_paused": queue.paused,
            "glmtts_kept_results_bytes": job_table.result_bytes,
            "glmtts_kept_recordings_bytes": job_table.recording_bytes,
            "glmtts_quarantined_contents": self._scheduler.retries.quarantined_count(),
            "glmtts_journal_up": not durable_jobs.problem,
            "glmtts_journal_unfinished_jobs": job_table.durable,
            "glmtts_journal_recovered_total": durable_jobs.recovered,
        }

    def _speech(self) -> dict[str, Measured]:
        counters = self._state.context.counters
        return {
            "glmtts_job_wait_seconds": counters.wait,
            "glmtts_job_first_audio_seconds": counters.first_audio,
            "glmtts_job_duration_seconds": counters.duration,
            "glmtts_job_real_time_factor": counters.real_time_factor,
            "glmtts_job_audio_seconds": counters.audio,
            "glmtts_synthesis_seconds_total": counters.synthesis_s,
            "glmtts_speech_seconds_total": counters.spoken_s,
            "glmtts_wait_estimate_error_seconds": counters.estimate_error,
            "glmtts_wait_estimates_good_ratio": self._state.estimator.within,
        }

    def _workers(self) -> dict[str, Measured]:
        counters, counts = self._state.context.counters, self._state.pool.counts()
        return {
            "glmtts_workers": {state.value: counts.get(state.value, 0) for state in WorkerState},
            "glmtts_workers_bound": self._state.autoscaler.bounds(),
            "glmtts_worker_starts_total": self._state.pool.starts,
            "glmtts_worker_restarts_total": counters.restarts,
            "glmtts_worker_deaths_total": counters.deaths,
            "glmtts_worker_recycles_total": counters.recycles,
            "glmtts_breaker_state": _one_of(
                (s.value for s in BreakerState), self._state.pool.circuit_breaker.state.value
            ),
        }

    def _memory(self) -> dict[str, Measured]:
        workers = [(w.name, w.gpu, w.process) for w in self._state.pool.workers.values() if w.process.pid is not None]
        torch: dict[tuple[str, str], Value | None] = {}
        for name, _, process in workers:
            if memory := process.memory:
                torch[name, "allocated"], torch[name, "reserved"] = memory.torch_allocated, memory.torch_reserved
        return {
            "glmtts_worker_memory_bytes": {
                name: process.memory.rss if process.memory else None for name, _, process in workers
            },
            "glmtts_worker_gpu_memory_bytes": {
                (name, str(gpu), process.share.trust): process.share.vram for name, gpu, process in workers
            },
            "glmtts_worker_torch_bytes": torch,
            "glmtts_worker_memory_trend_bytes": {
                name: trend.per_job if (trend := process.watch.trend) else 0.0 for name, _, process in workers
            },
        }

    def _machine(self) -> dict[str, Measured]:
        gpus = self._state.gpus
        readings = {str(index): gpu.reading for index in gpus.indices if (gpu := gpus.find(index)) is not None}
        held = [(str(w.gpu), w.process.share) for w in self._state.pool if w.process.pid is not None]
        xids: dict[tuple[str, str], Value | None] = {}
        for of, reading in readings.items():
            xids[of, "program"], xids[of, "gpu"] = reading.xids.of_programs, reading.xids.of_gpu
        return {
            "glmtts_nvml_state": _one_of(_NVML_STATES, gpus.nvml.state),
            "glmtts_gpu_info": {(gpu, r.name, r.uuid): 1.0 for gpu, r in readings.items()},
            "glmtts_gpu_up": {gpu: r.state == "ok" for gpu, r in readings.items()},
            "glmtts_gpu_memory_total_bytes": {gpu: r.total for gpu, r in readings.items()},
            "glmtts_gpu_memory_used_bytes": {gpu: r.used for gpu, r in readings.items()},
            "glmtts_gpu_memory_others_bytes": {
                gpu: others(r, [share for of, share in held if of == gpu]) for gpu, r in readings.items()
            },
            "glmtts_gpu_utilization_ratio": {
                gpu: None if r.utilization is None else r.utilization / 100 for gpu, r in readings.items()
            },
            "glmtts_gpu_temperature_celsius": {gpu: r.temperature for gpu, r in readings.items()},
            "glmtts_gpu_last_xid": {gpu: r.xids.last for gpu, r in readings.items()},
            "glmtts_gpu_xid_errors_total": xids,
            "glmtts_host_memory_total_bytes": gpus.host_total,
            "glmtts_host_memory_available_bytes": gpus.host_available,
        }


def _one_of(states: Iterable[str], now: str) -> dict[str, Value | None]:
    """A state as Prometheus has states: a series for each, of which one is 1."""
    return {state: float(state == now) for state in states}


def _family(name: str, measured: Measured) -> Family:
    help, *labels = _METRICS[name]
    samples: list[tuple[tuple[str, ...], Value]] = []
    kind: Kind = "counter" if name.endswith("_total") else "gauge"
    for of, value in (measured if isinstance(measured, Mapping) else {(): measured}).items():
        if value is not None:
            samples.append(((of,) if isinstance(of, str) else of, kept(value)))
            kind = "histogram" if isinstance(value, Histogram) else kind
    return Family(name, kind, help, tuple(labels), samples)
