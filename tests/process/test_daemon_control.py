"""What an operator can see and do while the daemon runs, and that users notice nothing that they need not."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import soundfile
import zmq

from .conftest import Daemon, Peer, Start

SLOW: dict[str, Any] = {"seconds": 20.0, "rtf": 1.0}


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared(workers={"max": 2})


def recording(seconds: float = 2.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(int(seconds * 16_000)) * 0.1), 16_000, format="WAV")
    return buffer.getvalue()


# --- looking


def test_status_tells_how_the_daemon_stands(daemon: Daemon, client: Peer) -> None:
    before = daemon.status()
    client.speak()
    client.refused("synthesize", text="x", options={"fault": "raise"})
    status = daemon.status()
    assert status["state"] == "running" and status["engine"] == "fault" and status["alerts"] == []
    assert status["pid"] == daemon.process.pid and status["workers"]["total"] == 2
    assert status["counts"]["accepted"] == before["counts"]["accepted"] + 2
    assert status["counts"]["done"] == before["counts"]["done"] + 1
    assert status["counts"]["ended"]["synthesis_failed"] == 1
    assert status["memory"]["rss"] / 2**20 == pytest.approx(daemon.rss_mib, rel=0.2)
    assert status["internal_errors"] == 0 and status["connections"] >= 1
    assert daemon.rss_mib < 45, "the supervisor is small"


def test_workers_are_shown_with_their_processes(daemon: Daemon, client: Peer) -> None:
    workers = daemon.workers()
    assert [w["name"] for w in workers] == ["w0", "w1"]
    for worker in workers:
        assert worker["state"] == "ready" and worker["gpu"] is None and worker["rss"] > 10 << 20
        os.kill(worker["pid"], 0)
    id = client.send("synthesize", text="hello", options=SLOW)
    started = client.until(id, "started")
    busy = next(w for w in daemon.workers() if w["name"] == started["worker"])
    assert busy["state"] == "busy" and busy["jobs"] == [started["job"]]
    client.ask("cancel", job=started["job"])


def test_the_configuration_in_force_can_be_read(daemon: Daemon) -> None:
    answer = daemon.control("config")
    assert answer["file"] == str(daemon.file)
    assert answer["config"]["workers"]["max"] == 2 and answer["config"]["workers"]["hang_timeout_s"] == 60.0


def test_an_invalid_operation_is_refused_by_name(daemon: Daemon) -> None:
    operator = daemon.operator()
    for op in ("synthesize", "dance"):
        error = operator.refused(op, text="hello")
        assert error["code"] == "bad_request" and error["message"].startswith("op")
    assert operator.refused("recycle", worker="w9")["message"].startswith("worker")
    assert operator.refused("drain", timeout_s=0)["message"].startswith("timeout_s")
    assert operator.refused("log_level", level="loud")["message"].startswith("level")
    assert operator.refused("status", b"body")["message"].startswith("body")
    for frame in (b"", b"\xc1", b"\xff" * 100):
        operator.socket.send_multipart([frame, frame])
        assert msgpack.unpackb(operator.socket.recv_multipart()[-1])["code"] == "bad_request"
    assert operator.ask("ping")["event"] == "pong"


def test_an_operator_can_use_a_req_socket(daemon: Daemon) -> None:
    req: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    with contextlib.closing(req):
        req.linger = 0
        req.connect(daemon.control_endpoint)
        for op in ("status", "workers"):
            req.send(msgpack.packb({"v": 1, "op": op, "id": "1"}))
            assert req.poll(5_000) and msgpack.unpackb(req.recv())["event"] == "result"


# --- doing


def replaced(daemon: Daemon, before: set[int]) -> None:
    """Wait until none of these processes serves, and as many others do."""

    def are_others() -> bool:
        workers = daemon.workers()
        ready = [w for w in workers if w["state"] in ("ready", "busy")]
        return len(ready) == len(workers) == 2 and not before & {w["pid"] for w in workers}

    daemon.until(are_others, "the workers are replaced")


def test_a_worker_is_recycled_after_its_job(daemon: Daemon, client: Peer) -> None:
    id = client.send("synthesize", text="unhurt", options={"seconds": 0.5, "rtf": 1.0})
    name = client.until(id, "started")["worker"]
    before = {w["name"]: w for w in daemon.workers()}
    assert daemon.control("recycle", worker=name)["recycled"] == [name]
    assert client.all(id)[0][-1]["attempts"] == 1
    replaced(daemon, {before[name]["pid"]})
    other = next(n for n in before if n != name)
    (successor,) = [w for w in daemon.workers() if w["name"] != other]
    assert successor["last_death"]["cause"] == "operator" and successor["restarts"] == before[name]["restarts"] + 1
    assert next(w["pid"] for w in daemon.workers() if w["name"] == other) == before[other]["pid"]


def test_all_workers_are_recycled_and_no_job_is_lost(daemon: Daemon, client: Peer) -> None:
    before = {w["name"]: w["pid"] for w in daemon.workers()}
    ids = [client.send("synthesize", text=f"job {n}", options={"seconds": 0.2, "rtf": 0.5}) for n in range(6)]
    assert sorted(daemon.control("recycle", worker="all")["recycled"]) == sorted(before)
    assert [client.all(id)[0][-1]["event"] for id in ids] == ["done"] * 6
    replaced(daemon, set(before.values()))


def test_workers_are_added_and_taken_away_while_jobs_are_spoken(daemon: Daemon, client: Peer) -> None:
    ids = [client.send("synthesize", text=f"job {n}", options={"seconds": 0.2, "rtf": 0.5}) for n in range(8)]
    answer = daemon.control("scale", min=3, max=3)
    assert (answer["min"], answer["max"], answer["workers"]) == (3, 3, 3)
    daemon.until_ready(3)
    assert daemon.control("scale", min=2, max=2)["workers"] == 2
    assert {client.all(id)[0][-1]["attempts"] for id in ids} == {1}
    daemon.until(lambda: len(daemon.workers()) == 2, "one worker is gone")
    assert "min" in daemon.control("scale", min=3)["message"]


def test_a_drain_is_answered_when_the_last_job_is_done_and_resume_ends_it(daemon: Daemon, client: Peer) -> None:
    operator = daemon.operator()
    with daemon.workers_stand_still():
        id = client.send("synthesize", text="the last")
        client.until(id, "started")
        asked = operator.send("drain")
        daemon.until(lambda: daemon.status()["state"] == "draining", "it drains")
        error = client.refused("synthesize", text="too late")
        assert error["code"] == "shutting_down" and error["retryable"]
    assert operator.all(asked)[0][-1]["drained"] is True and client.all(id)[0][-1]["event"] == "done"
    assert daemon.status()["state"] == "drained" and daemon.control("drain")["drained"] is True
    daemon.control("resume")
    client.speak()


def test_the_log_can_be_made_to_say_more(daemon: Daemon, client: Peer) -> None:
    assert daemon.control("log_level", level="debug")["level"] == "debug"
    done, _ = client.speak()
    daemon.until(lambda: f"job accepted job={done['job']}" in daemon.log(), "every step is in the log")
    daemon.control("log_level", level="info")
    done, _ = client.speak()
    assert f"job accepted job={done['job']}" not in daemon.log()


# --- voices


def test_a_registered_voice_can_be_spoken_with_until_it_is_removed(daemon: Daemon, client: Peer) -> None:
    added = daemon.control("voice_add", recording(), name="my-voice", text="what is said", description="mine")
    assert added["event"] == "result" and added["name"] == "my-voice" and added["seconds"] == 2.0
    assert "my-voice" in [v["name"] for v in client.ask("voices")["voices"]]
    done, _ = client.speak("hello", voice="my-voice")
    prompted, _ = client.speak("hello", recording(), prompt={"text": "what is said"})
    assert done["voice"] == "my-voice" and done["sha256"] == prompted["sha256"]
    again = daemon.control("voice_add", recording(), name="my-voice", text="other words")
    assert again["event"] == "error" and "replace" in again["message"]
    daemon.control("voice_add", recording(), name="my-voice", text="other words", replace=True)
    assert client.speak("hello", voice="my-voice")[0]["sha256"] != done["sha256"]
    assert daemon.control("voice_remove", name="my-voice")["removed"] is True
    assert client.refused("synthesize", text="hello", voice="my-voice")["code"] == "voice_not_found"
    assert daemon.control("voice_remove", name="my-voice")["code"] == "voice_not_found"


@pytest.mark.parametrize(
    ("body", "keys", "code"),
    [
        (b"RIFF" + b"\0" * 100, {}, "bad_audio"),
        (recording(0.2), {}, "bad_audio"),
        (recording(), {"name": "../up"}, "bad_request"),
    ],
)
def test_a_bad_voice_is_not_registered(daemon: Daemon, body: bytes | None, keys: dict[str, str], code: str) -> None:
    before = daemon.control("status")
    error = daemon.control("voice_add", body, **({"name": "bad", "text": "said"} | keys))
    assert error["event"] == "error" and error["code"] == code, error
    assert not (daemon.state / "voices" / "bad").exists() and before["pid"] == daemon.status()["pid"]


# --- the configuration


def test_a_reload_applies_what_it_can_and_names_what_needs_a_restart(start: Start) -> None:
    daemon = start()
    client = daemon.client()
    daemon.configure(
        {
            "daemon": {"log_format": "json"},
            "limits": {"text_chars": 10, "rate": "1/hour"},
            "workers": {"hang_timeout_s": 7.0},
        }
    )
    answer = daemon.control("reload")
    assert sorted(answer["applied"]) == ["daemon.log_format", "limits.rate", "workers.hang_timeout_s"]
    assert (answer["rolling"], answer["restart_needed"]) == ([], ["limits.text_chars"])
    config = daemon.control("config")["config"]
    assert config["workers"]["hang_timeout_s"] == 7.0 and config["limits"]["text_chars"] == 5_000
    client.speak("a text of more than ten characters")
    daemon.until(lambda: '"message":"job done"' in daemon.log(), "a line in JSON")
    assert client.refused("synthesize", text="second")["code"] == "rate_limited"


def test_a_reload_that_takes_fresh_workers_loses_no_job_and_leaves_no_gap(start: Start) -> None:
    daemon = start(workers={"max": 2})
    client = daemon.client()
    before = {worker["pid"] for worker in daemon.workers()}
    spoken = [client.send("synthesize", text=f"{n}", options={"segments": 4, "rtf": 0.5}) for n in range(8)]
    client.until(spoken[1], "started")
    daemon.configure(
        {"workers": {"max": 2}, "engine": {"warmup_text": "b", "fault": {"start": "slow", "start_s": 0.1}}}
    )
    answer = daemon.control("reload")
    assert answer["rolling"] == ["engine.warmup_text", "engine.fault.start", "engine.fault.start_s"]
    assert answer["workers"] == ["w0", "w1"]
    assert [client.all(id)[0][-1]["event"] for id in spoken] == ["done"] * 8

    def renewed() -> bool:
        counts = daemon.status()["workers"]
        assert counts["ready"] + counts["busy"] >= 1, "a worker is always ready"
        return counts["total"] == counts["ready"] == 2 and not before & {w["pid"] for w in daemon.workers()}

    daemon.until(renewed, "both workers are fresh")


def test_a_relative_configuration_path_is_reported_as_an_absolute_one(start: Start) -> None:
    daemon = start()
    daemon.stop()
    daemon.file = Path(os.path.relpath(daemon.file, daemon.folder))
    daemon.process = daemon.launch(cwd=daemon.folder)
    daemon.until_ready()
    daemon.file = daemon.folder / daemon.file
    answer = daemon.control("config")
    assert (answer["file"], answer["state_dir"]) == (str(daemon.file), str(daemon.state))
    daemon.until_logged(f"config={daemon.file}")
    daemon.file.write_text("[queu]\n")
    assert daemon.control("reload")["message"].startswith(f"{daemon.file}: queu")
    (alert,) = daemon.status()["alerts"]
    assert f"{daemon.file}: queu" in alert["message"]


def test_unknown_user_names_are_warned_of_at_the_start_and_at_each_reload(start: Start) -> None:
    daemon = start(limits={"gateways": ["nosuchuser"]})
    daemon.until(lambda: "limits.gateways: this machine has no user 'nosuchuser'" in daemon.log(), "it is warned of")
    daemon.configure({"limits": {"clients": {"nosuch": {"rate": ""}}}})
    assert daemon.control("reload")["event"] == "result"
    daemon.until(lambda: "limits.clients.nosuch: this machine has no user" in daemon.log(), "this one too")


def test_sighup_reads_the_configuration_again(start: Start) -> None:
    daemon = start()
    daemon.configure({"workers": {"hang_timeout_s": 7.0}})
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(
        lambda: daemon.control("config")["config"]["workers"]["hang_timeout_s"] == 7.0, "the new configuration is used"
    )
    daemon.file.write_text("[workers]\nmax = -1\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda: "configuration is wrong" in daemon.log(), "the wrong one is named in the log")
    daemon.client().speak()
