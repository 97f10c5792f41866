"""The rules for Prometheus are valid, each fires and clears, and they are those of the daemon's own table."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtts.daemon.core.monitoring.alert_table import ALERTS, prometheus_rules

from .conftest import DEPLOY, RULES

FOLDER = DEPLOY / "prometheus"


@dataclass
class Case:
    """``series`` (values every 15 s), with which the alert fires at ``fires`` and at no time of ``quiet``."""

    alert: str
    series: dict[str, str]
    quiet: tuple[str, ...]
    fires: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


CASES = [
    Case(
        "queue_long",
        # The chapters of a book may wait.
        {
            'glmtts_jobs_waiting{class="vip"}': "0x3 1x8 0x20",
            'glmtts_jobs_waiting{class="interactive"}': "3x31",
            'glmtts_jobs_waiting{class="batch"}': "900x40",
        },
        ("45s", "5m"),
        "2m",
        "4 vip and interactive jobs wait on a:9464",
    ),
    Case(
        "responses_slow",
        {
            'glmtts_job_duration_seconds_sum{class="interactive"}': "0x20 0+70x20 1400+2x60",
            'glmtts_job_duration_seconds_count{class="interactive"}': "0x20 0+1x20 20+1x60",
            'glmtts_job_duration_seconds_sum{class="batch"}': "0+5000x100",
            'glmtts_job_duration_seconds_count{class="batch"}': "0+1x100",
        },
        ("5m", "16m"),
        "10m",
        "speech takes 1m 10s on average on a:9464",
    ),
    Case(
        "slower_than_real_time",
        {
            "glmtts_synthesis_seconds_total{}": "0+5x20 100+30x20 700+5x60",
            "glmtts_speech_seconds_total{}": "0+20x100",
            "glmtts_job_real_time_factor_count{}": "0+2x100",
        },
        ("5m", "17m"),
        "10m15s",
        "a second of speech takes 1.5 s to make on a:9464",
    ),
    Case(
        "errors_many",
        # Cancelled jobs and full queues are no failures of the service.
        {
            'glmtts_jobs_ended_total{outcome="done"}': "0+8x100",
            'glmtts_jobs_ended_total{outcome="worker_crashed"}': "0x20 0+1x20 20x60",
            'glmtts_jobs_ended_total{outcome="cancelled"}': "0+40x20 800x80",
            'glmtts_jobs_refused_total{code="unavailable"}': "0x20 0+1x20 20x60",
            'glmtts_jobs_refused_total{code="queue_full"}': "0+40x100",
        },
        ("5m", "16m"),
        "10m15s",
        "20% of the jobs fail on a:9464",
    ),
    Case(
        "crash_loop",
        {
            'glmtts_worker_deaths_total{cause="crashed"}': "0x20 1x4 2x80",
            'glmtts_worker_deaths_total{cause="hung"}': "0x28 1x80",
            'glmtts_worker_deaths_total{cause="operator"}': "0+1x100",
        },
        ("6m45s", "14m"),
        "8m",
        "3 worker processes failed lately on a:9464",
    ),
    Case(
        "breaker_open",
        {'glmtts_breaker_state{state="closed"}': "1x4 0x8 1x8"},
        ("30s", "4m"),
        "2m",
        "workers of a:9464 keep failing; one is started at a time",
        {"state": "closed"},
    ),
    Case(
        "no_worker_ready",
        {
            'glmtts_workers{state="ready"}': "1x4 0x12 0x20",
            'glmtts_workers{state="busy"}': "1x4 0x12 1x20",
            'glmtts_workers{state="failed"}': "0x4 2x12 1x20",
            'glmtts_workers_bound{bound="wanted"}': "2x40",
            # All workers of b were unloaded.
            'glmtts_workers{instance="b:9464", state="ready"}': "0x40",
            'glmtts_workers{instance="b:9464", state="busy"}': "0x40",
            'glmtts_workers_bound{instance="b:9464", bound="wanted"}': "0x40",
        },
        ("90s", "5m"),
        "3m",
        "no worker of a:9464 is ready",
    ),
    Case(
        "gpu_memory_high",
        {
            'glmtts_gpu_memory_used_bytes{gpu="0"}': "800x4 950x8 800x20",
            'glmtts_gpu_memory_total_bytes{gpu="0"}': "1000x40",
            'glmtts_gpu_memory_used_bytes{gpu="1"}': "899x40",
            'glmtts_gpu_memory_total_bytes{gpu="1"}': "1000x40",
        },
        ("60s", "5m"),
        "2m30s",
        "GPU 0 of a:9464: 95% of memory is used",
        {"gpu": "0"},
    ),
    Case(
        "memory_trend",
        {'glmtts_worker_memory_trend_bytes{worker="w0"}': "0x4 1048576x40 0x80"},
        ("4m", "20m"),
        "8m",
        "worker w0 of a:9464 grows by 1MiB a job",
        {"worker": "w0"},
    ),
    Case(
        "gpu_xid",
        {
            'glmtts_gpu_xid_errors_total{gpu="0", kind="gpu"}': "0x8 1x80",
            'glmtts_gpu_xid_errors_total{gpu="0", kind="program"}': "0+1x80",
        },
        ("2m", "10m"),
        "3m",
        "GPU 0 of a:9464 has reported an error of its own (Xid)",
        {"gpu": "0", "kind": "gpu"},
    ),
    Case(
        "journal",
        {"glmtts_journal_up{}": "1x4 0x8 1x8"},
        ("30s", "4m"),
        "2m",
        "a:9464 takes no durable jobs: its journal can't be written",
    ),
    Case(
        "daemon_absent",
        {"up{}": "1x4 0x8 1x8"},
        ("90s", "4m"),
        "3m",
        "glmttsd a:9464 does not answer: it is down, or its loop is stuck",
    ),
    *(
        Case(
            name,
            {f'glmtts_alert_active{{alert="{name}", of="{of}"}}': "_x4 1x8 stale" if of else "0x4 1x8 0x8"},
            ("30s", "4m"),
            "2m",
            summary,
            {"alert": name, "of": of} if of else {"alert": name},
        )
        for name, of, summary in (
            ("unavailable", "", "a:9464 refuses speech: no worker can be started"),
            ("results", "", "a:9464 can't keep the results of durable jobs"),
            ("nvml", "", "NVML on a:9464 fails or hangs: GPU memory is unknown"),
            ("gpu_lost", "1", "GPU 1 of a:9464 is lost"),
            ("worker_stuck", "w2", "worker w2 of a:9464 was killed and does not end"),
        )
    ),
]


def from_daemon(series: str) -> str:
    """The series as Prometheus has it from the daemon a, if it names no other."""
    instance = "" if "instance=" in series else 'instance="a:9464", '
    return series.replace("{", '{job="glmtts", ' + instance)


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rules() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"] if "alert" in rule}


def test_the_file_is_what_the_table_gives() -> None:
    assert RULES.read_text() == prometheus_rules(), "run `make rules`"


@pytest.mark.parametrize("kind", ["rules", "config"])
def test_promtool_finds_nothing_wrong(kind: str) -> None:
    promtool("check", kind, {"rules": RULES.name, "config": "prometheus.yml"}[kind])


def test_every_alert_fires_and_clears(rules: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert {case.alert for case in CASES} == rules.keys()
    tests = []
    for case in CASES:
        labels = {"severity": rules[case.alert]["labels"]["severity"], "service": "glmtts", "job": "glmtts"}
        labels |= {"instance": "a:9464", **case.labels}
        fires = {"exp_labels": labels, "exp_annotations": {"summary": case.summary}}
        tests.append(
            {
                "interval": "15s",
                "input_series": [
                    {"series": from_daemon(name), "values": values} for name, values in case.series.items()
                ],
                "alert_rule_test": [
                    *({"eval_time": at, "alertname": case.alert} for at in case.quiet),
                    {"eval_time": case.fires, "alertname": case.alert, "exp_alerts": [fires]},
                ],
            }
        )
    absent = {"severity": "critical", "service": "glmtts", "job": "glmtts"}
    summary = "glmttsd  does not answer: it is down, or its loop is stuck"
    fires = {"exp_labels": absent, "exp_annotations": {"summary": summary}}
    tests.append(
        {
            "interval": "15s",
            "input_series": [{"series": 'up{job="something else"}', "values": "1x20"}],
            "alert_rule_test": [{"eval_time": "3m", "alertname": "daemon_absent", "exp_alerts": [fires]}],
        }
    )
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    promtool("test", "rules", str(file))


def test_every_alert_is_in_the_manual_with_what_to_do(rules: dict[str, dict[str, Any]]) -> None:
    manual = (DEPLOY.parent / "docs" / "alerts.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.+)$", manual))
    assert rows.keys() == rules.keys() | ALERTS.keys()
    assert all(len(row.split(" | ")) == 3 and row.strip().endswith("|") for row in rows.values())
