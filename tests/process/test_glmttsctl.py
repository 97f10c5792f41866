"""The command line against a real daemon, as a person or a script uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ..support.processes import until
from .conftest import Daemon
from .glmttsctl import GLMTTSCTL, answered, ctl


@pytest.fixture(scope="module")
def daemon(start_shared: Callable[..., Daemon]) -> Iterator[Daemon]:
    yield start_shared(engine={"name": "espeak", "warmup_text": "a"})


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_say_writes_the_file_in_the_format_of_its_name(daemon: Daemon, tmp_path: Path, name: str) -> None:
    done = ctl(daemon, "say", "今天天气不错", "-o", str(tmp_path / name))
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(tmp_path / name)
    assert rate == 24_000 and 0.8 < len(samples) / rate < 4.0
    assert float(np.sqrt(np.mean(samples**2))) > 0.01


def test_say_with_stream_writes_the_same_file_as_without(daemon: Daemon, tmp_path: Path) -> None:
    for name, more in (("whole.wav", []), ("streamed.wav", ["--stream"])):
        assert ctl(daemon, "say", "-", "-o", str(tmp_path / name), *more, stdin="The same words.").returncode == 0
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "streamed.wav").read_bytes()


@pytest.mark.parametrize("command", ["ping", "info", "voices", "jobs", "status", "workers"])
def test_everything_that_prints_data_prints_json(daemon: Daemon, command: str) -> None:
    assert answered(daemon, command)


def test_an_operator_can_run_the_daemon(start: Callable[..., Daemon]) -> None:
    daemon = start()
    before = answered(daemon, "workers")["workers"][0]["pid"]
    assert ctl(daemon, "recycle", "all").returncode == 0
    daemon.until(lambda: daemon.workers()[0]["pid"] not in (before, None), "the worker was replaced")
    daemon.until_ready()
    assert ctl(daemon, "pause").returncode == 0
    paused = ctl(daemon, "status", "--json")
    assert (paused.returncode, json.loads(paused.stdout)["state"]) == (3, "paused")
    assert ctl(daemon, "resume").returncode == 0
    assert ctl(daemon, "reload").returncode == 0
    assert ctl(daemon, "config", "show").returncode == 0
    assert ctl(daemon, "drain", "--timeout", "5").returncode == 0
    assert ctl(daemon, "say", "hello", "-o", "/dev/null").returncode == 3, "it is draining"
    assert ctl(daemon, "stop").returncode == 0
    assert daemon.process.wait(10) == 0


def test_a_voice_is_added_listed_spoken_with_and_removed(start: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = start()
    recording = tmp_path / "me.wav"
    time_s = np.arange(48_000) / 24_000
    soundfile.write(recording, 0.3 * np.sin(2 * np.pi * 200 * time_s), 24_000)
    added = ctl(daemon, "voice", "add", "me", str(recording), "--text", "what I said")
    assert added.returncode == 0 and "speaks with it" in added.stdout, added.stderr
    assert "me" in ctl(daemon, "voices").stdout
    said = ctl(daemon, "say", "hello", "--voice", "me", "-o", str(tmp_path / "a.wav"))
    assert said.returncode == 0, said.stderr
    (tmp_path / "no.wav").write_bytes(b"this is no recording")
    refused = ctl(daemon, "voice", "add", "no", str(tmp_path / "no.wav"), "--text", "x")
    assert refused.returncode == 1 and "WAV" in refused.stderr
    assert ctl(daemon, "voice", "remove", "me").returncode == 0
    assert ctl(daemon, "say", "hello", "--voice", "me", "-o", str(tmp_path / "b.wav")).returncode == 1


def test_a_voice_that_the_engine_can_t_speak_with_is_not_said_to(start: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = start(engine={"name": "espeak"})
    soundfile.write(tmp_path / "me.wav", 0.3 * np.sin(np.arange(48_000) / 20), 24_000)
    added = ctl(daemon, "voice", "add", "me", str(tmp_path / "me.wav"), "--text", "what I said")
    assert added.returncode == 0 and "does not clone" in added.stdout and "glmtts" in added.stdout


def test_the_demo_keeps_its_promise_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [GLMTTSCTL, "demo", "--json"], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("demo-zh.wav", "demo-en.wav"):
        samples, rate = soundfile.read(tmp_path / name)
        assert rate == 24_000 and len(samples) > rate


def processes_with(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ends_by", ["SIGHUP", "a crash"])
def test_serve_serves_http_and_leaves_nothing_however_it_ends(tmp_path: Path, ends_by: str) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    # As in a terminal, where these tests run under nohup too.
    command = ["env", "--default-signal=HUP", GLMTTSCTL, "serve", "--port", "0", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"TMPDIR": str(folder)}
    ) as served:
        try:
            assert served.stdout
            where = json.loads(served.stdout.readline())
            mark = f"GLMTTS_RUNTIME_DIR={where['folder']}"
            if ends_by == "a crash":
                command_lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with(mark)}
                (gateway,) = (pid for pid, line in command_lines.items() if b"glmtts.gateway" in line)
                os.kill(gateway, signal.SIGKILL)
            else:
                body = json.dumps({"input": "Hello.", "response_format": "wav"}).encode()
                with urllib.request.urlopen(f"{where['url']}v1/audio/speech", body, timeout=30) as answer:
                    assert answer.read(4) == b"RIFF"
                served.send_signal(signal.Signals[ends_by])
            said = "".join(served.communicate(timeout=30))
            assert served.returncode == (1 if ends_by == "a crash" else 0), said
            assert ("the gateway was killed by SIGKILL" in said) == (ends_by == "a crash")
        finally:
            served.kill()
    assert not Path(where["folder"]).exists() and not list(folder.iterdir())
    until(lambda: not processes_with(mark), "no process is left")
