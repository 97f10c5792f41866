"""`glmttsctl batch`: a bad line fails alone, nothing is spoken twice, and what stops is gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def spoken(daemon: Any) -> list[str]:
    """The texts that the daemon was asked for since the last time."""
    texts = []
    while not daemon.requests.empty():
        _, request, _ = daemon.requests.get()
        if request.__struct_config__.tag == "synthesize":
            texts.append(request.text)
    return sorted(texts)


def test_both_dialects_become_files_and_prompts_are_found_beside_the_batch(
    ctl: Any, daemon: Any, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "p.wav").write_bytes(b"RIFFprompt")
    file = write(
        tmp_path / "b.jsonl",
        {"uttid": "a1", "prompt_text": "喂", "prompt_speech": "p.wav", "syn_text": "one"},
        {"output_name": "b1", "prompt_text": "喂", "prompt_audio": str(tmp_path / "p.wav"), "input_text": "two"},
        {"output_name": "c1.flac", "input_text": "three", "voice": "en"},
    )
    result = ctl("batch", file, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "a1.wav").read_bytes() == b"RIFFpromptone"
    assert (out / "b1.wav").read_bytes() == b"RIFFprompttwo"
    assert (out / "c1.flac").read_bytes() == b"three"
    requests = {entry[1].text: entry[1] for entry in list(daemon.requests.queue)}
    assert requests["one"].prompt.text == "喂"
    assert requests["one"].priority == "batch"
    assert (requests["three"].voice, requests["three"].format) == ("en", "flac")
    assert not (out / "failures.jsonl").exists()


def test_a_bad_line_fails_alone_and_is_reported_by_its_number(ctl: Any, daemon: Any, tmp_path: Path, out: Path) -> None:
    def script(daemon: Any, peer: bytes, request: Any, _body: bytes) -> None:
        if request.text == "bad":
            daemon.send(peer, events.Error.of(request.id, ErrorCode.SYNTHESIS_FAILED, "the engine choked", job="j"))
        else:
            speak(daemon, peer, request, _body)

    speak, daemon.script = daemon.script, script
    file = write(
        tmp_path / "b.jsonl",
        "{",
        {"uttid": "no-text"},
        {"uttid": "a", "syn_text": "bad"},
        {"uttid": "b", "syn_text": "x", "prompt_speech": "missing.wav", "prompt_text": "x"},
        {"uttid": "good", "syn_text": "good"},
    )
    result = ctl("batch", file, "--out", out)
    assert result.exit_code == 4
    assert (out / "good.wav").exists()
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [failure["line"] for failure in failures] == [1, 2, 3, 4]
    assert failures[2] == {"line": 3, "code": "synthesis_failed", "reason": "the engine choked", "output": "a.wav"}
    assert "missing.wav: No such file" in failures[3]["reason"]
    for number in (1, 2, 3, 4):
        assert f"line {number}: " in result.stderr
    assert "1 spoken" in result.stderr
    assert "4 failed" in result.stderr


def test_a_second_run_speaks_only_what_is_missing_or_has_changed(
    ctl: Any, daemon: Any, tmp_path: Path, out: Path
) -> None:
    lines = [{"uttid": name, "syn_text": f"text {name}"} for name in "abcd"]
    file = write(tmp_path / "b.jsonl", *lines)
    assert ctl("batch", file, "--out", out).exit_code == 0
    assert len(spoken(daemon)) == 4
    (out / "b.wav").unlink()
    lines[2]["syn_text"] = "another text"
    write(file, *lines)
    result = ctl("batch", file, "--out", out, "--json")
    assert spoken(daemon) == ["another text", "text b"]
    summary = json.loads(result.stdout)
    assert (summary["spoken"], summary["skipped"], summary["failed"]) == (2, 2, [])
    ctl("batch", file, "--out", out, "--format", "mp3")
    assert len(spoken(daemon)) == 4
    assert (out / "a.mp3").exists()


def test_a_journal_cut_off_by_a_crash_costs_one_line_at_most(ctl: Any, daemon: Any, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "b.jsonl", *({"uttid": name, "syn_text": f"text {name}"} for name in "ab"))
    ctl("batch", file, "--out", out, "--jobs", 1)
    journal = out / ".glmtts-batch.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    spoken(daemon)
    assert ctl("batch", file, "--out", out).exit_code == 0
    assert spoken(daemon) == ["text b"]
    assert ctl("batch", file, "--out", out).exit_code == 0
    assert spoken(daemon) == []


def test_a_failure_that_may_pass_is_tried_again_and_not_for_ever(
    ctl: Any, daemon: Any, tmp_path: Path, out: Path
) -> None:
    tries: dict[str, int] = {}

    def script(daemon: Any, peer: bytes, request: Any, body: bytes) -> None:
        tries[request.text] = tries.get(request.text, 0) + 1
        if request.text == "never" or tries[request.text] < 3:
            daemon.send(peer, events.Error.of(request.id, ErrorCode.WORKER_CRASHED, "died", retry_after_s=0.01))
        else:
            speak(daemon, peer, request, body)

    speak, daemon.script = daemon.script, script
    file = write(tmp_path / "b.jsonl", {"uttid": "a", "syn_text": "never"}, {"uttid": "b", "syn_text": "later"})
    result = ctl("batch", file, "--out", out, "--retries", 3)
    assert result.exit_code == 4
    assert tries == {"never": 4, "later": 3}
    assert (out / "b.wav").exists()


def test_no_more_lines_are_under_way_than_was_said(ctl: Any, daemon: Any, say: Any, tmp_path: Path, out: Path) -> None:
    waiting: list[tuple[bytes, str]] = []

    def script(daemon: Any, peer: bytes, request: Any, _body: bytes) -> None:
        waiting.append((peer, request.id))
        assert len(waiting) <= 3
        if len(waiting) == 3:
            for number, (to, id) in enumerate(waiting):
                daemon.send(to, say.done(f"j{number}", id, b"x"), b"x")
            waiting.clear()

    daemon.script = script
    file = write(tmp_path / "b.jsonl", *({"uttid": str(n), "syn_text": f"text {n}"} for n in range(9)))
    assert ctl("batch", file, "--out", out, "--jobs", 3, "--no-durable").exit_code == 0
    assert len(list(out.glob("*.wav"))) == 9


def test_a_daemon_that_can_not_work_stops_the_batch_instead_of_failing_every_line(
    ctl: Any, daemon: Any, tmp_path: Path, out: Path
) -> None:
    def script(daemon: Any, peer: bytes, request: Any, body: bytes) -> None:
        if request.text == "text 0":
            speak(daemon, peer, request, body)
        else:
            daemon.send(peer, events.Error.of(request.id, ErrorCode.UNAVAILABLE, "no GPU is left", retry_after_s=0.01))

    speak, daemon.script = daemon.script, script
    file = write(tmp_path / "b.jsonl", *({"uttid": str(n), "syn_text": f"text {n}"} for n in range(50)))
    result = ctl("batch", file, "--out", out, "--retries", 1, "--jobs", 1)
    assert result.exit_code == 3
    assert "no GPU is left" in result.stderr
    assert "The same command goes on from here" in result.stderr
    assert "49 left" in result.stderr
    assert not (out / "failures.jsonl").exists()


def test_without_a_daemon_it_is_3(no_daemon: str, ctl: Any, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "b.jsonl", {"uttid": "a", "syn_text": "a"})
    assert ctl("batch", file, "--out", out, "--endpoint", no_daemon).exit_code == 3


def test_two_batches_do_not_write_into_one_folder(ctl: Any, tmp_path: Path, out: Path) -> None:
    from glmtts.client.cli.batch.progress_file import Journal

    file = write(tmp_path / "b.jsonl", {"uttid": "a", "syn_text": "a"})
    out.mkdir()
    with Journal(out):
        result = ctl("batch", file, "--out", out)
    assert result.exit_code == 1
    assert "another batch writes there" in result.stderr


def test_without_the_journal_ctrl_c_ends_the_jobs_and_the_next_run_goes_on(
    ctl: Any, daemon: Any, say: Any, tmp_path: Path, out: Path
) -> None:
    def script(daemon: Any, peer: bytes, request: Any, body: bytes) -> None:
        if request.__struct_config__.tag == "synthesize" and request.text == "held":
            daemon.send(peer, say.accepted("held", request.id))
        else:
            speak(daemon, peer, request, body)

    speak, daemon.script = daemon.script, script
    file = write(tmp_path / "b.jsonl", {"uttid": "a", "syn_text": "quick"}, {"uttid": "b", "syn_text": "held"})
    code = "from glmtts.client.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", str(file), "--out", str(out), "--no-durable", "--jobs", "1"]
    with subprocess.Popen([*command, "--endpoint", daemon.endpoint], stderr=subprocess.PIPE, text=True) as process:
        while daemon.next_request("synthesize")[1].text != "held":
            pass
        os.kill(process.pid, signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert process.returncode == 130
    assert daemon.next_request("cancel")[1].job == "held"
    assert "1 spoken" in words
    assert "1 left" in words
    assert "The same command goes on from here" in words
    assert "Traceback" not in words
    assert sorted(path.name for path in out.iterdir()) == [".glmtts-batch.jsonl", "a.wav"]
    daemon.script = speak
    spoken(daemon)
    assert ctl("batch", file, "--out", out).exit_code == 0
    assert spoken(daemon) == ["held"]


def test_on_a_terminal_there_is_a_bar_with_the_time_left(daemon: Any, tmp_path: Path, out: Path) -> None:
    file = write(tmp_path / "b.jsonl", *({"uttid": str(n), "syn_text": f"text {n}"} for n in range(3)))
    outer, inner = os.openpty()
    code = "from glmtts.client.cli import main; main()"
    command = [sys.executable, "-c", code, "batch", str(file), "--out", str(out), "--endpoint", daemon.endpoint]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(command, stderr=inner, timeout=30, check=False, env=environment)
    os.close(inner)
    shown = b""
    try:
        while part := os.read(outer, 65_536):
            shown += part
    except OSError:  # EIO: everything was read and nobody holds the other end
        pass
    os.close(outer)
    assert done.returncode == 0
    assert b"3/3" in shown
    assert b"left:" in shown
