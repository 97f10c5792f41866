"""A worker that speaks for many dies of one: that one is quarantined, and the others are done."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import Daemon, Event, Peer, Start

N = 16
#: Of each healthy job where 15 of them have to be spoken one after the other.
AUDIO_S = 0.1


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    restart = {"backoff_initial_s": 0.02, "backoff_max_s": 0.05, "breaker_failures": 100}
    return start_shared(
        engine={"fault": {"slots": N}},
        workers={"max": 1, "hang_timeout_s": 1.5, "stop_timeout_s": 0.3, "restart": restart},
    )


@dataclass
class Batch:
    """What became of jobs that a worker began side by side."""

    #: The last events of the healthy ones, and that of the bad one.
    healthy: list[Event]
    bad: Event
    #: How many processes ended meanwhile, and the seconds until the last job had ended.
    deaths: int
    took_s: float

    @property
    def attempts(self) -> set[int]:
        """How often the healthy ones were begun."""
        return {event["attempts"] for event in self.healthy}


def restarts(daemon: Daemon) -> int:
    (worker,) = daemon.workers()
    return int(worker["restarts"])


@contextlib.contextmanager
def begun_at_once(daemon: Daemon, client: Peer, ids: list[str]) -> Iterator[int]:
    """Have the worker get these jobs all at once, and stand still meanwhile; yields its pid."""
    for id in ids:
        client.until(id, "accepted")
    (worker,) = daemon.workers()
    os.kill(worker["pid"], signal.SIGSTOP)
    daemon.control("resume")
    for id in ids:
        client.until(id, "started")
    yield worker["pid"]
    os.kill(worker["pid"], signal.SIGCONT)


def side_by_side(daemon: Daemon, client: Peer, name: str, audio_s: float = 0.3, **bad: Any) -> Batch:
    """Have 15 healthy jobs spoken, and a bad one among them."""
    before = restarts(daemon)
    daemon.control("pause")
    healthy = {"seconds": audio_s, "rtf": 1.0}
    options = [healthy] * 5 + [bad] + [healthy] * (N - 6)
    ids = [client.send("synthesize", text=f"{name} {n}", options=each) for n, each in enumerate(options)]
    with begun_at_once(daemon, client, ids):
        begun = time.monotonic()
    ends = [client.all(id)[0][-1] for id in ids]
    took_s = time.monotonic() - begun
    daemon.until_ready()
    assert all(event["event"] == "done" for event in ends[:5] + ends[6:]), ends
    return Batch(ends[:5] + ends[6:], ends[5], restarts(daemon) - before, took_s)


def blamed(daemon: Daemon) -> list[str]:
    """The jobs whose contents are quarantined."""
    held = [each["job"] for each in daemon.control("quarantine")["quarantined"]]
    daemon.control("quarantine", clear="all")
    return held


def test_one_of_sixteen_kills_every_worker_that_speaks_it_and_fifteen_are_done(daemon: Daemon, client: Peer) -> None:
    batch = side_by_side(daemon, client, "poison", AUDIO_S, fault="kill", shared=True, recorded=False)
    assert batch.bad["code"] == "worker_crashed" and batch.deaths == 3, batch
    assert batch.attempts == {2}
    again = client.refused("synthesize", text="poison 5", options={"fault": "kill", "shared": True, "recorded": False})
    assert again["code"] == "quarantined"
    assert blamed(daemon) == [batch.bad["job"]]
    # 15 sentences one after the other, and three starts of a process.
    print(f"15 healthy jobs beside one that kills its workers: {batch.took_s:.2f} s, {AUDIO_S:.2f} s without it")


@pytest.mark.parametrize(
    ("fault", "code", "deaths"),
    [
        ({"fault": "kill"}, "worker_crashed", 2),
        ({"fault": "segv", "after_segments": 1, "seconds": 0.1}, "worker_crashed", 2),
        ({"fault": "hang"}, "hung", 2),
        ({"fault": "beat_still"}, "hung", 2),
        ({"fault": "runaway"}, "hung", 2),
        ({"fault": "oom"}, "out_of_memory", 2),
        ({"fault": "raise"}, "synthesis_failed", 0),
        ({"fault": "raise", "after_segments": 1, "seconds": 0.1}, "synthesis_failed", 0),
        ({"fault": "nan"}, "synthesis_failed", 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_job_that_is_named_pays_and_the_others_go_on_together(
    daemon: Daemon, client: Peer, fault: dict[str, Any], code: str, deaths: int
) -> None:
    batch = side_by_side(daemon, client, f"named {fault}", **fault)
    assert (batch.bad["code"], batch.deaths) == (code, deaths), batch
    # Before it is known that a job stands still or has no end, the others are done.
    assert batch.attempts == ({2} if deaths and fault["fault"] not in ("beat_still", "runaway") else {1})
    assert blamed(daemon) == ([batch.bad["job"]] if code in ("worker_crashed", "hung") else [])


@pytest.mark.parametrize(("fault", "code"), [("hang", "hung"), ("raise", "worker_crashed")])
def test_a_step_that_all_share_fails_and_none_but_the_cause_is_blamed(
    daemon: Daemon, client: Peer, fault: str, code: str
) -> None:
    batch = side_by_side(daemon, client, f"shared {fault}", AUDIO_S, fault=fault, shared=True)
    assert (batch.bad["code"], batch.deaths, batch.attempts) == (code, 3, {2}), batch
    assert blamed(daemon) == [batch.bad["job"]]


def test_memory_that_many_have_used_up_halves_the_slots_until_an_operator_replaces_the_process(
    daemon: Daemon, client: Peer
) -> None:
    batch = side_by_side(daemon, client, "shared oom", AUDIO_S, fault="oom", shared=True)
    assert (batch.bad["code"], batch.attempts) == ("out_of_memory", {2}), batch
    daemon.until_ready()
    (worker,) = daemon.workers()
    assert worker["slots"] == N // 2 and f"{N // 2} at once" in worker["reason"]
    daemon.control("recycle", worker=worker["name"])
    daemon.until(lambda: [w["slots"] for w in daemon.workers()] == [N], "all slots are back")
    assert not blamed(daemon)


def test_a_worker_that_is_killed_from_outside_takes_no_job_with_it(daemon: Daemon, client: Peer) -> None:
    daemon.control("pause")
    ids = [client.send("synthesize", text=f"outside {n}", options={"seconds": 0.1}) for n in range(N)]
    with begun_at_once(daemon, client, ids) as pid:
        os.kill(pid, signal.SIGKILL)
    ends = [client.all(id)[0][-1] for id in ids]
    assert all(event["event"] == "done" and event["attempts"] == 2 for event in ends), ends
    assert not blamed(daemon)


def recorders(daemon: Daemon) -> list[str]:
    """The flight recorders that the daemon has open."""
    links = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that has just ended
            links.append(str(entry.readlink()))
    return [link for link in links if "glmtts-flight-recorder" in link]


def test_each_process_has_one_flight_recorder_and_none_is_left_open(daemon: Daemon, client: Peer) -> None:
    for _ in range(3):
        client.speak("the next")
        (worker,) = daemon.workers()
        os.kill(worker["pid"], signal.SIGKILL)
        daemon.until(lambda pid=worker["pid"]: daemon.workers()[0]["pid"] not in (pid, None), "it is replaced")  # type: ignore[misc]
        daemon.until_ready()
    assert len(recorders(daemon)) == 1
