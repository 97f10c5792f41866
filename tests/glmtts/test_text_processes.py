"""Texts in processes of their own: segments and tokens are upstream's, and a text that breaks a process fails alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.engines.glmtts import front_end as under_test
from glmtts.daemon.engines.glmtts.front_end import FrontEnd, Pending
from glmtts.daemon.engines.glmtts.text_tasks import Prepared
from glmtts.daemon.engines.glmtts.upstream import UpstreamError
from glmtts.protocol.worker import CancelJob, Failed

from ..process.worker_under_test import Start, WorkerUnderTest
from .test_jobs import LONG, SHORT, is_unharmed, speak
from .test_same_as_upstream import CHINESE, ENGLISH, MIXED
from .upstream_root import Root, asked

Make = Callable[..., FrontEnd]


@pytest.fixture
def lines() -> list[str]:
    """What is written to the daemon's log."""
    return []


@pytest.fixture
def make(root: Root, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes front ends of a root, as its workers do."""
    monkeypatch.setattr(sys, "executable", root.python)
    root.cache.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:

        def begin(folder: Path = root.folder, dictionary: str = "", *, processes: int = 1) -> FrontEnd:
            front_end = FrontEnd(folder, root.cache, dictionary, processes=processes, warn=lines.append)
            stack.callback(front_end.close)
            front_end.until_ready()
            return front_end

        yield begin


def segments(front_end: FrontEnd, pending: Pending) -> list[Prepared]:
    """All segments of a text, as they come."""
    found: list[Prepared] = []
    deadline = time.monotonic() + 120

    def is_late() -> None:
        assert time.monotonic() < deadline

    while True:
        front_end.wait(lambda: bool(pending.ready) or pending.ended, is_late)
        segment = pending.take()
        if segment is None:
            assert pending.error is None, pending.error
            return found
        found.append(segment)


def read(front_end: FrontEnd, text: str, *, use_phoneme: bool = False) -> list[Prepared]:
    return segments(front_end, front_end.ask(text, use_phoneme=use_phoneme))


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def text_processes(worker: int) -> list[int]:
    (template,) = children(worker)
    return children(template)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, although perhaps it is not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- the same as upstream's


def test_segments_and_tokens_are_those_that_upstream_makes(root: Root, make: Make, tmp_path: Path) -> None:
    front_end = make(processes=2)
    with root.upstream_reads(tmp_path) as ask:
        for text in (
            CHINESE,
            ENGLISH,
            MIXED,
            LONG,
            SHORT,
            "1. One\n2. Two",
            "琴弦与弈棋，乡音无改鬓毛衰，和弦use python。",
        ):
            theirs = ask(text)
            for use_phoneme, tokens in ((False, "tokens"), (True, "tokens_with_phonemes")):
                ours = read(front_end, text, use_phoneme=use_phoneme)
                assert [one.text for one in ours] == theirs["whole_segments"]
                assert [one.normalised for one in ours] == theirs["spoken"]
                assert [one.tokens for one in ours] == theirs[tokens]


def test_no_text_process_imports_torch(make: Make) -> None:
    front_end = make()
    read(front_end, SHORT, use_phoneme=True)
    template = max(children(os.getpid()))
    for pid in (template, *children(template)):
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.usefixtures("stand_in")
def test_a_tokenizer_that_needs_torch_gets_it(own_root: Root, make: Make) -> None:
    tokenizer = own_root.folder / "transformers" / "tokenizer.py"
    words = tokenizer.read_text() + "\n\nimport torch\n\n\nclass Needy(torch.nn.Module):\n    pass\n"
    tokenizer.unlink()
    tokenizer.write_text(words)
    assert read(make(own_root.folder), SHORT)


# --- side by side


@pytest.mark.usefixtures("stand_in")
def test_the_work_of_forty_sentences_is_not_the_workers(make: Make) -> None:
    # Processor time, which other programs of the machine don't change: the texts take 40 x 2 x 0.04 s of it.
    front_end = make()
    begun = time.process_time()
    for number in range(40):
        read(front_end, f"slowreading {number} sentences.")
    assert time.process_time() - begun < 1.0


@pytest.mark.usefixtures("stand_in")
def test_a_short_text_is_not_held_up_by_a_long_one(make: Make) -> None:
    front_end = make()
    long = front_end.ask("slowreading and many words. " * 100, use_phoneme=False)
    front_end.wait(lambda: long.done > 1, lambda: None)
    assert read(front_end, SHORT)
    assert long.normalised is None and not long.ended
    assert len(segments(front_end, long)) > 10


def test_segments_are_prepared_a_few_ahead_and_no_more(make: Make) -> None:
    front_end = make()
    pending = front_end.ask(LONG * 4, use_phoneme=False)
    front_end.wait(lambda: len(pending.ready) == 2, lambda: None)
    # Tasks are done in turn: had there been another, it would be done by now.
    read(front_end, SHORT)
    assert len(pending.ready) == 2 and not pending.ended
    assert len(segments(front_end, pending)) == len(pending.texts or ()) > 10


def test_a_transcript_is_read_once(make: Make) -> None:
    front_end = make()
    first = front_end.ask_transcript(SHORT)
    assert not first.ended
    front_end.wait(lambda: first.ended, lambda: None)
    again = front_end.ask_transcript(SHORT)
    assert again.ended and again.normalised == first.normalised is not None
    assert front_end.poll() == [again]


# --- processes that are lost


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("word", ["hangsreading", "diesreading"])
def test_a_text_that_breaks_its_process_fails_alone(
    make: Make, lines: list[str], monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(under_test, "TASK_S", 1.0)
    front_end = make()
    before = read(front_end, SHORT)
    bad = front_end.ask(f"Whisper {word} to me.", use_phoneme=False)
    others = [front_end.ask(SHORT, use_phoneme=False) for _ in range(3)]
    front_end.wait(lambda: bad.ended, lambda: None)
    assert bad.error is not None and bad.error.code == "synthesis_failed" and not bad.error.fatal
    assert bad.error.quotes and word in bad.error.message and "Send the job again" in bad.error.message
    assert [segments(front_end, other) for other in others] == [before] * 3
    assert read(front_end, SHORT) == before
    (line,) = lines
    assert "another takes its place" in line and word not in line


@pytest.mark.usefixtures("stand_in")
def test_a_dropped_text_does_not_keep_its_process(make: Make, lines: list[str]) -> None:
    front_end = make()
    bad = front_end.ask("hangsreading", use_phoneme=False)
    front_end.drop(bad)
    begun = time.monotonic()
    assert read(front_end, SHORT)
    assert time.monotonic() - begun < under_test.TASK_S / 2
    assert not bad.ended and "dropped" in lines[0]


@pytest.mark.usefixtures("stand_in")
def test_texts_survive_the_end_of_the_template(make: Make, lines: list[str]) -> None:
    front_end = make(processes=2)
    before = read(front_end, "slowreading and many words. " * 20)
    pending = front_end.ask("slowreading and many words. " * 20, use_phoneme=False)
    front_end.wait(lambda: pending.done > 2, lambda: None)
    template = max(children(os.getpid()))
    forks = children(template)
    os.kill(template, signal.SIGKILL)
    assert segments(front_end, pending) == before
    assert all(is_gone(pid) for pid in forks)
    assert "template" in lines[0]


@pytest.mark.parametrize("which", ["process", "template"])
def test_a_process_that_is_lost_while_it_is_idle_costs_no_text(make: Make, lines: list[str], which: str) -> None:
    front_end = make(processes=2)
    before = read(front_end, SHORT)
    template = max(children(os.getpid()))
    forks = children(template)
    lost = [template, *forks] if which == "template" else forks[:1]
    os.kill(lost[0], signal.SIGKILL)
    until(lambda: all(map(is_gone, lost)))
    # Two at once, so that each process is asked.
    pending = front_end.ask(SHORT, use_phoneme=False)
    assert read(front_end, SHORT) == segments(front_end, pending) == before
    assert len(lines) == 1 and which in lines[0]


@pytest.mark.usefixtures("stand_in")
def test_a_template_that_can_not_fork_is_no_endless_start(
    make: Make, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        os.kill(max(children(os.getpid())), signal.SIGKILL)

    monkeypatch.setattr(socket, "send_fds", kill)
    with pytest.raises(UpstreamError):
        make()
    assert len(lines) == 1


def test_a_front_end_that_can_not_be_started_again_ends_its_worker(make: Make, tmp_path: Path) -> None:
    dictionary = tmp_path / "words.jsonl"
    dictionary.write_text('{"天气": "<|Q|><|I4|>"}\n', encoding="utf-8")
    front_end = make(dictionary=str(dictionary))
    read(front_end, SHORT)
    dictionary.write_text("[]\n", encoding="utf-8")
    template = max(children(os.getpid()))
    lost = [template, *children(template)]
    os.kill(template, signal.SIGKILL)
    until(lambda: all(map(is_gone, lost)))
    pending = front_end.ask(SHORT, use_phoneme=False)
    front_end.wait(lambda: pending.ended, lambda: None)
    assert pending.error is not None and pending.error.fatal and f"{dictionary}:1" in pending.error.message
    assert front_end.ask(SHORT, use_phoneme=False).error is not None


# --- in a worker


@pytest.mark.usefixtures("stand_in")
def test_a_text_process_that_is_killed_fails_its_job_and_the_next_is_spoken(worker: WorkerUnderTest) -> None:
    before = speak(worker, SHORT)
    name = worker.start(**asked(f"hangsreading {SHORT}"))
    worker.receive()
    for pid in text_processes(worker.process.pid):
        os.kill(pid, signal.SIGKILL)
    end, _ = worker.until_end(name)
    assert isinstance(end, Failed) and end.code == "synthesis_failed" and not end.fatal
    assert "hangsreading" in end.message and "hangsreading" not in end.reason
    assert is_unharmed(worker, before)


@pytest.mark.usefixtures("stand_in")
def test_a_job_is_cancelled_while_its_text_is_read(worker: WorkerUnderTest) -> None:
    before = speak(worker, SHORT)
    name = worker.start(**asked(f"hangsreading {SHORT}"))
    worker.receive()
    worker.send(CancelJob(job=name))
    end, _ = worker.until_end(name)
    assert isinstance(end, Failed) and end.code == "cancelled"
    assert is_unharmed(worker, before)


def test_text_processes_end_with_a_worker_that_is_killed(root: Root, start: Start) -> None:
    worker = start(**root.worker(text_processes=3))
    worker.ready()
    # One of them reads, and does not see that its channel is closed.
    worker.start(**asked(f"hangsreading {LONG}"))
    worker.receive()
    template, forks = children(worker.process.pid)[0], text_processes(worker.process.pid)
    assert len(forks) == 3
    worker.process.kill()
    until(lambda: all(is_gone(pid) for pid in (template, *forks)))
