"""Workers that fail in every way: the client gets a named answer, and other clients notice nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Daemon, Peer, Start

SLOW: dict[str, Any] = {"seconds": 20.0, "rtf": 1.0}

#: The error code for each fault, the number of attempts, and words of the message.
ANSWERS = {
    "raise": ("synthesis_failed", 1, "the fault that was asked for"),
    "exit": ("worker_crashed", 2, "status 3"),
    "segv": ("worker_crashed", 2, "SIGSEGV"),
    "abort": ("worker_crashed", 2, "SIGABRT"),
    "kill": ("worker_crashed", 2, "SIGKILL"),
    "garbage": ("worker_crashed", 2, "protocol violation"),
    "oom": ("out_of_memory", 2, "memory"),
    "hang": ("hung", 2, "no progress"),
    "hang_gil": ("hung", 2, "no progress"),
}
RETRYABLE = {"worker_crashed", "hung"}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    restart = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50}
    return start_shared(
        workers={"max": 2, "hang_timeout_s": 1.0, "stop_timeout_s": 0.3, "restart": restart},
    )


def fails(client: Peer, fault: str, text: str, **keys: Any) -> tuple[list[Any], Any]:
    options = {"fault": fault} | keys.pop("options", {})
    events, _ = client.all(client.send("synthesize", text=text, options=options, **keys))
    assert events[-1]["event"] == "error", events[-1]
    return events, events[-1]


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_fault_has_its_answer_and_the_next_job_is_spoken(daemon: Daemon, client: Peer, fault: str) -> None:
    code, attempts, words = ANSWERS[fault]
    begun = time.monotonic()
    events, error = fails(client, fault, f"this {fault}")
    assert error["code"] == code and error["retryable"] is (code in RETRYABLE), error
    assert words in error["message"]
    assert [e["attempt"] for e in events if e["event"] == "started"] == list(range(1, attempts + 1))
    if fault in ("hang", "hang_gil"):
        assert 2.0 <= time.monotonic() - begun < 12.0
    client.speak("the next job")
    daemon.until_ready()


def test_a_job_that_killed_two_workers_kills_no_third(daemon: Daemon, client: Peer) -> None:
    fails(client, "segv", "poison")
    before = sum(w["restarts"] for w in daemon.workers())
    error = client.refused("synthesize", text="poison", options={"fault": "segv"})
    assert error["code"] == "quarantined" and not error["retryable"]
    assert sum(w["restarts"] for w in daemon.workers()) == before
    client.speak("poison")


@pytest.mark.parametrize("fault", ["leak_ram", "flood_stdout", "sleep", "audio"])
def test_a_harmless_fault_does_not_fail_its_job(daemon: Daemon, client: Peer, fault: str) -> None:
    with daemon.still_serves():
        options = {"fault": fault, "mib": 20, "seconds": 0.2}
        done, audio = client.speak(f"with {fault}", options=options)
        assert done["attempts"] == 1 and audio[:4] == b"RIFF"


def test_a_leak_on_a_gpu_that_is_not_there_is_refused_by_name(client: Peer) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    _, error = fails(client, "leak_vram", "leak")
    assert error["code"] == "bad_request" and "leak_vram" in error["message"]


def test_a_killed_worker_costs_its_job_a_moment_and_others_nothing(daemon: Daemon) -> None:
    victim, bystander = daemon.client(), daemon.client()
    alone, _ = bystander.speak("bystander", stream=True, options={"seconds": 1.5, "segments": 3, "rtf": 0.0})
    ids = [
        victim.send("synthesize", text="victim", options={"seconds": 0.4, "rtf": 2.0}),
        bystander.send(
            "synthesize", text="bystander", stream=True, options={"seconds": 1.5, "segments": 3, "rtf": 0.8}
        ),
    ]
    started = victim.until(ids[0], "started")
    os.kill(daemon.worker_of(started), signal.SIGKILL)
    killed = time.monotonic()
    again = victim.until(ids[0], "started")
    # Not the second that it takes on an idle machine, but far from the minute of a hang.
    assert time.monotonic() - killed < 10 and again["attempt"] == 2
    events, audio = victim.all(ids[0])
    assert events[-1]["event"] == "done" and events[-1]["attempts"] == 2 and audio[:4] == b"RIFF"
    theirs, _ = bystander.all(ids[1])
    assert theirs[-1]["sha256"] == alone["sha256"] and theirs[-1]["attempts"] == 1
    assert [e["event"] for e in theirs].count("started") == 1
    victim.speak("the next")
    death = next(w["last_death"] for w in daemon.workers() if w["name"] == started["worker"])
    assert death["cause"] == "crashed" and "SIGKILL" in death["detail"]


@pytest.mark.parametrize("fault", ["segv", "hang"])
def test_a_stream_that_was_heard_in_part_is_tried_again_and_sends_no_part_twice(client: Peer, fault: str) -> None:
    options = {"seconds": 0.4, "segments": 2, "after_segments": 1}
    events, error = fails(client, fault, f"half {fault}", stream=True, options=options)
    assert error["code"] == ("hung" if fault == "hang" else "worker_crashed")
    assert [e["event"] for e in events].count("started") == 2
    assert [e["seq"] for e in events if e["event"] == "audio"] == [0]


def test_a_worker_that_is_stopped_from_outside_is_taken_for_hung(daemon: Daemon, client: Peer) -> None:
    id = client.send("synthesize", text="frozen", options={"seconds": 0.5, "rtf": 1.0})
    os.kill(daemon.worker_of(client.until(id, "started")), signal.SIGSTOP)
    done = client.all(id)[0][-1]
    assert done["event"] == "done" and done["attempts"] == 2


def test_a_killed_idle_worker_is_replaced_before_the_next_job(daemon: Daemon, client: Peer) -> None:
    daemon.until_ready()
    before = {w["name"]: w["pid"] for w in daemon.workers()}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    daemon.until(lambda: not set(before.values()) & {w["pid"] for w in daemon.workers()}, "their end is noticed")
    done, _ = client.speak("after all of them died")
    assert done["attempts"] == 1
    daemon.until_ready()
    assert not set(before.values()) & {w["pid"] for w in daemon.workers()}


# --- at the start


def test_a_slow_start_is_waited_for(start: Start) -> None:
    daemon = start(wait=False, engine={"name": "fault", "fault": {"start": "slow", "start_s": 0.7}})
    daemon.until((daemon.runtime / "glmtts.sock").exists, "the socket is there")
    client = daemon.client()
    assert client.ask("info")["ready"] is False
    done, audio = client.speak("early")
    assert done["waited_s"] > 0.2 and audio[:4] == b"RIFF"


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_an_engine_that_never_starts_is_unavailable_and_says_why(start: Start, how: str) -> None:
    restart = {"backoff_initial_s": 0.02, "backoff_max_s": 0.2, "breaker_failures": 2}
    timeout_s = 0.4 if how == "hang" else 20.0
    workers = {"start_timeout_s": timeout_s, "stop_timeout_s": 0.2, "restart": restart}
    daemon = start(wait=False, engine={"name": "fault", "fault": {"start": how}}, workers=workers)
    client = daemon.client()
    # Accepted before the first failure.
    error = client.refused("synthesize", text="early")
    assert error["code"] == "unavailable" and error["retryable"] and error["retry_after_s"] > 0
    assert ("SIGSEGV" if how == "crash" else "not ready") in error["message"]
    later = client.refused("synthesize", text="later")
    assert later["code"] == "unavailable"
    status = daemon.status()
    assert status["alerts"] and client.ask("ping")["event"] == "pong"
    assert client.ask("info")["ready"] is False


def test_an_interpreter_that_can_t_run_the_worker_is_unavailable(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no torch here' >&2\nexit 5\n")
    script.chmod(0o755)
    restart = {"backoff_initial_s": 0.02, "backoff_max_s": 0.2, "breaker_failures": 2}
    daemon = start(wait=False, engine={"name": "fault", "python": str(script)}, workers={"restart": restart})
    error = daemon.client().refused("synthesize", text="hello")
    assert error["code"] == "unavailable" and "no torch here" in error["message"] and "5" in error["message"]


# --- the daemon itself is killed


@pytest.mark.parametrize("state", ["hang_gil", "hang", "starting"])
def test_no_worker_outlives_a_killed_daemon(start: Start, state: str) -> None:
    slow = {"fault": {"start": "hang"}} if state == "starting" else {}
    daemon = start(wait=state != "starting", engine={"name": "fault"} | slow, workers={"max": 2})
    daemon.until(lambda: len(daemon.processes()) == 3, "the workers' processes are there")
    client = daemon.client()
    if state == "starting":
        # A process that does not know of its daemon yet is killed as its child: both are meant here.
        daemon.status()
    else:
        options = {"fault": state, "after_segments": 1, "seconds": 0.2}
        client.until(client.send("synthesize", text="hello", stream=True, options=options), "audio")
    daemon.kill()
    daemon.until_nothing_is_left(1.0)


def test_a_killed_daemon_s_successor_takes_its_place(start: Start) -> None:
    daemon = start()
    waiting = daemon.client()
    job = waiting.until(waiting.send("synthesize", text="lost", options=SLOW), "started")["job"]
    daemon.kill()
    assert (daemon.runtime / "glmtts.sock").exists()
    daemon.restart()
    with contextlib.closing(daemon.client()) as client:
        client.speak("after the crash")
    # The old socket has connected itself again, and finds a daemon that knows nothing of its job.
    assert waiting.refused("wait", job=job)["code"] == "job_not_found"
