"""Every alert: its rule, how long a condition must last, what to do, and its form for Prometheus.

``make rules`` writes deploy/prometheus/glmtts.rules.yml from this table, with the defaults of ``[alerts]``. The alerts
have the same names there. docs/alerts.md has the long form of what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from string import Template
from typing import Literal

from msgspec import Struct

from ..settings import AlertSettings, QueueSettings
from . import alert_rules as rules

Span = Callable[[AlertSettings], float]
#: Spans of time that the settings give, in seconds.
_FOR: Span = attrgetter("for_s")
_WINDOW: Span = attrgetter("window_s")


def _at_once(_: AlertSettings) -> float:
    return 0.0


def _twice_for(settings: AlertSettings) -> float:
    return 2 * settings.for_s


class Alert(Struct, frozen=True, kw_only=True):
    """One alert.

    ``do``: the advice of ``attention``. ``slow``: jobs take longer, and nothing is broken. ``rule``: None for an alert
    that the core raises where the trouble arises. ``raise_after``, ``clear_after``: seconds for which the rule must say
    the same. ``of``: the alert is about one GPU, worker or thing, and has its number or name (``gpu_lost.0``).

    ``severity``, ``summary``, ``expr``: Prometheus's rule, without a summary there is none. ``expr`` may name figures
    (``$response_s``); by default it reads the alert that the daemon itself has raised.
    """

    do: str
    slow: bool = False
    rule: rules.Rule | None = None
    raise_after: Span = _at_once
    clear_after: Span = _at_once
    of: Literal["", "gpu", "worker", "thing"] = ""
    severity: Literal["warning", "critical"] = "critical"
    summary: str = ""
    expr: str = ""


#: Advice about a worker that failed.
LOOK_AT_WORKER = (
    "glmttsctl logs has its last lines, glmttsctl workers the reason of each exit, glmttsctl quarantine list the texts "
    "that workers died of; glmttsctl doctor checks the machine and the engine."
)
_LOOK_AT_MACHINE = "glmttsctl workers says why each worker waits; glmttsctl doctor checks the machine."

ALERTS: dict[str, Alert] = {
    "queue_long": Alert(
        do="glmttsctl queue shows the clients. Add workers where a GPU has room (glmttsctl gpus), or add a GPU.",
        slow=True,
        rule=rules.queue_long,
        raise_after=_FOR,
        clear_after=_FOR,
        severity="warning",
        summary="{{ $value }} vip and interactive jobs wait on {{ $labels.instance }}",
        expr='sum without (class) (glmtts_jobs_waiting{class=~"vip|interactive"}) >= $warn_waiting',
    ),
    "responses_slow": Alert(
        do="Jobs may wait (glmttsctl queue) or speech may be slow (glmttsctl workers, gpus). Have long texts sent as "
        "batch jobs, or streamed.",
        slow=True,
        rule=rules.responses_slow,
        severity="warning",
        summary="speech takes {{ $value | humanizeDuration }} on average on {{ $labels.instance }}",
        expr="glmtts:response_seconds:mean5m > $response_s and glmtts:responses:increase5m > $fewest",
    ),
    "slower_than_real_time": Alert(
        do="glmttsctl gpus: does another program use the GPU, is it hot, do two workers share it?",
        slow=True,
        rule=rules.slower_than_real_time,
        severity="warning",
        summary="a second of speech takes {{ $value | humanize }} s to make on {{ $labels.instance }}",
        expr="glmtts:real_time_factor:mean5m > $rtf and increase(glmtts_job_real_time_factor_count[$window]) > $fewest",
    ),
    "errors_many": Alert(
        do="glmttsctl status has the codes under 'ended', glmttsctl logs --level warning has the jobs.",
        rule=rules.errors_many,
        summary="{{ $value | humanizePercentage }} of the jobs fail on {{ $labels.instance }}",
        expr="glmtts:jobs_failed:increase5m / glmtts:jobs_ended:increase5m > $error_share "
        "and glmtts:jobs_failed:increase5m > $fewest",
    ),
    "crash_loop": Alert(
        do=LOOK_AT_WORKER,
        rule=rules.crash_loop,
        summary="{{ $value | humanize }} worker processes failed lately on {{ $labels.instance }}",
        expr='sum without (cause) (increase(glmtts_worker_deaths_total{cause=~"$faults"}[$window])) > $many_faults',
    ),
    "breaker_open": Alert(
        do=LOOK_AT_WORKER,
        summary="workers of {{ $labels.instance }} keep failing; one is started at a time",
        expr='glmtts_breaker_state{state="closed"} == 0',
    ),
    "no_worker_ready": Alert(
        do=_LOOK_AT_MACHINE,
        rule=rules.no_worker_ready,
        raise_after=_twice_for,
        summary="no worker of {{ $labels.instance }} is ready",
        expr='sum without (state) (glmtts_workers{state=~"ready|busy"}) == 0 '
        'and sum without (bound) (glmtts_workers_bound{bound="wanted"}) > 0',
    ),
    "unavailable": Alert(
        do=_LOOK_AT_MACHINE,
        summary="{{ $labels.instance }} refuses speech: no worker can be started",
    ),
    "worker_stuck": Alert(
        do="See dmesg: the kernel, mostly the GPU's driver, holds the process. Often only a reboot helps.",
        of="worker",
        summary="worker {{ $labels.of }} of {{ $labels.instance }} was killed and does not end",
    ),
    "gpu_memory_high": Alert(
        do="glmttsctl gpus shows which programs use it: move other programs elsewhere, or glmttsctl recycle all.",
        slow=True,
        rule=rules.gpu_memory_high,
        raise_after=_FOR,
        clear_after=_FOR,
        of="gpu",
        severity="warning",
        summary="GPU {{ $labels.gpu }} of {{ $labels.instance }}: {{ $value | humanizePercentage }} of memory is used",
        expr="glmtts_gpu_memory_used_bytes / glmtts_gpu_memory_total_bytes > $gpu_memory_share",
    ),
    "memory_trend": Alert(
        do="Nothing at once: the worker is replaced before its memory runs out. glmttsctl workers -v shows what grows.",
        slow=True,
        rule=rules.memory_trend,
        raise_after=_WINDOW,
        clear_after=_WINDOW,
        of="worker",
        severity="warning",
        summary="worker {{ $labels.worker }} of {{ $labels.instance }} grows by {{ $value | humanize1024 }}B a job",
        expr="glmtts_worker_memory_trend_bytes > 0",
    ),
    "gpu_xid": Alert(
        do="See dmesg for the number, and NVIDIA's list of Xid errors: power, seat, memory or driver.",
        rule=rules.gpu_xid,
        of="gpu",
        summary="GPU {{ $labels.gpu }} of {{ $labels.instance }} has reported an error of its own (Xid)",
        expr='increase(glmtts_gpu_xid_errors_total{kind="gpu"}[$window]) > 0',
    ),
    "gpu_lost": Alert(
        do="See dmesg and nvidia-smi: power, seat, or a reboot. The daemon uses it again when the driver sees it.",
        of="gpu",
        summary="GPU {{ $labels.of }} of {{ $labels.instance }} is lost",
    ),
    "nvml": Alert(
        do="Run nvidia-smi: if it hangs or fails as well, the driver is at fault; after an update of it, reboot.",
        severity="warning",
        summary="NVML on {{ $labels.instance }} fails or hangs: GPU memory is unknown",
    ),
    "share_exhausted": Alert(
        do="glmttsctl limits shows what each client holds and has lost; the others lose nothing. Where the client is "
        "right, raise the limit that the message names, if any; else limit it in [limits.clients].",
        slow=True,
        rule=rules.share_exhausted,
        severity="warning",
        summary="a client of {{ $labels.instance }} holds most of a full table, and loses its oldest rows",
        expr="sum without (table) (increase(glmtts_removed_early_total[$window])) > 0",
    ),
    "journal": Alert(
        do="Fix the problem above. Other requests are still served; the journal is tried again every few seconds.",
        summary="{{ $labels.instance }} takes no durable jobs: its journal can't be written",
        expr="glmtts_journal_up == 0",
    ),
    "results": Alert(
        do="Make room in [daemon] state_dir, or lower [queue] keep_durable_mib.",
        summary="{{ $labels.instance }} can't keep the results of durable jobs",
    ),
    "clock": Alert(
        do="Nothing, if that was meant: a time service has put a wrong clock right. If it happens again, see "
        "timedatectl, and whether two time services run.",
        slow=True,
        severity="warning",
        summary="the clock of {{ $labels.instance }} was set by more than a minute",
    ),
    "surroundings": Alert(
        do="Put it back as it was: the daemon looks every few seconds. docs/operations.md has what each is needed for.",
        of="thing",
        summary="{{ $labels.instance }} lacks something that it needs: {{ $labels.of }}",
    ),
    "connections": Alert(
        do="glmttsctl limits shows the connections of each client. A program should keep one connection; see which one "
        "opens that many, and raise [limits] max_connections if they are all needed.",
        slow=True,
        severity="warning",
        summary="a client of {{ $labels.instance }} holds most of the connections, and loses its idle ones",
    ),
    "outputs": Alert(
        do="glmttsctl limits shows what each client's files take. Have them moved from the folder of the outputs, or "
        "raise [limits] outputs_mib; no other client is refused unless the disk is full.",
        severity="warning",
        summary="{{ $labels.instance }} refuses outputs: a client has its share, or the disk is full",
    ),
    "metrics": Alert(do="Set another port in [metrics] listen. Speech is not affected."),
    "configuration": Alert(
        do="Fix the file (glmttsctl config check FILE), then run glmttsctl reload; until then the old one holds."
    ),
}

#: Prometheus alone can see that the daemon is gone.
_ABSENT = Alert(
    do="",
    raise_after=_twice_for,
    summary="glmttsd {{ $labels.instance }} does not answer: it is down, or its loop is stuck",
    expr='up{job="glmtts"} == 0 or absent(up{job="glmtts"})',
)

_REFUSED = 'sum without (code) (increase(glmtts_jobs_refused_total{code="unavailable"}[$window]))'
_DURATION = 'sum without (class) (increase(glmtts_job_duration_seconds_%s{class=~"vip|interactive"}[$window]))'
#: Figures that several alerts use.
_RECORDED = {
    "glmtts:jobs_failed:increase5m": (
        'sum without (outcome) (increase(glmtts_jobs_ended_total{outcome=~"$failures"}[$window])) + ' + _REFUSED
    ),
    "glmtts:jobs_ended:increase5m": (
        "sum without (outcome) (increase(glmtts_jobs_ended_total[$window])) + " + _REFUSED
    ),
    "glmtts:responses:increase5m": _DURATION % "count",
    "glmtts:response_seconds:mean5m": _DURATION % "sum" + " / glmtts:responses:increase5m",
    "glmtts:real_time_factor:mean5m": (
        "increase(glmtts_synthesis_seconds_total[$window]) / increase(glmtts_speech_seconds_total[$window])"
    ),
}


def prometheus_rules(settings: AlertSettings = AlertSettings()) -> str:  # noqa: B008
    """The alerts as a file of rules for Prometheus."""
    figures = {
        "warn_waiting": f"{QueueSettings().warn_waiting}",
        "response_s": f"{settings.response_s:g}",
        "rtf": f"{settings.rtf:g}",
        "error_share": f"{settings.error_share:g}",
        "gpu_memory_share": f"{settings.gpu_memory_share:g}",
        # increase() extrapolates: three jobs may look like 2.7, two never like more than 2.5.
        "many_faults": f"{settings.faults - 0.5:g}",
        "fewest": f"{rules.FEWEST_JOBS - 0.5:g}",
        "window": f"{settings.window_s:g}s",
        "failures": "|".join(rules.FAILURES),
        "faults": "|".join(rules.FAULTS),
    }

    def quoted(expr: str) -> str:
        return "'" + Template(expr).substitute(figures).replace("'", "''") + "'"

    lines = [
        "# Alerts on glmttsd for Prometheus (2.42 or later); docs/alerts.md says what each means and what to do.",
        "# `make rules` writes this file from daemon/core/monitoring/alert_table.py, with the defaults of [alerts] and",
        "# [queue] warn_waiting: where you change one in the configuration, change it here.",
        "groups:",
        "  - name: glmtts",
        "    rules:",
    ]
    for name, expr in _RECORDED.items():
        lines += [f"      - record: {name}", f"        expr: {quoted(expr)}"]
    for name, alert in (ALERTS | {"daemon_absent": _ABSENT}).items():
        if not alert.summary:
            continue
        expr = alert.expr or f'glmtts_alert_active{{alert="{name}"}} == 1'
        lines += [f"      - alert: {name}", f"        expr: {quoted(expr)}"]
        for key, span in (("for", alert.raise_after), ("keep_firing_for", alert.clear_after)):
            if seconds := span(settings):
                lines.append(f"        {key}: {seconds:g}s")
        lines += [
            f"        labels: {{severity: {alert.severity}, service: glmtts}}",
            f'        annotations: {{summary: "{alert.summary}"}}',
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(prometheus_rules(), end="")
