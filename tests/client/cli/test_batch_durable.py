"""`glmttsctl batch` on durable jobs: the daemon goes on when the command ends, and nothing is spoken twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode

DEADLINE_S = 20.0


class Journalled:
    """A scripted daemon with a journal: jobs by key, which are done at once, or when their text is released."""

    def __init__(self, daemon: Any, say: Any) -> None:
        self.daemon = daemon
        self.say = say
        self.spoken: list[str] = []
        self.held: set[str] = set()
        self.cancelled: list[str] = []
        self.refuse: Callable[[Any], events.Error | None] = lambda _: None
        self._by_key: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        daemon.script = self.script

    def script(self, daemon: Any, peer: bytes, request: Any, body: bytes) -> None:
        with self._lock:
            match request.__struct_config__.tag:
                case "synthesize":
                    self._synthesize(peer, request, body)
                case "wait":
                    self._subscribe(self._find(request.job), peer, request.id)
                case "cancel":
                    job = self._find(request.job)
                    self.cancelled.append(job["text"])
                    daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))

    def _synthesize(self, peer: bytes, request: Any, body: bytes) -> None:
        if refusal := self.refuse(request):
            self.daemon.send(peer, refusal)
            return
        assert request.durable is True and 1 <= len(request.key) <= 128
        job = self._by_key.get(request.key)
        if job is None:
            audio = body + request.text.encode()
            job = {"id": self.daemon.new_job(), "text": request.text, "audio": audio, "told": [], "state": "waiting"}
            self._by_key[request.key] = job
            self.spoken.append(request.text)
        self.daemon.send(peer, self.say.accepted(job["id"], request.id))
        self._subscribe(job, peer, request.id)

    def _subscribe(self, job: dict[str, Any], peer: bytes, id: str) -> None:
        job["told"].append((peer, id))
        if job["state"] != "waiting" or job["text"] not in self.held:
            self._end(job)

    def _end(self, job: dict[str, Any]) -> None:
        told, job["told"] = job["told"], []
        if job["state"] == "waiting":
            job["state"] = "done"
        for peer, id in told:
            if job["state"] == "done":
                self.daemon.send(peer, self.say.done(job["id"], id, job["audio"]), job["audio"])
            else:
                self.daemon.send(peer, events.Error.of(id, job["state"], "it says why", job=job["id"]))

    def _find(self, id: str) -> dict[str, Any]:
        return next(job for job in self._by_key.values() if job["id"] == id)

    def end(self, text: str, state: Any = "done") -> None:
        """Let the job of a text end: well, or with an error code; who hears of it later is told the same."""
        with self._lock:
            for job in self._by_key.values():
                if job["text"] == text:
                    self.held.discard(text)
                    job["state"] = state
                    self._end(job)


@pytest.fixture
def journalled(daemon: Any, say: Any) -> Journalled:
    return Journalled(daemon, say)


class Batch:
    """Lines in a file, and the command that speaks them into ``out``: here, or as a process of its own."""

    def __init__(self, ctl: Any, daemon: Any, folder: Path) -> None:
        self.out = folder / "out"
        self.file = folder / "b.jsonl"
        self._ctl = ctl
        self._endpoint = daemon.endpoint
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, *texts: str, **keys: str) -> None:
        lines = ({"uttid": text, "syn_text": text} | keys for text in texts)
        self.file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, *more: str, out: Path | None = None) -> Result:
        result: Result = self._ctl("batch", self.file, "--out", out or self.out, *more)
        return result

    def begin(self, *more: str) -> subprocess.Popen[str]:
        code = "from glmtts.client.cli import main; main()"
        # Who runs the tests may have a closed terminal ignored, as under nohup, and the command would ignore it too.
        env = ["env", "--default-signal=HUP"]
        command = [*env, sys.executable, "-c", code, "batch", str(self.file), "--out", str(self.out)]
        process = subprocess.Popen(
            [*command, "--endpoint", self._endpoint, *more],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    @property
    def outputs(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("*.wav"))


@pytest.fixture
def batch(ctl: Any, daemon: Any, tmp_path: Path) -> Iterator[Batch]:
    made = Batch(ctl, daemon, tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def until_asked(daemon: Any, count: int) -> None:
    for _ in range(count):
        daemon.next_request("synthesize")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_an_end_of_the_command_leaves_the_lines_to_the_daemon_and_resume_fetches_them(
    journalled: Journalled, batch: Batch, daemon: Any, number: int, status: int
) -> None:
    journalled.held = {"b", "c"}
    batch.write("a", "b", "c", "d")
    process = batch.begin("--jobs", "2")
    until_asked(daemon, 3)
    os.kill(process.pid, number)
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == status
    assert (
        "2 lines go on in the daemon; the same command with --resume fetches them, and goes on with the other" in words
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


def test_killed_outright_the_plain_command_joins_its_lines_as_well(
    journalled: Journalled, batch: Batch, daemon: Any
) -> None:
    journalled.held = {"a", "b"}
    batch.write("a", "b")
    process = batch.begin()
    until_asked(daemon, 2)
    process.kill()
    process.wait(DEADLINE_S)
    journalled.end("a")
    journalled.end("b")
    assert batch.run().exit_code == 0
    assert journalled.spoken == ["a", "b"]


def test_lines_are_given_to_the_daemon_in_their_order_and_no_more_ahead_than_was_said(
    journalled: Journalled, batch: Batch, daemon: Any
) -> None:
    texts = [f"{number:02}" for number in range(20)]
    journalled.held = set(texts)
    batch.write(*texts)
    process = batch.begin("--jobs", "5")
    until_asked(daemon, 5)
    for number, text in enumerate(texts):
        assert len(journalled.spoken) <= number + 5
        journalled.end(text)
        if number < 15:
            until_asked(daemon, 1)
    assert process.wait(DEADLINE_S) == 0
    assert journalled.spoken == texts


def test_cancel_on_exit_ends_the_jobs_and_the_next_run_speaks_them_anew(
    journalled: Journalled, batch: Batch, daemon: Any
) -> None:
    journalled.held = {"a", "b"}
    batch.write("a", "b")
    process = batch.begin("--cancel-on-exit")
    until_asked(daemon, 2)
    os.kill(process.pid, signal.SIGINT)
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert sorted(journalled.cancelled) == ["a", "b"]
    assert "The same command goes on from here" in words
    journalled.end("a", ErrorCode.CANCELLED)
    journalled.end("b", ErrorCode.CANCELLED)
    assert batch.run().exit_code == 0
    assert sorted(journalled.spoken) == ["a", "a", "b", "b"]


def test_a_restart_of_the_daemon_fails_no_line(journalled: Journalled, batch: Batch, daemon: Any) -> None:
    texts = [f"{number:02}" for number in range(30)]
    journalled.held = set(texts)
    batch.write(*texts)
    process = batch.begin("--jobs", "20")
    until_asked(daemon, 20)
    daemon.stop()
    for text in texts[:10]:
        journalled.end(text)
    daemon.start()
    for _ in range(20):
        daemon.next_request("wait")
    for text in texts[10:]:
        journalled.held.discard(text)
        journalled.end(text)
    _, words = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, words
    assert len(batch.outputs) == 30
    assert journalled.spoken == texts


def test_a_result_that_is_not_kept_any_more_is_spoken_again_under_a_fresh_key(
    journalled: Journalled, batch: Batch, daemon: Any
) -> None:
    journalled.held = {"a"}
    batch.write("a")
    process = batch.begin()
    until_asked(daemon, 1)
    process.kill()
    process.wait(DEADLINE_S)
    journalled.end("a", ErrorCode.JOB_NOT_FOUND)
    result = batch.run("--resume")
    assert result.exit_code == 0, result.output
    assert "it is spoken again" in result.stderr
    assert journalled.spoken == ["a", "a"]
    assert (batch.out / "a.wav").read_bytes() == b"a"


def test_a_line_that_failed_is_tried_anew_by_the_next_run_and_not_told_its_old_failure(
    journalled: Journalled, batch: Batch, daemon: Any
) -> None:
    journalled.held = {"a"}
    batch.write("a")
    process = batch.begin()
    until_asked(daemon, 1)
    journalled.end("a", ErrorCode.SYNTHESIS_FAILED)
    assert process.wait(DEADLINE_S) == 4
    assert batch.run().exit_code == 0
    assert journalled.spoken == ["a", "a"]


def test_an_output_that_was_thrown_away_is_spoken_anew(journalled: Journalled, batch: Batch) -> None:
    batch.write("a", "b")
    assert batch.run().exit_code == 0
    (batch.out / "a.wav").unlink()
    assert batch.run().exit_code == 0
    assert sorted(journalled.spoken) == ["a", "a", "b"]


def test_two_folders_share_no_job(journalled: Journalled, batch: Batch, tmp_path: Path) -> None:
    batch.write("a")
    for name in ("one", "two"):
        assert batch.run(out=tmp_path / name).exit_code == 0
    assert journalled.spoken == ["a", "a"]


def test_a_full_queue_is_waited_for_by_one_line_and_fails_none(journalled: Journalled, batch: Batch) -> None:
    refusals = iter([ErrorCode.QUEUE_FULL, ErrorCode.RATE_LIMITED, ErrorCode.QUEUE_FULL])
    asked: list[str] = []

    def refuse(request: Any) -> events.Error | None:
        asked.append(request.text)
        code = next(refusals, None)
        return events.Error.of(request.id, code, "not now", retry_after_s=0.05) if code else None

    journalled.refuse = refuse
    batch.write(*"abcdef")
    result = batch.run()
    assert result.exit_code == 0, result.output
    assert asked == [*"aaaabcdef"], "the others do not ask while one is told to wait"
    assert result.stderr.count("not now (queue_full); trying again in 0.1 s") == 1


def test_a_daemon_that_ends_and_comes_back_is_waited_for(journalled: Journalled, batch: Batch) -> None:
    refusals = iter([ErrorCode.SHUTTING_DOWN] * 8)

    def refuse(request: Any) -> events.Error | None:
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
def test_without_a_journal_the_person_is_told_what_to_do(
    journalled: Journalled, batch: Batch, code: ErrorCode, message: str
) -> None:
    journalled.refuse = lambda request: events.Error.of(request.id, code, message, retry_after_s=0.01)
    batch.write("a", "b")
    result = batch.run("--retries", 1)
    assert result.exit_code == 3
    assert message in result.stderr and "--no-durable" in result.stderr
    assert not (batch.out / "failures.jsonl").exists(), "no line is to blame"


def test_resume_refuses_a_folder_in_which_nothing_was_begun(batch: Batch) -> None:
    batch.write("a")
    result = batch.run("--resume")
    assert result.exit_code == 2
    assert "no batch was begun there" in result.stderr
    assert not batch.out.exists()


def test_recordings_that_wait_with_the_daemon_stay_within_bounds(
    journalled: Journalled, batch: Batch, daemon: Any, tmp_path: Path
) -> None:
    (tmp_path / "p.wav").write_bytes(bytes(9 << 20))
    batch.write(*"abcdef", prompt_speech="p.wav", prompt_text="x")
    journalled.held = set("abcdef")
    process = batch.begin()
    until_asked(daemon, 3)
    journalled.end("b")
    until_asked(daemon, 1)
    assert journalled.spoken == ["a", "b", "c", "d"], "no fourth recording before one of three was spoken with"
    for text in "acdef":
        journalled.held.discard(text)
        journalled.end(text)
    assert process.wait(DEADLINE_S) == 0
