"""A clock that is set loses no result and no key; a daemon that stood still blames no healthy worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Daemon, Peer, Start

DAY_S = 86_400
#: A job of a second and a half, in a piece every twentieth of it.
SLOW: dict[str, Any] = {"seconds": 3.0, "segments": 20, "rtf": 0.5}


class DaemonWithAClock(Daemon):
    program = (str(Path(__file__).with_name("daemon_with_a_clock.py")),)

    def set_clock(self, ahead_s: float) -> None:
        """Set the machine's clock, in one step."""
        new = self.clock.with_name("clock.new")
        new.write_text(str(ahead_s))
        new.rename(self.clock)

    @property
    def clock(self) -> Path:
        return Path(self.environment["CLOCK_IS_AHEAD"])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonWithAClock]:
    """One whose machine starts three days in the past."""
    clock = tmp_path / "clock"
    clock.write_text(str(-3 * DAY_S))
    daemon = DaemonWithAClock({"queue": {"keep_results_s": 0.1}}, {"CLOCK_IS_AHEAD": str(clock)})
    try:
        daemon.until_ready()
        yield daemon
        daemon.stop()
    finally:
        daemon.clear_away()


def test_what_was_made_before_and_after_the_clock_was_set_is_kept_over_a_restart(daemon: DaemonWithAClock) -> None:
    client = daemon.client()
    jobs = {}

    def make(key: str) -> None:
        done, audio = client.speak(f"sentence {key}", durable=True, key=key)
        jobs[key] = done["job"], audio

    make("before")
    for ahead_s in (0, 2 * DAY_S, 0):
        daemon.set_clock(ahead_s)
        make(f"set to {ahead_s} after {len(jobs)}")
    slow = client.send("synthesize", text="slow", priority="batch", deadline_s=60.0, options=SLOW)
    job = client.until(slow, "accepted")["job"]
    assert [alert["name"] for alert in daemon.status()["alerts"]] == ["clock"]
    daemon.until_logged("set forward by 3 d", "by_s=-172800")
    daemon.kill()
    daemon.set_clock(9 * DAY_S)
    daemon.restart()
    daemon.until_logged("was set by +777600 s while no daemon ran")
    again = daemon.client()
    for key, (made, audio) in jobs.items():
        assert again.speak(f"sentence {key}", durable=True, key=key)[0]["job"] == made
        assert again.all(again.send("wait", job=made))[1] == audio
    assert again.ask("wait", job=job)["event"] == "done"


def stopped(pids: list[int], seconds: float) -> None:
    """Have processes stand still, as ``docker pause`` and a suspend do."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def speaks(client: Peer, text: str) -> str:
    id = client.send("synthesize", text=text, stream=True, options=SLOW)
    client.until(id, "audio")
    return id


def test_a_service_that_stood_still_for_longer_than_a_hang_goes_on_with_its_jobs(start: Start) -> None:
    daemon = start(workers={"hang_timeout_s": 1.0}, queue={"default_deadline_s": 600.0})
    client = daemon.client()
    (worker,) = daemon.workers()
    for pids in ([daemon.process.pid, worker["pid"]], [daemon.process.pid]):
        id = speaks(client, "the same text each time")
        stopped(pids, 1.6)
        done = client.until(id, "done")
        assert done["attempts"] == 1
    (after,) = daemon.workers()
    assert (after["pid"], after["restarts"]) == (worker["pid"], 0)
    id = speaks(client, "a worker that stands still alone")
    os.kill(worker["pid"], signal.SIGSTOP)
    # Its stream goes on in another process.
    assert client.until(id, "done")["attempts"] == 2
