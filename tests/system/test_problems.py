"""Each row of the table in docs/operations.md is brought about, and shown as the table says: to who never saw this
project, by `glmttsctl status`, `doctor` and `health` alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ..process.conftest import Daemon, MakeGpus, Start
from ..process.glmttsctl import ctl

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


class Row(NamedTuple):
    """A row of the table: what is wrong, its name, what ``status`` says, the doctor's mark, health's exit code."""

    wrong: str
    name: str
    says: str
    doctor: str
    health: int


def table() -> dict[str, Row]:
    text = DOCS.read_text(encoding="utf-8")
    found = re.findall(r"^\| ([^|`]+) \| `(\w+)` \| `([^|]+)` \| (wrong|warning) \| ([03]) \|$", text, re.MULTILINE)
    return {row[0]: Row(row[0], row[1], row[2], row[3], int(row[4])) for row in found}


ROWS = table()
STAGES: dict[str, Callable[[Theatre], Daemon]] = {}


class Theatre:
    """What a staging has at hand: it starts daemons, has GPUs made, and tidies up behind itself."""

    def __init__(self, start: Start, request: pytest.FixtureRequest) -> None:
        self.start = start
        self._request = request

    @property
    def gpus(self) -> MakeGpus:
        make: MakeGpus = self._request.getfixturevalue("make_fake_gpus")
        return make

    def folder(self) -> Path:
        """A state folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix="glmtts-state-", dir="/tmp"))
        self._request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
        return folder

    def small_disk(self) -> Path:
        """A state folder on a disk of a megabyte and a half."""
        folder = self.folder()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(folder)], check=False)
        if done.returncode:
            pytest.skip("a disk can only be made by root")
        self._request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=False))
        return folder


def stage(wrong: str) -> Callable[[Callable[[Theatre], Daemon]], Callable[[Theatre], Daemon]]:
    """The function brings about what the row ``wrong`` of the table is about, and returns the daemon."""

    def add(function: Callable[[Theatre], Daemon]) -> Callable[[Theatre], Daemon]:
        STAGES[wrong] = function
        return function

    return add


def long(seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "rtf": 1.0, "segments": 20}


@stage("another program has the GPU's memory")
def gpu_full(theatre: Theatre) -> Daemon:
    gpus = theatre.gpus(8_000)
    gpus.take(0, 7_000, pid=4_000_001)
    return theatre.start(
        wait=False,
        environment=gpus.environment(),
        workers={"gpus": "all", "max": 0, "vram_mib": 4_000},
        engine={"fault": {"vram_mib": 4_000}},
    )


@stage("workers can't be kept alive")
def workers_crash(theatre: Theatre) -> Daemon:
    restart = {"breaker_failures": 2, "backoff_initial_s": 0.05, "backoff_max_s": 60.0}
    return theatre.start(wait=False, engine={"fault": {"start": "crash"}}, workers={"restart": restart})


@stage("the model is still being loaded")
def loading(theatre: Theatre) -> Daemon:
    return theatre.start(wait=False, engine={"fault": {"start": "hang"}}, workers={"start_timeout_s": 300.0})


@stage("a worker died, and was replaced")
def worker_died(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.until(lambda: daemon.workers()[0]["last_death"], "its death is known")
    daemon.until_ready()
    return daemon


@stage("a worker hangs, and is not killed yet")
def no_progress(theatre: Theatre) -> Daemon:
    daemon = theatre.start(workers={"hang_timeout_s": 20.0})
    client = daemon.client()
    client.until(client.send("synthesize", text="long", options=long(60.0)), "started")
    os.kill(daemon.workers()[0]["pid"], signal.SIGSTOP)
    daemon.until(lambda: daemon.status()["attention"], "it is seen")
    return daemon


@stage("a worker's memory grows, and it is replaced")
def worker_replaced(theatre: Theatre) -> Daemon:
    daemon = theatre.start(workers={"recycle": {"max_rss_mib": 200}})
    client = daemon.client()
    for number in range(3):
        client.speak(f"text {number}", options={"fault": "leak_ram", "mib": 100, "seconds": 0.1})
    daemon.until(lambda: any(worker["last_death"] for worker in daemon.workers()), "it was replaced")
    daemon.until_ready()
    return daemon


@stage("one client's book fills the queue")
def one_client(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    client = daemon.client()
    for number in range(12):
        client.send("synthesize", text=f"chapter {number}", priority="batch", durable=False, options=long(60.0))
    return daemon


@stage("too few workers for the load")
def too_few_workers(theatre: Theatre) -> Daemon:
    daemon = theatre.start(limits={"gateways": ["root", str(os.getuid())]})
    client = daemon.client()
    for number in range(8):
        client.send("synthesize", text=f"text {number}", on_behalf_of=f"visitor{number}", options=long(60.0))
    return daemon


@stage("the CPU speaks in place of the GPU")
def cpu(theatre: Theatre) -> Daemon:
    daemon = theatre.start(alerts={"for_s": 1.0})
    client = daemon.client()
    for number in range(4):
        client.speak(f"text {number}", options={"seconds": 0.2, "rtf": 2.0})
    return daemon


@stage("the disk is full")
def disk_full(theatre: Theatre) -> Daemon:
    disk = theatre.small_disk()
    daemon = theatre.start(daemon={"state_dir": str(disk)})
    with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="space"):
        while True:
            filler.write(bytes(4_096))
    client = daemon.client()
    for number in range(30):
        if client.ask("synthesize", text=f"{number} " * 1_000, durable=True).get("code") == "unavailable":
            break
    return daemon


@stage("another daemon has the journal")
def journal_locked(theatre: Theatre) -> Daemon:
    state = str(theatre.folder())
    theatre.start(daemon={"state_dir": state})
    return theatre.start(daemon={"state_dir": state})


@stage("the journal is of a later version")
def journal_of_later_version(theatre: Theatre) -> Daemon:
    state = theatre.folder()
    theatre.start(daemon={"state_dir": str(state)}).stop()
    with sqlite3.connect(state / "journal.db") as journal:
        journal.execute("PRAGMA user_version = 99")
    journal.close()
    before = (state / "journal.db").read_bytes()
    daemon = theatre.start(daemon={"state_dir": str(state)})
    assert daemon.client().refused("synthesize", text="a", durable=True)["code"] == "unavailable"
    assert (state / "journal.db").read_bytes() == before, "what a later version wrote is left as it is"
    return daemon


@stage("the queue is paused")
def paused(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    daemon.control("pause")
    return daemon


@stage("the daemon is drained")
def drained(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    daemon.control("drain", timeout_s=5.0)
    return daemon


@stage("the configuration is wrong, and was not applied")
def wrong_configuration(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    daemon.file.write_text("[workers]\nmax = -1\n")
    daemon.process.send_signal(signal.SIGHUP)
    return daemon


@stage("a new value waits for a restart")
def restart_needed(theatre: Theatre) -> Daemon:
    daemon = theatre.start()
    daemon.configure({"limits": {"text_chars": 10}})
    daemon.control("reload")
    return daemon


@stage("a client does not read")
def slow_reader(theatre: Theatre) -> Daemon:
    daemon = theatre.start(limits={"send_buffer_mib": 1})
    daemon.client(RCVHWM=1).send("synthesize", text="a", stream=True, options={"seconds": 3_000.0})
    return daemon


@stage("the last worker was unloaded, and the next job waits for it")
def asleep(theatre: Theatre) -> Daemon:
    daemon = theatre.start(workers={"idle_unload_s": 0.2})
    daemon.until(lambda: not daemon.workers(), "no worker is left")
    return daemon


@pytest.fixture
def theatre(start: Start, request: pytest.FixtureRequest) -> Iterator[Theatre]:
    yield Theatre(start, request)


def test_the_table_and_what_is_staged_are_the_same() -> None:
    assert len(ROWS) >= 10 and set(ROWS) == set(STAGES)


@pytest.mark.parametrize("wrong", ROWS)
def test_an_operator_is_shown_what_is_wrong_and_what_to_do(theatre: Theatre, wrong: str) -> None:
    row = ROWS[wrong]
    daemon = STAGES[wrong](theatre)
    daemon.until(daemon.control_is_open, "the daemon answers")

    def shown() -> list[dict[str, str]]:
        return [problem for problem in daemon.status()["attention"] if problem["name"] == row.name]

    daemon.until(shown, f"{row.name} is in status", 60)
    (problem,) = shown()
    assert problem["do"].strip(), "and what to do"
    status = ctl(daemon, "status").stdout
    pattern = ".*".join(re.escape(part) for part in row.says.split("…"))
    assert re.search(pattern, status), f"{row.says!r} is not in:\n{status}"
    assert status.startswith("! "), "what is to be done comes first"
    checks = json.loads(ctl(daemon, "doctor", "--config", str(daemon.file), "--json").stdout)["checks"]
    assert [check["state"] for check in checks if check["name"] == f"daemon: {row.name}"] == [row.doctor]
    health = ctl(daemon, "health", "--json")
    assert health.returncode == row.health, health.stdout
    if row.health:
        assert row.name in [found["name"] for found in json.loads(health.stdout)["problems"]]
    let_go(daemon)


def let_go(daemon: Daemon) -> None:
    """End a daemon without waiting for the jobs that it has."""
    daemon.process.terminate()
    try:
        daemon.process.wait(1.0)
    except subprocess.TimeoutExpired:
        daemon.process.terminate()
        daemon.process.wait(20.0)
