"""`glmttsctl say`: every place that speech can go to, and what happens when the daemon says no."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import wave
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner

from glmtts.client.cli import main
from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Cancel, Prompt, Request, Synthesize

from ..scripted_daemon import (
    Script,
    ScriptedDaemon,
    accept_only,
    accepted,
    always,
    audio,
    done,
    refusing,
    speak_at_once,
)
from .conftest import GLMTTSCTL, Ctl

TEXT = "今天天气不错"
SAMPLES = TEXT.encode("utf-16-le")  # what the scripted daemon streams for it


def glmttsctl(daemon: ScriptedDaemon, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The real program, its output in real pipes."""
    command = [*GLMTTSCTL, *arguments, "--endpoint", daemon.endpoint]
    return subprocess.run(command, capture_output=True, timeout=30, check=False, input=input)


def test_speech_goes_to_the_file_in_the_format_of_its_name(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    file = tmp_path / "a.flac"
    result = ctl("say", TEXT, "-o", file, "--voice", "zh", "--seed", 3, "--priority", "batch", "--deadline", 9)
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == TEXT.encode()
    assert result.stdout == ""
    assert "1.00 s of speech in" in result.stderr
    request = daemon.next_of(Synthesize)
    assert (request.format, request.voice, request.seed) == ("flac", "zh", 3)
    assert (request.priority, request.deadline_s) == ("batch", 9.0)


def test_quiet_is_quiet(ctl: Ctl, tmp_path: Path) -> None:
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_json_tells_how_it_went(ctl: Ctl, tmp_path: Path) -> None:
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", "--json")
    facts = json.loads(result.stdout)
    assert (facts["file"], facts["audio_s"], facts["attempts"]) == (str(tmp_path / "a.wav"), 1.0, 1)


def test_a_pipe_gets_wav(daemon: ScriptedDaemon) -> None:
    done = glmttsctl(daemon, "say", "-", input=TEXT.encode())
    assert done.stdout == TEXT.encode()
    assert daemon.next_of(Synthesize).resolved_format == "wav"
    assert done.returncode == 0


def test_on_a_terminal_it_asks_where_the_speech_should_go(daemon: ScriptedDaemon) -> None:
    outer, inner = os.openpty()
    try:
        command = [*GLMTTSCTL, "say", TEXT, "--endpoint", daemon.endpoint]
        done = subprocess.run(command, stdout=inner, stderr=subprocess.PIPE, timeout=30, check=False)
    finally:
        os.close(inner)
        os.close(outer)
    assert done.returncode == 2
    assert b"-o FILE" in done.stderr


def test_a_streamed_wav_file_is_a_whole_wav(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    result = ctl("say", TEXT, "-o", file, "--stream")
    assert result.exit_code == 0, result.output
    with wave.open(str(file)) as found:
        assert found.getframerate() == 24_000
        assert found.readframes(-1) == SAMPLES
    assert daemon.next_of(Synthesize).stream


def test_a_streamed_pipe_gets_the_samples_as_they_are_made(daemon: ScriptedDaemon) -> None:
    """The second chunk is sent when the first was read at the other end of the pipe."""
    jobs: list[tuple[bytes, str]] = []

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        daemon.send(peer, accepted("j1", request.id))
        daemon.send(peer, audio("j1", request.id, 0), b"aa")
        jobs.append((peer, request.id))

    daemon.script = script
    command = [*GLMTTSCTL, "say", TEXT, "--stream", "-q", "--endpoint", daemon.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"aa"
        peer, id = jobs[0]
        daemon.send(peer, audio("j1", id, 1), b"bb")
        daemon.send(peer, done("j1", id, chunks=2))
        assert process.stdout.read() == b"bb"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.flac", "--play"], "16-bit samples"),
        (["-o", "a.xyz"], ".xyz is none of the known formats"),
        (["-o", "a.wav", "--output", "b.wav"], "--output"),
        (["-o", "-", "--json"], "standard output"),
        (["--prompt-text", "hi", "-o", "a.wav"], "belong together"),
        (["-o", "a.wav", "--option", "speed"], "KEY=VALUE"),
        (["-o", "a.wav", "--seed", "-1"], "--seed"),
    ],
)
def test_what_can_not_be_is_wrong_usage_with_words(ctl: Ctl, arguments: list[str], words: str) -> None:
    result = ctl("say", TEXT, *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_no_text_is_wrong_usage(ctl: Ctl) -> None:
    assert ctl("say", "-", "-o", "a.wav", input=" \n").exit_code == 2


def test_the_recording_and_its_text_are_sent_for_cloning(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    (tmp_path / "p.wav").write_bytes(b"RIFFprompt")
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", "--prompt", tmp_path / "p.wav", "--prompt-text", "喂")
    assert result.exit_code == 0, result.output
    asked = daemon.next()
    assert isinstance(asked.request, Synthesize)
    assert (asked.request.prompt, asked.body) == (Prompt("喂"), b"RIFFprompt")


def test_options_for_the_engine_are_numbers_where_they_look_like_numbers(
    ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    ctl("say", TEXT, "-o", tmp_path / "a.wav", "--option", "speed=1.5", "--option", "name=amy", "--option", "x=true")
    assert daemon.next_of(Synthesize).options == {"speed": 1.5, "name": "amy", "x": True}


def test_a_file_that_the_daemon_keeps_is_named_on_standard_output(ctl: Ctl, daemon: ScriptedDaemon) -> None:
    daemon.script = always(lambda id: done("j1", id, path="/var/lib/glmtts/outputs/a.mp3", bytes=9))
    result = ctl("say", TEXT, "--output", "a.mp3")
    assert result.stdout == "/var/lib/glmtts/outputs/a.mp3\n"
    request = daemon.next_of(Synthesize)
    assert (request.output, request.format) == ("a.mp3", "mp3")


def refuse_once(code: ErrorCode) -> Script:
    """A script that puts the first request off for 50 ms."""
    refused: list[str] = []

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, body: bytes) -> None:
        if refused:
            speak_at_once(daemon, peer, request, body)
        else:
            refused.append(request.id)
            daemon.send(peer, events.Error.of(request.id, code, "too many", retry_after_s=0.05))

    return script


@pytest.mark.parametrize("code", [ErrorCode.RATE_LIMITED, ErrorCode.QUEUE_FULL])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_request_that_is_put_off_is_sent_again(
    *, ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path, code: ErrorCode, stream: list[str]
) -> None:
    daemon.script = refuse_once(code)
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", *stream)
    assert result.exit_code == 0, result.output
    assert f"too many ({code}); trying again in 0.1 s" in result.stderr
    assert (tmp_path / "a.wav").exists()


def test_who_does_not_want_to_wait_is_told_for_how_long_it_would_be(
    ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    daemon.script = refuse_once(ErrorCode.RATE_LIMITED)
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", "--no-wait", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["retry_after_s"] == 0.05
    assert not (tmp_path / "a.wav").exists()


def test_the_timeout_counts_the_waiting_as_well(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.script = refusing(ErrorCode.QUEUE_FULL, "full", retry_after_s=60.0)
    assert ctl("say", TEXT, "-o", tmp_path / "a.wav", "--timeout", "0.5").exit_code == 124


def test_a_job_that_takes_too_long_is_cancelled_and_124(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.script = accept_only
    assert ctl("say", TEXT, "-o", tmp_path / "a.wav", "--timeout", "0.2").exit_code == 124
    assert daemon.next_of(Cancel).job == "j1"


def test_a_stream_that_breaks_off_leaves_no_half_file(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> None:
    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        daemon.send(peer, accepted("j1", request.id))
        daemon.send(peer, audio("j1", request.id, 0), b"aa")
        daemon.send(peer, events.Error.of(request.id, ErrorCode.WORKER_CRASHED, "SIGSEGV", job="j1"))

    daemon.script = script
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav", "--stream")
    assert result.exit_code == 4
    assert "SIGSEGV (worker_crashed)" in result.stderr
    assert list(tmp_path.glob("*.wav")) == list(tmp_path.glob(".*.part")) == []


def test_a_person_hears_that_the_queue_is_long_and_that_a_worker_died(
    ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        long = accepted("j1", request.id)
        long.warning = "the queue is long: 5 jobs wait"
        daemon.send(peer, long)
        daemon.send(peer, events.Started(id=request.id, job="j1", worker="w1", gpu=0, attempt=2, waited_s=0.0))
        daemon.send(peer, done("j1", request.id, b"x", attempts=2), b"x")

    daemon.script = script
    result = ctl("say", TEXT, "-o", tmp_path / "a.wav")
    assert "the queue is long" in result.stderr
    assert "w1 retries the job (attempt 2)" in result.stderr


def test_ctrl_c_ends_the_job_and_leaves_nothing_behind(daemon: ScriptedDaemon, tmp_path: Path) -> None:
    daemon.script = accept_only
    command = [*GLMTTSCTL, "say", TEXT, "-o", str(tmp_path / "a.wav"), "--endpoint", daemon.endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        daemon.next_of(Synthesize)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert (process.returncode, words.strip()) == (130, "Interrupted.")
    assert daemon.next_of(Cancel).job == "j1"
    assert not list(tmp_path.glob("*.wav"))


def install(folder: Path, name: str, body: str) -> None:
    """A player: a program of this name that keeps what it is fed with."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing in it but what a test installs there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("player", ["pw-play", "paplay", "aplay", "ffplay"])
def test_what_is_played_is_what_was_spoken(ctl: Ctl, tmp_path: Path, only_path: Path, player: str) -> None:
    heard = tmp_path / "heard"
    install(only_path, player, f'/bin/cat > "{heard}"; echo "$@" > "{heard}.arguments"')
    result = ctl("say", TEXT, "--play")
    assert result.exit_code == 0, result.output
    if player in ("pw-play", "ffplay"):
        content = heard.read_bytes()
        header = 24 if player == "pw-play" else 44
        assert content[:4] == (b".snd" if player == "pw-play" else b"RIFF")
        with heard.open("rb") as file:
            samples, rate = soundfile.read(file, dtype="int16")
        assert rate == 24_000
        assert samples.astype("<i2").tobytes() == SAMPLES
        assert len(content) == header + len(SAMPLES)
    else:
        assert heard.read_bytes() == SAMPLES
        assert "24000" in heard.with_suffix(".arguments").read_text()


def test_without_a_player_it_says_which_to_install(ctl: Ctl, only_path: Path) -> None:
    assert only_path.exists()
    result = ctl("say", TEXT, "--play")
    assert result.exit_code == 1
    for name in ("pw-play", "paplay", "aplay", "ffplay", "pipewire-bin", "-o FILE"):
        assert name in result.stderr


def test_a_player_that_gives_up_is_reported_in_its_own_words(ctl: Ctl, only_path: Path) -> None:
    install(only_path, "aplay", "echo 'cannot open device' >&2; exit 1")
    result = ctl("say", TEXT, "--play")
    assert result.exit_code == 1
    assert "aplay exited with status 1: cannot open device" in result.stderr


def test_speech_is_played_and_kept_at_once(ctl: Ctl, tmp_path: Path, only_path: Path) -> None:
    install(only_path, "paplay", f'/bin/cat > "{tmp_path / "heard"}"')
    assert ctl("say", TEXT, "--play", "-o", tmp_path / "a.wav").exit_code == 0
    assert (tmp_path / "heard").read_bytes() == SAMPLES
    with wave.open(str(tmp_path / "a.wav")) as found:
        assert found.readframes(-1) == SAMPLES


def test_a_text_in_another_encoding_is_refused_with_the_way_to_convert_it() -> None:
    refused = CliRunner().invoke(main, ["say", "-", "-o", "x.wav"], input="今天天气不错".encode("gbk"))
    assert refused.exit_code == 2
    assert "iconv -f gb18030 -t utf-8" in refused.stderr
    assert "今天天气不错" in refused.stderr
