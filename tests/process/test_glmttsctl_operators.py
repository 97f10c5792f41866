"""What an operator sees of a real daemon on GPUs that are fake, and of workers that really die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from ..fake_gpu.fake_gpu import FakeGpus
from .conftest import Daemon
from .glmttsctl import GLMTTSCTL, answered, ctl, environment, told

PATIENCE_S = 20.0
RESTART: dict[str, Any] = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50}

OnGpus = Callable[[], tuple[Daemon, FakeGpus]]
Top = Callable[[Daemon], Callable[[str], None]]


@pytest.fixture
def on_gpus(start: Callable[..., Daemon], make_fake_gpus: Callable[..., FakeGpus]) -> OnGpus:
    """Starts a daemon on two GPUs of 8,000 MiB, and returns both."""

    def begin() -> tuple[Daemon, FakeGpus]:
        gpus = make_fake_gpus(8_000, 8_000)
        daemon = start(
            environment=gpus.environment(),
            engine={"fault": {"vram_mib": 2_000}},
            workers={"gpus": "all", "max": 0, "restart": RESTART},
        )
        daemon.until(lambda: all(worker["vram"] for worker in daemon.workers()), "the workers' memory is known")
        return daemon, gpus

    return begin


def test_workers_and_gpus_show_whose_memory_is_whose(on_gpus: OnGpus) -> None:
    daemon, gpus = on_gpus()
    gpus.take(1, 1_000, pid=4_000_001)
    daemon.until(lambda: daemon.gpus()[1]["others"] == 1_000 << 20, "the stranger is seen")
    first, second = daemon.workers()
    workers = told(daemon, "workers")
    assert first["name"] in workers and second["name"] in workers and workers.count("GiB (NVML)") == 2
    seen = told(daemon, "gpus")
    assert "others 1000 MiB" in seen and f"{second['name']} " in seen and "more worker" in seen
    assert answered(daemon, "gpus")["nvml"]["state"] == "ok"
    assert "-" not in [line.split()[0] for line in told(daemon, "workers", "-v").splitlines()]
    once = told(daemon, "top", "--once")
    assert "GPU 0" in once and "GPU 1" in once and first["name"] in once


def test_the_cause_of_a_death_is_seen_everywhere(on_gpus: OnGpus) -> None:
    daemon, _ = on_gpus()
    watching = subprocess.Popen(
        [GLMTTSCTL, "events", "daemon.", "worker.", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(daemon),
    )
    try:
        assert watching.stdout is not None
        # The memory of workers is told all the time, as soon as the subscription is there.
        assert json.loads(watching.stdout.readline())["topic"].startswith("worker.")
        os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
        deaths = (json.loads(line)["values"].get("last_death") for line in watching.stdout)
        death = next(death for death in deaths if death)
        assert death["cause"] == "crashed" and "SIGKILL" in death["detail"]
    finally:
        watching.kill()
        watching.communicate()
    assert "last death: crashed (killed by SIGKILL)" in told(daemon, "workers")


def test_a_job_that_kills_is_found_in_quarantine_and_set_free(on_gpus: OnGpus) -> None:
    daemon, _ = on_gpus()
    client = daemon.client()
    deadly: dict[str, Any] = {"text": "deadly", "options": {"fault": "segv"}}
    assert client.refused("synthesize", **deadly)["code"] in ("worker_crashed", "quarantined")
    (entry,) = answered(daemon, "quarantine", "list")["quarantined"]
    assert entry["deaths"] >= 2
    assert "SIGSEGV" in told(daemon, "quarantine", "list")
    assert client.refused("synthesize", **deadly)["code"] == "quarantined"
    assert told(daemon, "quarantine", "clear", entry["content"][:6]).startswith("1 cleared")
    assert told(daemon, "quarantine", "list") == "No job is in quarantine.\n"
    daemon.until_ready()


def test_a_lost_gpu_is_told_by_gpus_status_and_doctor(on_gpus: OnGpus) -> None:
    daemon, gpus = on_gpus()
    with gpus.lose(1):
        daemon.until(lambda: daemon.gpus()[1]["state"] == "lost", "the loss is noticed")
        assert "GPU is lost" in told(daemon, "gpus")
        assert "GPU is lost" in told(daemon, "status")
        doctor = ctl(daemon, "doctor", "--json", **gpus.environment())
        assert doctor.returncode == 1
        wrong = [check for check in json.loads(doctor.stdout)["checks"] if check["state"] == "wrong"]
        assert any(check["name"] == "GPU 1" for check in wrong), wrong
        assert all(check["means"] for check in wrong)


def test_the_doctor_finds_a_healthy_daemon_healthy(start: Callable[..., Daemon]) -> None:
    daemon = start(engine={"name": "espeak", "warmup_text": "a"})
    done = ctl(daemon, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, [check for check in checks.values() if check["state"] == "wrong"]
    assert str(daemon.file) in checks["configuration"]["seen"], "the file that the daemon has read"
    for name in ("daemon", "protocol", "workers", "glmtts.sock", "control.sock", "eSpeak NG"):
        assert checks[name]["state"] == "ok", checks[name]


def test_a_daemon_that_hangs_is_told_with_what_ends_it(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.process.send_signal(signal.SIGSTOP)
    said = ctl(daemon, "stop", "--now")
    assert said.returncode == 124 and f"kill -9 {daemon.process.pid}." in said.stderr
    daemon.kill()
