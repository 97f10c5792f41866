"""What to do about an alert, in a line or two: the short form of docs/alerts.md, by the alert's name."""

from __future__ import annotations

#: Where a worker's death is the matter.
LOOK_AT_WORKER = (
    "glmttsctl logs shows what it said, glmttsctl workers what each died of, glmttsctl quarantine list which jobs they "
    "died of; glmttsctl doctor looks at the machine and the engine."
)

AFTER_ALERT: dict[str, str] = {
    "queue_long": "glmttsctl queue shows for whom. More workers where a GPU has room (glmttsctl gpus), or a GPU more.",
    "responses_slow": "See whether jobs wait (glmttsctl queue) or speaking is slow (glmttsctl workers, gpus); have "
    "long texts sent as batch jobs, or streamed.",
    "slower_than_real_time": "glmttsctl gpus: does another program use the GPU, is it hot, do two workers share it?",
    "errors_many": "glmttsctl status has their codes under 'ended', glmttsctl logs --level warning the jobs.",
    "crash_loop": LOOK_AT_WORKER,
    "breaker_open": LOOK_AT_WORKER,
    "no_worker_ready": "glmttsctl workers says what each waits for; glmttsctl doctor looks at the machine.",
    "unavailable": "glmttsctl workers says what each waits for; glmttsctl doctor looks at the machine.",
    "worker_stuck": "See dmesg: the kernel, mostly the GPU's driver, holds it. Often only a reboot helps.",
    "gpu_memory_high": "glmttsctl gpus shows who has it: let others go elsewhere, or glmttsctl recycle all.",
    "memory_trend": "Nothing at once: it is replaced before its memory ends. glmttsctl workers -v says what grows.",
    "gpu_xid": "See dmesg for the number, and NVIDIA's list of Xid errors: power, seat, memory or driver.",
    "gpu_lost": "See dmesg and nvidia-smi: power, seat, or a reboot. The daemon takes it back when the driver sees it.",
    "nvml": "See nvidia-smi: if it hangs or complains as well, the driver does; after an update of it, reboot.",
    "journal": "Mend what is named. Everything else is spoken meanwhile, and it is tried again every few seconds.",
    "results": "Make room in [daemon] state_dir, or lower [queue] keep_durable_mib.",
    "metrics": "Another port in [metrics] listen. Speech is not concerned.",
    "configuration": "Mend the file (glmttsctl config check FILE), then glmttsctl reload; the old one holds till then.",
}

#: What need not be said as well, by what says it better.
_NOBODY = (
    "unavailable",
    "no_worker_ready",
    "breaker_open",
    "crash_loop",
    "worker_died",
    "too_few_workers",
    "queue_long",
)
SAID_WITH: dict[str, tuple[str, ...]] = {
    "workers_crash": _NOBODY,
    "loading": _NOBODY[:2],
    "gpu_full": ("unavailable", "no_worker_ready", "gpu_memory_high", "queue_long"),
    "gpu_lost": _NOBODY[:2],
    "worker_waits": _NOBODY[:2],
    "cpu": ("slower_than_real_time",),
    "no_progress": ("too_few_workers", "queue_long"),
    "one_client": ("queue_long",),
    "too_few_workers": ("queue_long",),
}
#: Alerts of what makes people wait, and breaks nothing.
SLOW_ALERTS = frozenset({"queue_long", "responses_slow", "slower_than_real_time", "gpu_memory_high", "memory_trend"})
