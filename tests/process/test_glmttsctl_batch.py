"""`glmttsctl batch` against a real daemon: terminals close, daemons are killed, and no line is lost or spoken twice."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

from .conftest import Daemon
from .glmttsctl import GLMTTSCTL, environment

PATIENCE_S = 40.0
LINES = 12
OPTION = ["--option", "seconds=0.3"]


class Batch:
    """A book of short lines and the command that has it spoken, by one daemon."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.file = folder / "book.jsonl"
        self.file.write_text(
            "".join(json.dumps({"uttid": f"l{n}", "syn_text": f"line {n}"}) + "\n" for n in range(LINES))
        )
        self.processes: list[subprocess.Popen[str]] = []

    def begin(self, daemon: Daemon, *more: str) -> subprocess.Popen[str]:
        # The tests may run under nohup, and the command would then ignore a closed terminal too.
        process = subprocess.Popen(
            ["env", "--default-signal=HUP", GLMTTSCTL, "batch", str(self.file), "--out", str(self.out), *OPTION, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(daemon),
        )
        self.processes.append(process)
        return process

    def run(self, daemon: Daemon, *more: str) -> str:
        """Run it to its good end; returns what it said."""
        process = self.begin(daemon, *more)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        return said

    def check(self) -> None:
        """Every line is there, and sounds."""
        assert sorted(path.name for path in self.out.glob("*.wav")) == sorted(f"l{n}.wav" for n in range(LINES))
        for path in self.out.glob("*.wav"):
            samples, rate = soundfile.read(path)
            assert len(samples) == round(0.3 * rate)
        assert not (self.out / "failures.jsonl").exists()


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    made = Batch(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def waiting(daemon: Daemon) -> int:
    return int(daemon.status()["queue"]["waiting"])


def accepted_and_done(daemon: Daemon) -> tuple[int, int]:
    counts = daemon.status()["counts"]
    return counts["accepted"], counts["done"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_what_the_daemon_has_is_spoken_without_the_command_and_fetched_by_the_next(
    start: Callable[..., Daemon], batch: Batch, number: int
) -> None:
    daemon = start()
    daemon.control("pause")
    process = batch.begin(daemon)
    daemon.until(lambda: waiting(daemon) == LINES, "the daemon has every line")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    if number != signal.SIGKILL:
        assert f"The daemon finishes {LINES} lines; run the same command with --resume to fetch them." in said
    daemon.control("resume")
    daemon.until(lambda: accepted_and_done(daemon) == (LINES, LINES), "they are spoken")
    batch.run(daemon, "--resume")
    batch.check()
    assert accepted_and_done(daemon) == (LINES, LINES), "nothing was spoken twice"


def test_a_daemon_killed_under_a_batch_fails_no_line_of_it(start: Callable[..., Daemon], batch: Batch) -> None:
    daemon = start()
    process = batch.begin(daemon, "--jobs", "5", "--option", "rtf=0.3")
    daemon.until(lambda: accepted_and_done(daemon)[1] >= 2, "the first lines are spoken")
    daemon.kill()
    daemon.restart()
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    batch.check()


def test_a_daemon_whose_journal_is_off_refuses_with_the_reason_and_speaks_without(
    start: Callable[..., Daemon], batch: Batch
) -> None:
    daemon = start(daemon={"state_dir": "/proc/nowhere"})
    process = batch.begin(daemon, "--retries", "0")
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3 and "journal" in said and "--no-durable" in said, said
    batch.run(daemon, "--no-durable")
    batch.check()
