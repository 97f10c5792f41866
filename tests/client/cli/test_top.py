"""`glmttsctl top`: every screen is filled, nothing runs over its edge, it ends as it began and outlives the daemon."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.client import News
from glmtts.client.cli.top.feed import Feed, Happening, Snapshot, happening_of
from glmtts.client.cli.top.frame import frame
from glmtts.client.cli.ui.wrap import cells
from glmtts.client.cli.workers import WANTED, remarks
from glmtts.daemon.core.exit_causes import POLICIES

from ..scripted_daemon import Answers, Publisher, ScriptedDaemon
from .conftest import Ctl

DEADLINE_S = 15.0
GIB = 2**30


def snapshot(workers: int = 4, cards: int = 2, **changes: Any) -> Snapshot:
    rows = [
        {
            "name": f"w{n}", "state": ("ready", "busy", "draining")[n % 3], "gpu": n % cards if cards else None,
            "jobs_done": 100 * n, "restarts": n, "age_s": 3_600.0 * n, "rss": GIB, "vram": 8 * GIB,
            "vram_trust": "process", "trend_mib_per_job": 38.0 if n == 2 else 0.0,
            "reason": "长大了 grew 38 MiB per job" if n == 2 else "",
        }
        for n in range(workers)
    ]  # fmt: skip
    gpus = [
        {
            "index": n, "name": "NVIDIA H100 80GB HBM3", "state": "lost" if n == 1 else "ok",
            "detail": "GPU is lost: 显卡掉线" if n == 1 else "", "total": 80 * GIB, "used": 30 * GIB,
            "free": 50 * GIB, "utilization": 87, "temperature": 64, "workers": [{"vram": 8 * GIB}], "others": GIB,
        }
        for n in range(cards)
    ]  # fmt: skip
    status = {
        "state": "running", "version": "0.1.0", "uptime_s": 12_000.0, "engine": "glmtts",
        "queue": {"waiting": 3, "running": 2, "by_class": {"vip": 0, "interactive": 2, "batch": 1}},
        "counts": {"ended": {"done": 1_234, "cancelled": 5, "worker_crashed": 6}},
        "alerts": [{"name": "gpu_lost", "message": "GPU 1 is lost 显卡掉线 " * 5, "for_s": 3.0}],
    }  # fmt: skip
    values: dict[str, Any] = {
        "status": status,
        "workers": rows,
        "gpus": {"nvml": {"state": "ok"}, "gpus": gpus},
        "classes": {"interactive": {"running": 1}, "batch": {"running": 1, "suspended": 2}, "vip": {"suspended": 0}},
        "rate": 4.2,
        "series": {row["name"]: [1.0, 2.0, 3.0] * 20 for row in rows},
        "happenings": [Happening(1e9, f"w{n} died: crashed (killed by SIGSEGV)", "red") for n in range(50)],
    }
    return Snapshot(**(values | changes))


def lines_of(shot: Snapshot, width: int, height: int | None) -> list[str]:
    return [line.plain for line in frame(shot, width, height, "q quit")]


@pytest.mark.parametrize(("workers", "gpus"), [(0, 0), (1, 0), (1, 1), (4, 2), (16, 8), (64, 16)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60), (40, 12)])
def test_a_picture_fills_the_screen_and_runs_over_no_edge(width: int, height: int, workers: int, gpus: int) -> None:
    lines = lines_of(snapshot(workers, gpus), width, height)
    assert len(lines) == height
    assert all(cells(line) <= width for line in lines)
    assert lines[-1].startswith("q quit")


@pytest.mark.parametrize(("workers", "gpus"), [(4, 2), (16, 8), (64, 16)])
def test_80_by_24_has_the_state_gpus_workers_and_the_last_events_whatever_there_is(workers: int, gpus: int) -> None:
    text = "\n".join(lines_of(snapshot(workers, gpus), 80, 24))
    for words in ("running", "done 1,234  failed 6", "4.2/s", "interactive 2/1", "GPU 0", "w0 ", "8.0 GiB (NVML)"):
        assert words in text
    assert "w49 died: crashed" in text, "the newest event"


def test_suspended_jobs_are_told_from_waiting_ones() -> None:
    text = "\n".join(lines_of(snapshot(), 80, 24))
    assert "batch 1/1 (2 suspended)" in text and "vip 0/0 " in text


def test_what_is_left_out_is_counted() -> None:
    text = "\n".join(lines_of(snapshot(64, 16), 80, 24))
    shown = len(re.findall(r"^w\d+ +(?:ready|busy|draining)", text, re.MULTILINE))
    assert f"and {64 - shown} more workers" in text
    cards = len(re.findall(r"^GPU \d+", text, re.MULTILINE))
    assert f"and {16 - cards} more GPUs" in text


def test_what_is_cut_ends_in_an_ellipsis() -> None:
    alert = next(line for line in lines_of(snapshot(), 60, 24) if line.startswith("! gpu_lost"))
    assert alert.endswith("…")


def test_a_lost_gpu_has_no_bar_and_nvmls_words() -> None:
    line = next(line for line in lines_of(snapshot(), 100, 30) if line.startswith("GPU 1"))
    assert "lost: GPU is lost: 显卡掉线" in line and "█" not in line


def test_a_daemon_that_is_gone_leaves_the_last_that_was_known() -> None:
    lines = lines_of(snapshot(trouble="No speech daemon answers"), 100, 30)
    assert "waiting for the daemon..." in lines[0] and "No speech daemon answers" in lines[1]
    assert any(line.startswith("w0 ") for line in lines)
    assert "waiting for the daemon..." in lines_of(Snapshot(trouble="?"), 80, 24)[0]


def test_without_a_gpu_it_says_so_in_a_line() -> None:
    shot = snapshot(2, 0, gpus={"nvml": {"state": "absent", "detail": "no driver"}, "gpus": []})
    assert "no GPU: NVML is absent" in lines_of(shot, 80, 24)
    blocked = snapshot(gpus={"nvml": {"state": "blocked", "detail": "a call hangs"}, "gpus": [{"index": 0}]})
    assert any(line.startswith("NVML blocked: a call hangs") for line in lines_of(blocked, 80, 24))


@pytest.mark.parametrize(
    ("topic", "values", "words"),
    [
        ("worker.draining", {"name": "w1", "reason": "grew"}, "w1 draining: grew"),
        ("worker.stopping", {"name": "w1", "reason": ""}, None),
        ("alert.gpu", {"state": "raised", "message": "GPU 1 is lost"}, "alert gpu: GPU 1 is lost"),
        ("alert.gpu", {"state": "cleared", "message": ""}, "alert gpu cleared"),
        ("daemon.draining", {}, "the daemon is draining"),
    ],
)
def test_what_happens_is_told_in_a_line(topic: str, values: dict[str, Any], words: str | None) -> None:
    happening = happening_of(News(topic, values))
    assert (happening.words if happening else None) == words


@pytest.fixture
def daemon_answers(answers: Answers, publisher: Publisher) -> Answers:
    """Both operators' sockets, with what there is to see."""
    del publisher  # only its socket has to be there
    shot = snapshot()
    answers |= {
        "status": {**shot.status, "pid": 1},
        "workers": {"workers": list(shot.workers)},
        "gpus": dict(shot.gpus),
        "queue": {"classes": {"batch": {"waiting": 1, "running": 1, "suspended": 2}}},
    }
    return answers


@pytest.mark.usefixtures("daemon_answers")
def test_without_a_terminal_it_prints_one_picture(ctl: Ctl) -> None:
    result = ctl("top")
    assert result.exit_code == 0, result.output
    assert "GPU 0" in result.stdout and "w3 " in result.stdout and "\x1b" not in result.stdout
    found = json.loads(ctl("top", "--once", "--json").stdout)
    assert found["status"]["state"] == "running" and len(found["workers"]) == 4 and len(found["gpus"]) == 2


def test_a_replacement_is_no_death_and_the_daemon_says_the_same_of_each_cause() -> None:
    assert {cause.value for cause, policy in POLICIES.items() if not policy.fault} == WANTED
    assert remarks({"last_death": {"cause": "operator", "detail": "asked for"}}) == [
        "last replaced: operator (asked for)"
    ]


def test_a_death_is_told_once_and_so_is_the_next(daemon_answers: Answers, control_daemon: ScriptedDaemon) -> None:
    worker = daemon_answers["workers"]["workers"][0]
    feed = Feed(f"ipc://{control_daemon.path.parent}/glmtts.sock", 1.0)
    try:
        worker["last_death"] = {"cause": "hung", "detail": "", "ago_s": 60.0}
        feed.look()
        worker["last_death"] = {"cause": "hung", "detail": "", "ago_s": 60.1}
        assert [h.words for h in feed.look().happenings] == ["w0 died: hung"]
        worker["last_death"] = {"cause": "leak", "detail": "grew", "ago_s": 0.1}
        found = feed.look().happenings
        assert [(h.words, h.style) for h in found] == [("w0 died: hung", "red"), ("w0 replaced: leak (grew)", "yellow")]
        assert 55 < found[1].at - found[0].at < 65
    finally:
        feed.stop()


class Terminal:
    """``glmttsctl top`` on a terminal of its own."""

    def __init__(self, endpoint: str, width: int = 80, height: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.slave)
        self.seen = ""
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("glmttsctl")), "top", "--interval", "0.2"],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env=os.environ | {"GLMTTS_ENDPOINT": endpoint, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        )

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def until(self, words: str) -> None:
        """Read until the screen has had ``words`` on it since the last time."""
        ends = time.monotonic() + DEADLINE_S
        while words not in self.seen:
            left = ends - time.monotonic()
            assert left > 0, f"{words!r} was not shown:\n{self.seen[-3_000:]}"
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 65_536).decode(errors="replace")
        self.seen = self.seen.split(words, 1)[1]

    def ended(self) -> int:
        """Its exit status; the terminal must be as it was before."""
        self.until("\x1b[?1049l")
        status = self.process.wait(DEADLINE_S)
        assert termios.tcgetattr(self.slave) == self.before
        assert "Traceback" not in self.seen
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(daemon_answers: Answers, control_daemon: ScriptedDaemon) -> Iterator[Terminal]:
    del daemon_answers
    with contextlib.closing(Terminal(f"ipc://{control_daemon.path.parent}/glmtts.sock")) as made:
        made.until("\x1b[?1049h")
        made.until("running")
        made.until("q quit")
        yield made


@pytest.mark.parametrize(
    "end",
    [
        lambda t: os.write(t.master, b"q"),
        lambda t: t.process.send_signal(signal.SIGINT),
        lambda t: t.process.send_signal(signal.SIGTERM),
    ],
    ids=["q", "ctrl-c", "sigterm"],
)
def test_however_it_ends_the_terminal_is_as_it_was(terminal: Terminal, end: Callable[[Terminal], object]) -> None:
    end(terminal)
    assert terminal.ended() == 0


def test_it_outlives_the_daemon_and_shows_the_next_one(
    terminal: Terminal, control_daemon: ScriptedDaemon, answers: Answers
) -> None:
    control_daemon.stop()
    terminal.until("waiting for the daemon...")
    answers["status"]["pid"] = 2
    control_daemon.start()
    terminal.until("the daemon was restarted (pid 2)")
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0


def test_a_window_that_grows_is_filled(terminal: Terminal) -> None:
    terminal.resize(150, 50)
    terminal.until("MEMORY")
    terminal.until("none yet")
    os.write(terminal.master, b"q")
    assert terminal.ended() == 0
