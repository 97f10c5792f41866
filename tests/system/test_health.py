"""`glmttsctl health` is believed by machines: it is right about each kind of trouble, and never takes long."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from ..process.conftest import Daemon, Start
from ..process.glmttsctl import ctl


def health(daemon: Daemon, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said."""
    done = ctl(daemon, "health", *options, "--json")
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def test_a_daemon_is_alive_then_ready_then_speaks_by_every_worker(start: Start) -> None:
    daemon = start(wait=False, workers={"max": 2}, engine={"fault": {"start": "slow", "start_s": 2.0}})
    daemon.until(daemon.control_is_open, "the daemon answers")
    assert health(daemon, "--live")[0] == 0
    code, answer = health(daemon)
    assert code == 3 and answer["problems"][0]["name"] == "loading"
    daemon.until_ready()
    assert health(daemon, "--ready")[0] == 0
    code, answer = health(daemon, "--deep")
    assert code == 0 and [(w["name"], w["verdict"]) for w in answer["workers"]] == [("w0", "spoke"), ("w1", "spoke")]
    assert daemon.status()["counts"]["accepted"] == 0, "a probe is not counted as a job"


def test_a_worker_that_hangs_is_found_by_deep_alone_and_in_its_time(start: Start) -> None:
    daemon = start()
    os.kill(pid := daemon.workers()[0]["pid"], signal.SIGSTOP)
    try:
        assert health(daemon)[0] == 0
        begun = time.monotonic()
        code, answer = health(daemon, "--deep", "--timeout", "1")
        assert code == 3 and answer["workers"][0]["verdict"] == "silent" and time.monotonic() - begun < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    assert health(daemon, "--deep")[0] == 0


def test_a_daemon_that_is_frozen_or_not_there_is_not_alive(start: Start) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for depth in ("--live", "--ready", "--deep"):
            begun = time.monotonic()
            code, answer = health(daemon, depth, "--timeout", "1")
            assert (code, answer["healthy"], answer["live"]) == (3, False, False) and answer["problem"]
            assert time.monotonic() - begun < 10
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()
    code, answer = health(daemon, "--live")
    assert code == 3 and "glmttsd" in answer["problem"]
