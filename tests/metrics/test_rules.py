"""The rules for Prometheus are right, each is tested, and they say what the daemon itself says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtts.daemon.core.monitoring import alert_rules
from glmtts.daemon.core.monitoring.alert_evaluator import FAULTS
from glmtts.daemon.core.settings import AlertSettings, QueueSettings

from .conftest import DEPLOY, RULES

#: Raised by the daemon alone, as Prometheus can't see it; and by Prometheus alone, as the daemon can't say it.
OF_DAEMON, OF_PROMETHEUS = {"metrics", "configuration"}, {"daemon_absent"}
FOLDER = DEPLOY / "prometheus"


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alerts() -> dict[str, dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"] if "alert" in rule}


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "glmtts.rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "glmtts.rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    assert "FAILED" not in promtool(*arguments)


def test_every_alert_fires_and_clears_in_its_test(alerts: Any) -> None:
    tested: dict[str, list[bool]] = {}
    for test in yaml.safe_load((FOLDER / "glmtts.rules.test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            tested.setdefault(case["alertname"], []).append(bool(case.get("exp_alerts")))
    assert tested.keys() == alerts.keys()
    for name, fires in tested.items():
        assert any(not a and b and not c for a, b, c in zip(fires, fires[1:], fires[2:], strict=False)), name


def test_both_places_have_the_same_alerts(alerts: Any) -> None:
    ours = {*alert_rules.RULES, *alert_rules.EVENTS}
    assert alerts.keys() - OF_PROMETHEUS == ours - OF_DAEMON


def test_both_places_go_by_the_same_numbers(alerts: Any) -> None:
    settings = AlertSettings()
    for name, bound in {
        "queue_long": f">= {QueueSettings().warn_waiting}",
        "responses_slow": f"> {settings.response_s:g} ",
        "slower_than_real_time": f"> {settings.rtf:g} ",
        "errors_many": f"> {settings.error_share:g} ",
        "crash_loop": f"> {settings.faults - 0.5:g}",
        "gpu_memory_high": f"> {settings.gpu_memory_share:g}",
    }.items():
        assert bound in f"{alerts[name]['expr']} ", name
    fewest = f"> {alert_rules.FEWEST_JOBS - 0.5:g}"
    assert all(fewest in alerts[name]["expr"] for name in ("responses_slow", "slower_than_real_time", "errors_many"))
    assert set(re.findall(r"\[(\d\w+)\]", RULES.read_text())) == {f"{settings.window_s / 60:g}m"}
    spans = {"1m": 60.0, "30s": 30.0, "5m": 300.0}
    for name, (_, timing) in alert_rules.RULES.items():
        raise_s = timing.raise_for * settings.for_s + timing.raise_windows * settings.window_s
        clear_s = timing.clear_for * settings.for_s + timing.clear_windows * settings.window_s
        assert spans.get(alerts[name].get("for", ""), 0.0) == raise_s, name
        assert spans.get(alerts[name].get("keep_firing_for", ""), 0.0) == clear_s, name


def test_both_places_mean_the_same_by_failures_and_faults(alerts: Any) -> None:
    text = RULES.read_text()
    (outcomes,) = re.findall(r'outcome=~"([\w|]+)"', text)
    assert set(outcomes.split("|")) == alert_rules.FAILURES
    (causes,) = re.findall(r'cause=~"([\w|]+)"', alerts["crash_loop"]["expr"])
    assert set(causes.split("|")) == set(FAULTS)


def test_every_alert_is_in_the_manual_with_what_to_do(alerts: Any) -> None:
    manual = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| (.+)$", manual))
    assert rows.keys() == alerts.keys() | OF_DAEMON
    assert all(len(row.split(" | ")) == 3 and row.strip().endswith("|") for row in rows.values())
