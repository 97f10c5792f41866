"""The log has a line for each fact, with its job and worker, and no client's text; `glmttsctl logs` shows it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

if TYPE_CHECKING:
    from .conftest import Daemon, Start

#: A word that no line above debug level may have, however it reached the daemon.
MARKED = "geheimwort"
GLMTTSCTL = str(Path(sys.executable).with_name("glmttsctl"))


def ctl(daemon: Daemon, *arguments: str) -> str:
    environment = os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint, "NO_COLOR": "1"}
    done = subprocess.run(
        [GLMTTSCTL, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wav_of(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(int(seconds * 16_000)) * 0.1), 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Iterator[Daemon]:
    restart = {"backoff_initial_s": 0.05, "backoff_max_s": 0.2, "breaker_failures": 50, "max_attempts": 1}
    yield start_shared(
        workers={"hang_timeout_s": 1.0, "stop_timeout_s": 0.3, "restart": restart | {"quarantine_after": 1}},
        queue={"max_waiting": 2, "max_share": 1.0},
    )


def spoil(daemon: Daemon) -> list[str]:
    """Have marked texts fail in every way; returns how each ended."""
    client = daemon.client()
    codes: list[str] = []

    def fails(text: str, body: bytes | None = None, **keys: Any) -> None:
        event = client.ask("synthesize", body, text=f"{MARKED} {text}", **keys)
        codes.append(str(event.get("code", event["event"])))

    for fault in ("audio", "quote", "quote_fatal", "raise", "oom", "exit", "segv", "garbage", "hang", "beat_still"):
        fails(fault, options={"fault": fault})
        daemon.until_ready()
    fails("again", options={"fault": "segv"}, seed=1)
    fails("segv", options={"fault": "segv"})  # quarantined
    fails("durable", options={"fault": "quote"}, durable=True)
    fails("in parts", options={"fault": "quote", "segments": 3, "after_segments": 1}, stream=True)
    fails("recorded", wav_of(2.0), prompt={"text": f"{MARKED} said"}, options={"fault": "quote"})
    fails("not recorded", b"no recording", prompt={"text": f"{MARKED} said"})
    fails("wrong", options={"fault": MARKED})
    fails("wrong", None, **{MARKED: MARKED})
    fails("wrong", voice=MARKED)
    fails("wrong", format=MARKED)
    fails("late", deadline_s=0.01, options={"seconds": 5.0, "rtf": 1.0})
    fails("long" * 5_000)
    fails("file", output="a.wav", format="wav", options={"fault": "quote"})
    # Where jobs have been brief, three more lie ready in the worker: one runs, and two wait.
    busy = [client.send("synthesize", text=f"{MARKED} {n}", options={"seconds": 3.0, "rtf": 1.0}) for n in range(8)]
    for id in reversed(busy):
        event = client.until(id, "accepted", "error")
        if event["event"] == "accepted":
            client.ask("cancel", job=event["job"])
            event = client.until(id, "error", "done")
        codes.append(str(event.get("code", event["event"])))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(daemon.endpoint.removeprefix("ipc://"))
        stranger.sendall(MARKED.encode() * 10)
    daemon.control("voice_add", b"no recording", name="v1", text=MARKED)
    return codes


def test_no_client_s_text_is_in_the_log_however_its_job_failed(daemon: Daemon) -> None:
    codes = spoil(daemon)
    assert {"done", "synthesis_failed", "worker_crashed", "hung", "quarantined", "bad_request", "cancelled"} <= set(
        codes
    )
    assert {"queue_full", "deadline_exceeded", "bad_audio", "too_large", "voice_not_found"} <= set(codes), codes
    daemon.until_ready()
    shown = [
        ctl(daemon, "logs", "-n", "500"),
        ctl(daemon, "logs", "-n", "500", "--json"),
        json.dumps([daemon.status(), daemon.workers(), daemon.control("health", deep=True)]),
    ]
    # The place of each error is in the log, though its message is not.
    daemon.until_logged("KeyError, raised at daemon/engines/fault/faults.py:", "message may quote the text")
    assert not [line for text in (daemon.log(), *shown) for line in text.splitlines() if MARKED in line]


def test_at_debug_level_a_text_is_logged_to_find_a_mistake(daemon: Daemon) -> None:
    daemon.control("log_level", level="debug")
    try:
        client = daemon.client()
        job = client.ask("synthesize", text=f"{MARKED} once more", options={"fault": "quote"})["job"]

        def sent() -> list[str]:  # by the worker's pipe, which may come after the answer
            lines = daemon.control("logs", job=job)["lines"]
            return [line["fields"]["message_sent"] for line in lines if "message_sent" in line["fields"]]

        daemon.until(lambda: len(sent()) == 1 and MARKED in sent()[0], "the message that the worker sent")
        daemon.until(lambda: f"speaking {MARKED} once more" in daemon.log(), "what the engine printed")
    finally:
        daemon.control("log_level", level="info")


def test_each_line_names_its_job_and_worker(daemon: Daemon) -> None:
    client = daemon.client()
    job = client.speak("hello")[0]["job"]
    failed = client.ask("synthesize", text="other", options={"fault": "raise"})["job"]
    daemon.until(lambda: len(daemon.control("logs", job=failed)["lines"]) == 2, "where it was raised, and its end")
    (done,) = daemon.control("logs", job=job)["lines"]
    # One comes by the worker's pipe, the other by its socket.
    error, raised = sorted(daemon.control("logs", job=failed)["lines"], key=lambda line: "line" in line["fields"])
    assert "RuntimeError, raised at daemon/engines/fault/engine.py:" in raised["fields"]["line"]
    worker = daemon.workers()[0]["name"]
    assert (done["message"], done["fields"]["worker"], done["level"]) == ("job done", worker, "info")
    assert (error["message"], error["fields"]["worker"], error["level"]) == ("job ended in an error", worker, "warning")
    of_worker = daemon.control("logs", worker=worker, limit=500)["lines"]
    assert {"worker ready", "job done", "job ended in an error"} <= {line["message"] for line in of_worker}
    assert all(line["fields"]["worker"] == worker for line in of_worker)


def test_a_follower_sees_each_line_once_and_continues_with_the_next_daemon(start: Start) -> None:
    daemon = start()
    environment = os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint}
    follower = subprocess.Popen(
        [GLMTTSCTL, "logs", "-f", "--json", "-n", "500"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        daemon.client().speak("first")
        seen = _until(follower, "job done")
        assert [line["message"] for line in seen].count("worker ready") == 1
        daemon.stop()
        daemon.restart()
        daemon.client().speak("second")
        after = _until(follower, "job done")
        assert [line["message"] for line in after].count("daemon serves") == 1
    finally:
        follower.terminate()
        follower.communicate(timeout=20)


def _until(follower: subprocess.Popen[str], message: str) -> list[dict[str, Any]]:
    """The lines up to the next one of this message."""
    seen: list[dict[str, Any]] = []
    assert follower.stdout is not None
    for text in follower.stdout:
        seen.append(json.loads(text))
        if seen[-1]["message"] == message:
            return seen
    raise AssertionError("the follower has ended")


def test_under_a_service_manager_the_journal_has_the_levels_and_the_time(start: Start) -> None:
    """A stand-in for systemd's: a socket whose device and number stand in JOURNAL_STREAM (systemd.exec(5))."""
    daemon = start(wait=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    status = os.fstat(theirs.fileno())
    daemon.stop()
    environment = os.environ | {
        "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
        "GLMTTS_RUNTIME_DIR": str(daemon.runtime),
        "STATE_DIRECTORY": str(daemon.state),
    }
    command = [sys.executable, "-m", "glmtts.daemon.supervisor", "--config", str(daemon.file)]
    with subprocess.Popen(
        command, stderr=theirs.fileno(), env=environment | {"STATE_DIRECTORY": str(daemon.state)}
    ) as process:
        theirs.close()
        daemon.until(daemon.control_is_open, "the daemon answers")
        daemon.until(lambda: daemon.status()["workers"]["ready"] == 1, "its worker is ready")
        daemon.client().ask("synthesize", text="a", options={"fault": "raise"})
        process.terminate()
        assert process.wait(20) == 0
    with ours, ours.makefile() as file:
        lines = file.read().splitlines()
    assert any(line.startswith("<6>INFO daemon serves ") for line in lines), lines
    assert any(line.startswith("<4>WARNING job ended in an error ") for line in lines), lines
    assert all(line[0] == "<" and line[2] == ">" for line in lines)
