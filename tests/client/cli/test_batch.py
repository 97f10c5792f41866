"""`glmttsctl batch`: a bad line fails alone, nothing is spoken twice, and a second run continues the first."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtts.client.cli.batch.progress_file import ProgressFile
from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import Synthesize, Wait

from ..scripted_daemon import DEADLINE_S, ScriptedDaemon
from .batch_rig import Batch, JournalledDaemon, until_asked
from .conftest import Ctl, OnTerminal


@pytest.fixture
def journalled(daemon: ScriptedDaemon) -> JournalledDaemon:
    return JournalledDaemon(daemon)


@pytest.fixture
def batch(ctl: Ctl, daemon: ScriptedDaemon, tmp_path: Path) -> Iterator[Batch]:
    made = Batch(ctl, daemon, tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_both_dialects_become_files_and_prompts_are_found_beside_the_batch(
    batch: Batch, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "p.wav").write_bytes(b"RIFFprompt")
    batch.write(
        {"uttid": "a1", "prompt_text": "喂", "prompt_speech": "p.wav", "syn_text": "one"},
        {"output_name": "b1", "prompt_text": "喂", "prompt_audio": str(tmp_path / "p.wav"), "input_text": "two"},
        {"output_name": "c1.flac", "input_text": "three", "voice": "en"},
    )
    result = batch.run()
    assert result.exit_code == 0, result.output
    assert (batch.out / "a1.wav").read_bytes() == b"RIFFpromptone"
    assert (batch.out / "b1.wav").read_bytes() == b"RIFFprompttwo"
    assert (batch.out / "c1.flac").read_bytes() == b"three"
    one, _, three = (daemon.next_of(Synthesize) for _ in range(3))
    assert not isinstance(one.prompt, type(None)) and getattr(one.prompt, "text", "") == "喂"
    assert one.priority == "batch"
    assert (three.voice, three.format) == ("en", "flac")
    assert not (batch.out / "failures.jsonl").exists()


@pytest.mark.usefixtures("journalled")
def test_a_prompt_is_found_beside_the_file_then_in_the_current_folder_then_above_the_file(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here, above = tmp_path / "checkout/examples", tmp_path / "here", tmp_path / "checkout"
    for folder in (beside, here, above):
        (folder / "examples").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    batch.file = beside / "b.jsonl"
    for place in (above, here, beside):  # each comes before the one that was found so far
        (place / "examples/p.wav").write_bytes(place.name.encode())
        batch.write({"uttid": "a", "prompt_text": "x", "prompt_speech": "examples/p.wav", "syn_text": " it is"})
        assert batch.run().exit_code == 0
        assert (batch.out / "a.wav").read_bytes() == f"{place.name} it is".encode()


def test_a_file_that_is_no_batch_is_refused_before_anything_is_spoken(
    journalled: JournalledDaemon, batch: Batch
) -> None:
    batch.file.write_bytes('{"syn_text": "Hello"}\n{"syn_text": "今天"}\n'.encode("gbk"))
    result = batch.run()
    assert result.exit_code == 2
    assert "iconv -f gb18030 -t utf-8" in result.stderr.replace("\n", " ")
    assert not journalled.spoken
    assert not batch.out.exists()


def test_a_bad_line_fails_alone_and_is_reported_by_its_number(journalled: JournalledDaemon, batch: Batch) -> None:
    journalled.refuse = lambda request: (
        events.Error.of(request.id, ErrorCode.SYNTHESIS_FAILED, "the engine choked", job="j")
        if request.text == "bad"
        else None
    )
    batch.write(
        {},
        {"uttid": "no-text"},
        {"uttid": "a", "syn_text": "bad"},
        {"uttid": "b", "syn_text": "x", "prompt_speech": "missing.wav", "prompt_text": "x"},
        "good",
    )
    result = batch.run()
    assert result.exit_code == 4
    assert batch.outputs == ["good.wav"]
    failures = batch.failures
    assert [failure["line"] for failure in failures] == [1, 2, 3, 4]
    assert failures[2] == {"line": 3, "code": "synthesis_failed", "reason": "the engine choked", "output": "a.wav"}
    assert "missing.wav: No such file" in str(failures[3]["reason"])
    for words in ("line 1: ", "line 2: ", "line 3: ", "line 4: ", "1 spoken", "4 failed"):
        assert words in result.stderr


def test_a_second_run_speaks_only_the_lines_that_are_missing_or_changed(
    journalled: JournalledDaemon, batch: Batch
) -> None:
    batch.write(*"abcd")
    assert batch.run().exit_code == 0
    journalled.spoken.clear()
    (batch.out / "b.wav").unlink()
    batch.write("a", "b", {"uttid": "c", "syn_text": "another text"}, "d")
    summary = json.loads(batch.run("--json").stdout)
    assert sorted(journalled.spoken) == ["another text", "b"]
    assert (summary["spoken"], summary["skipped"], summary["failed"]) == (2, 2, [])
    journalled.spoken.clear()
    batch.run("--format", "mp3")
    assert len(journalled.spoken) == 4
    assert (batch.out / "a.mp3").exists()


def test_a_record_cut_off_by_a_crash_costs_one_line_at_most(journalled: JournalledDaemon, batch: Batch) -> None:
    batch.write("a", "b")
    batch.run("--jobs", 1)
    record = batch.out / ".glmtts-batch.jsonl"
    record.write_bytes(record.read_bytes()[:-20])
    assert batch.run().exit_code == 0
    assert batch.run().exit_code == 0
    assert batch.outputs == ["a.wav", "b.wav"] and journalled.spoken == ["a", "b"], "the job of b still has its result"


@pytest.mark.parametrize("mode", [[], ["--no-durable"]])
def test_a_failure_that_may_pass_is_retried_and_not_for_ever(
    journalled: JournalledDaemon, batch: Batch, mode: list[str]
) -> None:
    tries: dict[str, int] = {}

    def refuse(request: Synthesize) -> events.Error | None:
        tries[request.text] = tries.get(request.text, 0) + 1
        fails = request.text == "never" or tries[request.text] < 3
        return events.Error.of(request.id, ErrorCode.WORKER_CRASHED, "died", retry_after_s=0.01) if fails else None

    journalled.refuse = refuse
    batch.write("never", "later")
    result = batch.run("--retries", 3, *mode)
    assert result.exit_code == 4
    assert tries == {"never": 4, "later": 3}
    assert batch.outputs == ["later.wav"]


def test_a_daemon_that_can_not_work_stops_the_batch_instead_of_failing_every_line(
    journalled: JournalledDaemon, batch: Batch
) -> None:
    journalled.refuse = lambda request: (
        None
        if request.text == "0"
        else events.Error.of(request.id, ErrorCode.UNAVAILABLE, "no GPU is left", retry_after_s=0.01)
    )
    batch.write(*map(str, range(50)))
    result = batch.run("--retries", 1, "--jobs", 1)
    assert result.exit_code == 3
    for words in ("no GPU is left", "Run the same command again to continue", "49 left"):
        assert words in result.stderr
    assert not (batch.out / "failures.jsonl").exists()


def test_two_batches_do_not_write_into_one_folder(batch: Batch) -> None:
    batch.write("a")
    batch.out.mkdir()
    with ProgressFile(batch.out):
        result = batch.run()
    assert result.exit_code == 1
    assert "another batch is writing there" in result.stderr


def test_on_a_terminal_there_is_a_bar_with_the_time_left(batch: Batch, on_terminal: OnTerminal) -> None:
    batch.write(*"abc")
    result = on_terminal("batch", str(batch.file), "--out", str(batch.out), width=100, stream="stderr")
    assert result.returncode == 0
    assert "3/3" in result.stdout and "left:" in result.stdout


# --- the end of the command


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_the_daemon_finishes_the_lines_of_an_interrupted_command_and_resume_fetches_them(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon, number: int, status: int
) -> None:
    journalled.held = {"b", "c"}
    batch.write(*"abcd")
    process = batch.begin("--jobs", "2")
    until_asked(daemon, 3)
    os.kill(process.pid, number)
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == status
    assert (
        "The daemon finishes 2 lines; run the same command with --resume to fetch them and continue with the other."
        in words
    )
    assert "Traceback" not in words
    assert journalled.cancelled == []
    assert sorted(path.name for path in batch.out.iterdir()) == [".glmtts-batch.jsonl", "a.wav"]
    journalled.end("b")
    journalled.held.clear()
    result = batch.run("--resume")
    assert result.exit_code == 0, result.output
    assert batch.outputs == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert (batch.out / "b.wav").read_bytes() == b"b"
    assert sorted(journalled.spoken) == ["a", "b", "c", "d"], "nothing is spoken twice"


@pytest.mark.parametrize("option", ["--cancel-on-exit", "--no-durable"])
def test_jobs_that_are_not_to_outlive_the_command_are_cancelled_and_spoken_again_by_the_next_run(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon, option: str
) -> None:
    journalled.held = {"a", "b"}
    batch.write("a", "b")
    process = batch.begin(option)
    until_asked(daemon, 2)
    os.kill(process.pid, signal.SIGINT)
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert sorted(journalled.cancelled) == ["a", "b"]
    assert "2 left" in words and "Run the same command again to continue" in words
    journalled.end("a", "b", error=ErrorCode.CANCELLED)
    assert batch.run().exit_code == 0
    assert sorted(journalled.spoken) == ["a", "a", "b", "b"]


def test_resume_refuses_a_folder_without_a_batch(batch: Batch) -> None:
    batch.write("a")
    result = batch.run("--resume")
    assert result.exit_code == 2
    assert "no batch was begun there" in result.stderr
    assert not batch.out.exists()


# --- the jobs


@pytest.mark.parametrize("mode", [[], ["--no-durable"]])
def test_lines_are_submitted_in_their_order_and_no_more_ahead_than_asked_for(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon, mode: list[str]
) -> None:
    texts = [f"{number:02}" for number in range(20)]
    journalled.held = set(texts)
    batch.write(*texts)
    process = batch.begin("--jobs", "5", *mode)
    until_asked(daemon, 5)
    for number, text in enumerate(texts):
        assert len(journalled.spoken) <= number + 5
        journalled.end(text)
        if number < 15:
            until_asked(daemon, 1)
    assert process.wait(DEADLINE_S) == 0
    assert journalled.spoken == texts


def test_a_restart_of_the_daemon_fails_no_line(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon
) -> None:
    texts = [f"{number:02}" for number in range(30)]
    journalled.held = set(texts)
    batch.write(*texts)
    process = batch.begin("--jobs", "20")
    until_asked(daemon, 20)
    daemon.stop()
    journalled.end(*texts[:10])
    daemon.start()
    for _ in range(20):
        # One that had not read its acceptance yet is sent again, with its key.
        asked = daemon.next().request
        while not isinstance(asked, Wait | Synthesize):
            asked = daemon.next().request
    journalled.end(*texts[10:])
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, words
    assert len(batch.outputs) == 30
    assert journalled.spoken == texts


def test_a_line_whose_result_is_lost_is_spoken_again_under_another_key(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon
) -> None:
    journalled.held = {"a"}
    batch.write("a")
    process = batch.begin()
    until_asked(daemon, 1)
    process.kill()
    process.wait(DEADLINE_S)
    journalled.end("a", error=ErrorCode.JOB_NOT_FOUND)
    result = batch.run("--resume")
    assert result.exit_code == 0, result.output
    assert "it is spoken again" in result.stderr
    assert journalled.spoken == ["a", "a"]


def test_a_line_that_failed_is_spoken_again_by_the_next_run(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon
) -> None:
    journalled.held = {"a"}
    batch.write("a")
    process = batch.begin()
    until_asked(daemon, 1)
    journalled.end("a", error=ErrorCode.SYNTHESIS_FAILED)
    assert process.wait(DEADLINE_S) == 4
    assert batch.run().exit_code == 0
    assert journalled.spoken == ["a", "a"]


def test_two_folders_share_no_job(journalled: JournalledDaemon, batch: Batch, tmp_path: Path) -> None:
    batch.write("a")
    for name in ("one", "two"):
        assert batch.run(out=tmp_path / name).exit_code == 0
    assert journalled.spoken == ["a", "a"]


def test_while_the_queue_is_full_one_line_asks_and_none_fails(journalled: JournalledDaemon, batch: Batch) -> None:
    refusals = iter([ErrorCode.QUEUE_FULL, ErrorCode.RATE_LIMITED, ErrorCode.QUEUE_FULL])
    asked: list[str] = []

    def refuse(request: Synthesize) -> events.Error | None:
        asked.append(request.text)
        code = next(refusals, None)
        return events.Error.of(request.id, code, "not now", retry_after_s=0.05) if code else None

    journalled.refuse = refuse
    batch.write(*"abcdef")
    result = batch.run()
    assert result.exit_code == 0, result.output
    assert asked == [*"aaaabcdef"], "the others do not ask while one waits"
    assert result.stderr.count("not now (queue_full); trying again in 0.1 s") == 1


def test_a_daemon_that_stops_is_waited_for(journalled: JournalledDaemon, batch: Batch) -> None:
    refusals = iter([ErrorCode.SHUTTING_DOWN] * 8)

    def refuse(request: Synthesize) -> events.Error | None:
        code = next(refusals, None)
        return events.Error.of(request.id, code, "it ends", retry_after_s=0.01) if code else None

    journalled.refuse = refuse
    batch.write("a", "b")
    assert batch.run("--retries", 1).exit_code == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (ErrorCode.BAD_REQUEST, "durable: this daemon keeps no journal; leave the key out, or send false"),
        (ErrorCode.UNAVAILABLE, "the journal can't be used: the disk is full"),
        (ErrorCode.UNAVAILABLE, 'durable: /var/lib/glmtts is read-only; send "durable": false to have it spoken'),
    ],
)
def test_a_daemon_without_a_journal_refuses_the_batch_and_the_way_out_is_named(
    journalled: JournalledDaemon, batch: Batch, code: ErrorCode, message: str
) -> None:
    journalled.refuse = lambda request: (
        events.Error.of(request.id, code, message, retry_after_s=0.01) if request.durable else None
    )
    batch.write("a", "b")
    result = batch.run("--retries", 1)
    assert result.exit_code == 3
    assert message in result.stderr and "--no-durable" in result.stderr
    assert not (batch.out / "failures.jsonl").exists(), "no line is to blame"
    assert batch.run("--no-durable").exit_code == 0


def test_the_recordings_under_way_stay_within_bounds(
    journalled: JournalledDaemon, batch: Batch, daemon: ScriptedDaemon, tmp_path: Path
) -> None:
    (tmp_path / "p.wav").write_bytes(bytes(9 << 20))
    batch.write(*"abcdef", prompt_speech="p.wav", prompt_text="x")
    journalled.held = set("abcdef")
    process = batch.begin()
    until_asked(daemon, 3)
    journalled.end("b")
    until_asked(daemon, 1)
    ends = time.monotonic() + DEADLINE_S
    while len(journalled.spoken) < 4 and time.monotonic() < ends:  # the request is noted before it is handled
        time.sleep(0.01)
    assert journalled.spoken == ["a", "b", "c", "d"], "the fourth recording waits for the end of one of three"
    journalled.end(*"acdef")
    assert process.wait(DEADLINE_S) == 0
