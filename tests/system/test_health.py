"""`glmttsctl health` is believed by machines: it is right about each kind of trouble, and never takes long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..fake_gpu.fake_gpu import FakeGpus
from ..process.conftest import Daemon, Start

GLMTTSCTL = str(Path(sys.executable).with_name("glmttsctl"))


def health(daemon: Daemon, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said."""
    done = subprocess.run(
        [GLMTTSCTL, "health", *options, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint},
    )
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


def test_after_a_cuda_error_it_is_unwell_until_the_next_worker_is_there(start: Start, fake_gpus: FakeGpus) -> None:
    daemon = start(
        workers={"gpus": "all", "vram_mib": 1_000},
        engine={"fault": {"vram_mib": 1_000, "start": "slow", "start_s": 1.0}},
        environment=fake_gpus.environment(),
    )
    client = daemon.client()
    id = client.send("synthesize", text="a", options={"fault": "illegal_access"})
    client.until(id, "started")
    daemon.until(lambda: daemon.workers()[0]["last_death"], "the worker is gone")
    code, answer = health(daemon)
    assert code == 3 and "illegal memory access" in json.dumps(answer["problems"])
    assert client.all(id)[0][-1]["code"] in ("worker_crashed", "quarantined")
    daemon.until_ready()
    assert health(daemon, "--deep")[0] == 0


def test_where_the_gpu_is_not_there_it_says_so(start: Start, fake_gpus: FakeGpus) -> None:
    daemon = start(
        wait=False,
        workers={"gpus": [3]},
        engine={"fault": {"vram_mib": 1_000}},
        environment=fake_gpus.environment(),
    )
    daemon.until(lambda: any(w["state"] == "waiting" for w in daemon.workers()), "its worker waits")
    code, answer = health(daemon)
    assert code == 3 and "there is no GPU 3 here" in answer["problems"][0]["what"]
