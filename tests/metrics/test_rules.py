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


#: Alerts that test_prometheus.py has a daemon raise.
FIRED_LIVE = {
    *("responses_slow", "slower_than_real_time", "crash_loop", "breaker_open"),
    *("gpu_memory_high", "memory_trend", "gpu_xid", "daemon_absent"),
}
CASES = [
    Case(
        "share_exhausted",
        {
            'glmtts_removed_early_total{table="results"}': "0x8 7x40",
            'glmtts_removed_early_total{table="keys"}': "3x48",
        },
        ("1m", "9m"),
        "3m",
        "a client of a:9464 holds most of a full table, and loses its oldest rows",
    ),
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
        "journal",
        {"glmtts_journal_up{}": "1x4 0x8 1x8"},
        ("30s", "4m"),
        "2m",
        "a:9464 takes no durable jobs: its journal can't be written",
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
            ("clock", "", "the clock of a:9464 was set by more than a minute"),
            (
                "connections",
                "",
                "a client of a:9464 holds most of the connections, and loses its idle ones",
            ),
            ("outputs", "", "a:9464 refuses outputs: a client has its share, or the disk is full"),
            ("nvml", "", "NVML on a:9464 fails or hangs: GPU memory is unknown"),
            ("gpu_lost", "1", "GPU 1 of a:9464 is lost"),
            ("surroundings", "outputs", "a:9464 lacks something that it needs: outputs"),
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
    assert {case.alert for case in CASES} | FIRED_LIVE == rules.keys()
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
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    promtool("test", "rules", str(file))


def test_every_alert_is_in_the_manual_with_what_to_do(rules: dict[str, dict[str, Any]]) -> None:
    manual = (DEPLOY.parent / "docs" / "alerts.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.+)$", manual))
    assert rows.keys() == rules.keys() | ALERTS.keys()
    assert all(len(row.split(" | ")) == 3 and row.strip().endswith("|") for row in rows.values())
