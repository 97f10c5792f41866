"""`status` is read at three in the morning: a screen has it all, and what is wrong does not scroll away."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from glmtts.client.cli.status import lines_of
from glmtts.client.cli.ui.wrap import cells

from ..scripted_daemon import Answers
from .conftest import Ctl, OnTerminal

LOST = {
    "severity": "bad", "name": "gpu_lost.1",
    "what": "GPU 1 is lost: nvmlDeviceGetHandleByIndex (GPU 1): GPU is lost: the GPU fell off the bus or can't be "
    "reached: see 'dmesg' for Xid 79; a reboot may bring it back, otherwise check its power and seat.",
    "do": "See dmesg and nvidia-smi: power, seat, or a reboot. The daemon takes it back when the driver sees it.",
}  # fmt: skip
DIED = {
    "severity": "bad", "name": "worker_died",
    "what": "Worker w0 died 26 s ago: killed by SIGSEGV (crashed). It was started again.",
    "do": "glmttsctl logs shows what it said, glmttsctl workers what each died of, glmttsctl quarantine list which "
    "jobs they died of; glmttsctl doctor looks at the machine and the engine.",
}  # fmt: skip
REFUSED = {
    "severity": "note", "name": "quarantine", "what": "1 texts are refused, because workers died of them.",
    "do": "glmttsctl quarantine list shows whose, and quarantine clear lets them in.",
}  # fmt: skip
#: As the daemon gives it.
STATUS: dict[str, Any] = {
    "state": "running", "version": "0.1.0", "uptime_s": 12_000.0, "engine": "glmtts",
    "workers": {"ready": 1, "busy": 1, "starting": 0, "failed": 0, "total": 2},
    "queue": {
        "waiting": 3, "running": 1, "suspended": 0, "by_class": {"vip": 0, "interactive": 1, "batch": 2},
        "paused": False,
    },
    "counts": {"accepted": 13, "done": 4, "ended": {"done": 4, "worker_crashed": 1}, "refused": {"rate_limited": 2}},
    "kept": {"recordings_bytes": 0, "results_bytes": 52_000},
    "journal": {"ok": True, "problem": "", "unfinished": 4, "recovered": 0},
    "estimates": {"jobs": 312, "within_30_percent": 0.84},
    "breaker": "closed", "quarantined": 0, "alerts": [], "attention": [LOST, DIED, REFUSED],
    "pid": 2287, "memory": {"rss": 36 * 2**20}, "connections": 1, "connections_turned_away": 0,
    "connections_ended_unread": 0, "floods_ended": 0, "internal_errors": 0, "log_lines_dropped": 0,
}  # fmt: skip


def shown(width: int | None = None, height: int | None = None, **changes: Any) -> list[str]:
    return [text for text, _ in lines_of(STATUS | changes, width, height)]


def test_a_screen_of_24_lines_has_it_all_with_what_is_wrong_at_its_top() -> None:
    lines = shown(80, 24)
    assert len(lines) < 24 and all(cells(line) <= 80 for line in lines)
    assert lines[0].startswith("! GPU 1 is lost") and lines[-1].startswith("connections")
    for line in (
        "state        running, up 3 h 20 min, version 0.1.0, engine glmtts, pid 2287",
        "workers      1 ready, 1 busy, 0 starting, 0 failed of 2",
        "queue        3 waiting (0 vip, 1 interactive, 2 batch), 1 running, 0 suspended",
        "counts       13 accepted; ended: 4 done, 1 worker_crashed; refused: 2 rate_limited",
        "estimates    84 % of 312 jobs started within 30 % of the estimated time",
        "journal      good, 4 unfinished, 0 recovered",
        "kept         recordings 0 bytes, results 50.8 KiB",
        "memory       rss 36.0 MiB",
    ):
        assert line in shown(), line


def test_on_a_terminal_that_is_too_low_the_gravest_is_right_above_the_prompt() -> None:
    lines = shown(80, 16)
    assert lines[0].startswith("state"), "the figures scroll away"
    marks = [line for line in lines if line.startswith(("! ", "Problems"))]
    assert [mark[:9] for mark in marks] == ["Problems,", "! 1 texts", "! Worker ", "! GPU 1 i"]
    assert lines[-1].endswith("back when the driver sees it."), "and it is said what to do"
    assert len(shown(80, 16, attention=[])) < 16


def test_in_a_pipe_what_is_wrong_comes_first_and_is_broken_nowhere() -> None:
    assert shown()[:2] == [f"! {LOST['what']}", f"  -> {LOST['do']}"]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("connections_turned_away", "connections turned away"), ("quarantined", "quarantined"),
        ("connections_ended_unread", "connections ended unread"), ("floods_ended", "floods ended"),
        ("internal_errors", "internal errors"), ("log_lines_dropped", "log lines dropped"),
    ],
)  # fmt: skip
def test_what_should_not_happen_is_told_when_it_has(key: str, label: str) -> None:
    assert label not in "\n".join(shown())
    assert any(line.startswith(label) and line.endswith("  3") for line in shown(**{key: 3}))


def test_what_stands_in_the_way_is_told() -> None:
    text = "\n".join(shown(
        breaker="open", queue=STATUS["queue"] | {"paused": True}, journal={"ok": False, "problem": "the disk is full"},
        workers={"ready": 0, "total": 1, "backoff": 1}, tcp={"refused": 3}, estimates={"jobs": 0},
    ))  # fmt: skip
    for words in (
        "breaker", "0 suspended, paused", "can't be used: the disk is full", "0 ready, 1 backoff of 1", "refused 3",
    ):  # fmt: skip
        assert words in text
    assert "estimates" not in text


def test_keys_of_a_newer_daemon_are_shown_as_they_come() -> None:
    assert "brand new    a 2.00 s" in shown(brand_new={"a_s": 2})


def test_a_daemon_that_starts_no_job_any_more_is_3(ctl: Ctl, answers: Answers) -> None:
    answers["status"] = {"state": "drained"}
    assert ctl("status").exit_code == 3
    assert json.loads(ctl("status", "--json").stdout) == answers["status"]


@pytest.mark.parametrize(
    "changes",
    [
        {"ready": False},
        {"state": "paused"},
        {"attention": [DIED | {"severity": "down"}]},
        {"ready": False, "state": "running", "attention": []},
    ],
)
def test_a_daemon_that_would_not_speak_a_new_job_is_3(ctl: Ctl, answers: Answers, changes: dict[str, Any]) -> None:
    answers["status"] = STATUS | changes
    assert ctl("status").exit_code == 3
    answers["status"] = STATUS
    assert ctl("status").exit_code == 0


def test_a_pause_is_shown_with_its_begin() -> None:
    assert shown(state="paused", paused_since=1.7e9, ready=False, attention=[])[0].startswith(
        f"state        paused since {time.strftime('%Y-%m-%d %H:%M', time.localtime(1.7e9))}"
    )


def test_the_command_looks_at_the_terminal_s_size(on_terminal: OnTerminal, answers: Answers) -> None:
    answers["status"] = STATUS
    assert on_terminal("status", height=30).stdout.splitlines() == shown(80, 30)
    assert on_terminal("status", height=16).stdout.splitlines() == shown(80, 16)
    assert on_terminal("status", width=120, height=30).stdout.splitlines() == shown(120, 30)


def test_what_is_experimental_is_said_beside_the_engine() -> None:
    (state,) = [line for line in shown(experimental="batching") if line.startswith("state")]
    assert state.endswith("engine glmtts, pid 2287, experimental: batching")
    assert not any("experimental" in line for line in shown(experimental=""))
