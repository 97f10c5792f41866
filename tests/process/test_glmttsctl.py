"""The command line against a real daemon, as a person or a script uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="module")
def daemon(start_shared: Callable[..., Any]) -> Iterator[Any]:
    yield start_shared(engine={"name": "espeak", "warmup_text": "a"})


def ctl(daemon: Any, *arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``glmttsctl`` as it is installed."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("glmttsctl")), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
        check=False,
        env=os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint, "NO_COLOR": "1"},
    )


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_say_writes_the_file_in_the_format_of_its_name(daemon: Any, tmp_path: Path, name: str) -> None:
    done = ctl(daemon, "say", "今天天气不错", "-o", str(tmp_path / name))
    assert done.returncode == 0, done.stderr
    samples, rate = soundfile.read(tmp_path / name)
    assert rate == 24_000 and 0.8 < len(samples) / rate < 4.0
    assert float(np.sqrt(np.mean(samples**2))) > 0.01


def test_say_with_stream_writes_the_same_file_as_without(daemon: Any, tmp_path: Path) -> None:
    for name, more in (("whole.wav", []), ("streamed.wav", ["--stream"])):
        assert ctl(daemon, "say", "-", "-o", str(tmp_path / name), *more, stdin="The same words.").returncode == 0
    assert (tmp_path / "whole.wav").read_bytes() == (tmp_path / "streamed.wav").read_bytes()


def test_exit_codes_tell_scripts_what_went_wrong(daemon: Any, tmp_path: Path) -> None:
    assert ctl(daemon, "ping").returncode == 0
    assert ctl(daemon, "job", "no-such-job").returncode == 1
    assert ctl(daemon, "say").returncode == 2
    gone = ctl(daemon, "--endpoint", f"ipc://{tmp_path}/glmtts.sock", "ping")
    assert gone.returncode == 3 and "glmttsd" in gone.stderr


@pytest.mark.parametrize("command", ["ping", "info", "voices", "jobs", "status", "workers"])
def test_everything_that_prints_data_prints_json(daemon: Any, command: str) -> None:
    done = ctl(daemon, command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_a_batch_speaks_both_dialects_and_a_bad_line_fails_alone(daemon: Any, tmp_path: Path) -> None:
    lines = tmp_path / "book.jsonl"
    lines.write_text(
        json.dumps({"uttid": "one", "syn_text": "第一句。"})
        + "\n{not json\n"
        + json.dumps({"output_name": "two", "input_text": "The second."})
        + "\n"
    )
    out = tmp_path / "out"
    done = ctl(daemon, "batch", str(lines), "--out", str(out))
    assert done.returncode == 4 and "2" in done.stderr, done.stderr
    assert {path.name for path in out.glob("*.wav")} == {"one.wav", "two.wav"}
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    again = ctl(daemon, "batch", str(lines), "--out", str(out))
    assert again.returncode == 4
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")} == stamps, (
        "what was done is not done twice"
    )


def test_an_operator_can_run_the_daemon(start: Callable[..., Any]) -> None:
    daemon = start()
    before = json.loads(ctl(daemon, "workers", "--json").stdout)["workers"][0]["pid"]
    assert ctl(daemon, "recycle", "all").returncode == 0
    daemon.until(lambda: daemon.workers()[0]["pid"] not in (before, None), "the worker was replaced")
    daemon.until_ready()
    assert ctl(daemon, "pause").returncode == 0
    assert json.loads(ctl(daemon, "status", "--json").stdout)["state"] == "paused"
    assert ctl(daemon, "resume").returncode == 0
    assert ctl(daemon, "reload").returncode == 0
    assert ctl(daemon, "config", "show").returncode == 0
    assert ctl(daemon, "drain", "--timeout", "5").returncode == 0
    assert ctl(daemon, "say", "hello", "-o", "/dev/null").returncode == 3, "it is draining"
    assert ctl(daemon, "stop").returncode == 0
    assert daemon.process.wait(10) == 0


def test_a_voice_is_added_listed_spoken_with_and_removed(start: Callable[..., Any], tmp_path: Path) -> None:
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


def test_a_voice_that_the_engine_can_t_speak_with_is_not_said_to(start: Callable[..., Any], tmp_path: Path) -> None:
    daemon = start(engine={"name": "espeak"})
    soundfile.write(tmp_path / "me.wav", 0.3 * np.sin(np.arange(48_000) / 20), 24_000)
    added = ctl(daemon, "voice", "add", "me", str(tmp_path / "me.wav"), "--text", "what I said")
    assert added.returncode == 0 and "does not clone" in added.stdout and "glmtts" in added.stdout


def test_the_demo_keeps_its_promise_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("glmttsctl")), "demo", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("demo-zh.wav", "demo-en.wav"):
        samples, rate = soundfile.read(tmp_path / name)
        assert rate == 24_000 and len(samples) > rate


def test_configuration_is_checked_without_a_daemon(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("glmttsctl"))
    default = subprocess.run([command, "config", "default"], capture_output=True, text=True, check=True, timeout=30)
    good = tmp_path / "good.toml"
    good.write_text(default.stdout)
    assert (
        subprocess.run([command, "config", "check", good], capture_output=True, timeout=30, check=False).returncode == 0
    )
    bad = tmp_path / "bad.toml"
    bad.write_text("[limits]\nmax_waiting = 3\n")
    found = subprocess.run([command, "config", "check", bad], capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 1
    assert "bad.toml" in found.stderr and "queue.max_waiting" in found.stderr


def test_ping_is_quick_enough_for_a_health_check(daemon: Any) -> None:
    times = []
    for _ in range(3):
        begun = time.monotonic()
        assert ctl(daemon, "ping").returncode == 0
        times.append(time.monotonic() - begun)
    assert min(times) < 2.0
