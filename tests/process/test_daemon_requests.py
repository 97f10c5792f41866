"""What a client may ask of its jobs and of the daemon: waiting, cancelling, deadlines, repeating, files, priorities."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from .conftest import Daemon, Peer, Start

#: A job that takes its time, and moves.
SLOW: dict[str, Any] = {"seconds": 20.0, "rtf": 1.0}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(
        engine={"name": "fault"},
        queue={"warn_waiting": 2, "keep_results_mib": 2},
        audio={"default_format": "flac"},
        limits={"recording_max_s": 20.0},
    )


@pytest.fixture
def other(daemon: Daemon) -> Iterator[Peer]:
    """A second connection of the same user."""
    with contextlib.closing(daemon.client()) as peer:
        yield peer


@pytest.fixture
def busy(daemon: Daemon, other: Peer) -> Iterator[str]:
    """The one worker is busy, with this job, as long as the test does not cancel it."""
    id = other.send("synthesize", text="the one before", options=SLOW)
    job = other.until(id, "started")["job"]
    yield job
    other.ask("cancel", job=job)
    daemon.until(lambda: not other.ask("jobs", state="running")["jobs"], "the worker is free again")


def submit(client: Peer, **keys: Any) -> tuple[str, str]:
    """Send a job: the request's id and the job's name."""
    id = client.send("synthesize", **({"text": "hello"} | keys))
    return id, client.until(id, "accepted")["job"]


# --- about the daemon


def test_info_tells_what_the_daemon_can_do(client: Peer) -> None:
    info = client.ask("info")
    assert info["engine"] == "fault" and info["protocol"] == 1 and info["ready"] is True
    assert info["sample_rate"] == 24_000 and info["sample_rates"] == [24_000, 32_000]
    assert {"wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le", "wav_ulaw"} <= set(info["formats"])
    assert {"on_behalf_of", "streams"} <= set(info["features"])
    assert info["default_voice"] == "tone" and info["clones_voices"] is True
    assert info["limits"]["text_chars"] == 5_000 and info["limits"]["recording_max_s"] == 20.0
    assert "fault" in str(info["options"])
    assert [v["name"] for v in info["voices"]] == [v["name"] for v in client.ask("voices")["voices"]]


def test_the_operator_s_default_format_is_used_and_named(client: Peer) -> None:
    done, audio = client.speak()
    assert done["format"] == "flac" and audio[:4] == b"fLaC"


# --- about jobs


def test_a_job_can_be_looked_at_while_it_waits_runs_and_after(client: Peer, busy: str) -> None:
    id, job = submit(client)
    waiting = client.ask("job", job=job)
    assert (waiting["state"], waiting["position"], waiting["attempts"]) == ("waiting", 0, 0)
    running = client.ask("job", job=busy)
    assert (running["state"], running["worker"], running["attempts"]) == ("running", "w0", 1)
    assert waiting["text_length"] == 5 and waiting["priority"] == "interactive" and "client" not in waiting
    assert abs(waiting["created"] - time.time()) < 5
    client.ask("cancel", job=busy)
    client.all(id)
    done = client.ask("job", job=job)
    assert done["state"] == "done" and done["audio_s"] > 0 and "position" not in done


def test_jobs_are_listed_newest_first_by_state_and_up_to_a_limit(client: Peer, busy: str) -> None:
    waiting = [submit(client, text=f"job {n}")[1] for n in range(3)]
    assert [j["job"] for j in client.ask("jobs", state="waiting")["jobs"]] == waiting[::-1]
    assert [j["job"] for j in client.ask("jobs", state="running")["jobs"]] == [busy]
    assert [j["job"] for j in client.ask("jobs", limit=2)["jobs"]] == waiting[:0:-1]
    for job in waiting:
        client.ask("cancel", job=job)
    assert [j["job"] for j in client.ask("jobs", state="cancelled", limit=3)["jobs"]] == waiting[::-1]


def test_a_job_can_be_waited_for_from_another_connection(client: Peer, other: Peer, daemon: Daemon) -> None:
    id, job = submit(client, options={"seconds": 0.6, "segments": 3, "rtf": 0.5}, format="wav")
    events, audio = other.all(other.send("wait", job=job))
    assert {"progress", "done"} <= {e["event"] for e in events} and events[-1]["job"] == job
    own, own_audio = client.all(id)
    assert own[-1]["sha256"] == events[-1]["sha256"] == hashlib.sha256(audio).hexdigest() and own_audio == audio
    late, late_audio = other.all(other.send("wait", job=job, events="final"))
    assert [e["event"] for e in late] == ["done"] and late_audio == audio
    req = daemon.client(zmq.REQ)
    req.send("wait", job=job)
    event, body = req.receive()
    assert event["event"] == "done" and body == audio


# --- cancelling


def test_a_running_job_can_be_cancelled_and_the_worker_goes_on(client: Peer, other: Peer) -> None:
    id = client.send("synthesize", text="hello", options=SLOW)
    started = client.until(id, "started")
    asked = time.monotonic()
    assert other.ask("cancel", job=started["job"])["state"] == "cancelled"
    assert client.all(id)[0][-1]["code"] == "cancelled"
    client.speak()
    assert time.monotonic() - asked < 2
    assert other.ask("cancel", job=started["job"])["state"] == "cancelled"


# --- deadlines


def test_a_deadline_passes_while_the_job_runs(client: Peer) -> None:
    begun = time.monotonic()
    error = client.refused("synthesize", text="late", deadline_s=0.3, options=SLOW)
    assert error["code"] == "deadline_exceeded" and 0.3 <= time.monotonic() - begun < 2
    client.speak(deadline_s=20)


# --- repeating


def test_the_same_key_is_never_spoken_twice(client: Peer, other: Peer) -> None:
    first, audio = client.speak("once", key="k1", format="wav")
    events, again = other.all(other.send("synthesize", text="once", key="k1", format="wav"))
    assert events[0]["event"] == "accepted" and events[-1]["job"] == first["job"] and again == audio


# --- files


def test_an_output_is_written_once_and_never_over_another(daemon: Daemon, client: Peer) -> None:
    done, audio = client.speak("to a file", output="a 今天.wav", format="wav")
    path = Path(done["path"])
    assert audio == b"" and path == daemon.state / "outputs" / "a 今天.wav"
    assert path.stat().st_size == done["bytes"] and hashlib.sha256(path.read_bytes()).hexdigest() == done["sha256"]
    error = client.refused("synthesize", text="another", output="a 今天.wav")
    assert error["code"] == "output_exists" and not error["retryable"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == done["sha256"]
    daemon.until(lambda: not [other for other in path.parent.iterdir() if other.name.startswith(".")], "no mark stays")


def test_a_folder_that_is_gone_is_named_and_nothing_stays(daemon: Daemon, client: Peer) -> None:
    folder = daemon.state / "outputs"
    moved = folder.rename(daemon.state / "elsewhere")
    try:
        error = client.refused("synthesize", text="hello", output="nowhere.wav")
        assert error["code"] == "output_failed" and str(folder) in error["message"]
    finally:
        moved.rename(folder)
    client.speak(output="somewhere.wav")
    daemon.until(lambda: not [path for path in folder.iterdir() if path.name.startswith(".")], "no mark stays")


# --- other users


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can switch users")
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_user_sees_and_ends_its_own_jobs_alone(start: Start) -> None:
    daemon = start(daemon={"socket_mode": "0666"})
    owner = daemon.client()
    _, job = submit(owner, options=SLOW)
    with another_user():
        # The kernel notes who connects, when it does.
        stranger = daemon.client()
        assert stranger.ask("ping")["event"] == "pong"
    for op in ("job", "wait", "cancel"):
        error = stranger.refused(op, job=job)
        assert error["code"] == "job_not_found" and error["message"] == stranger.refused(op, job=job)["message"]
    assert stranger.ask("jobs")["jobs"] == []
    assert stranger.refused("synthesize", text="me first", priority="vip")["code"] == "forbidden"
    own = submit(stranger)[1]
    assert [j["job"] for j in stranger.ask("jobs")["jobs"]] == [own]
    assert {j["client"] for j in daemon.control("jobs")["jobs"]} == {"uid:0", "uid:65534"}
    owner.ask("cancel", job=job)


def test_sockets_are_open_to_those_who_may_use_them(daemon: Daemon) -> None:
    modes = {
        p.name: stat.S_IMODE(p.stat().st_mode) for p in daemon.runtime.iterdir() if stat.S_ISSOCK(p.stat().st_mode)
    }
    assert modes == {"glmtts.sock": 0o660, "control.sock": 0o600, "events.sock": 0o600, "workers.sock": 0o600}
    assert not stat.S_IMODE(daemon.runtime.stat().st_mode) & 0o022
