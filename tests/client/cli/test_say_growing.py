"""`glmttsctl say - --stream`: speech of a standard input that still grows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from glmtts.client import FLUSH
from glmtts.client.cli.growing_text import GrowingText
from glmtts.protocol import events
from glmtts.protocol.requests import Cancel, Info, Request, Synthesize, Text

from ..scripted_daemon import ScriptedDaemon, accepted, audio, done
from .conftest import GLMTTSCTL

LIMITS = {"text_chars": 40, "text_timeout_s": 60.0}


class Speaks:
    """Answers each piece with its text as audio, and the last one with the end of its job."""

    def __init__(self, **limits: object) -> None:
        self._limits = LIMITS | limits
        self._jobs: dict[str, tuple[bytes, str]] = {}
        self._seq = 0
        self.texts: list[str] = []

    def __call__(self, daemon: ScriptedDaemon, peer: bytes, request: Request, _: bytes) -> None:
        match request:
            case Info():
                daemon.send(
                    peer,
                    events.InfoAnswer(
                        id=request.id, version="0", protocol=1, engine="scripted", sample_rate=24_000,
                        sample_rates=[24_000], formats=["wav"], voices=[], default_voice="", clones_voices=False,
                        limits=self._limits, options={}, ready=True,
                    ),
                )  # fmt: skip
            case Synthesize():
                assert request.more and request.stream
                job = daemon.new_job()
                self._jobs[job] = (peer, request.id)
                self._seq = 0
                self.texts.append("")
                daemon.send(peer, accepted(job, request.id))
            case Text():
                daemon.send(peer, events.Result(id=request.id, values={}))
                asker, id = self._jobs[request.job]
                if request.text:
                    self.texts[-1] += request.text
                    daemon.send(asker, audio(request.job, id, self._seq), request.text.encode())
                    self._seq += 1
                if request.last:
                    daemon.send(asker, done(request.job, id, chunks=self._seq))
            case _:
                daemon.send(peer, events.Result(id=request.id, values={"state": "cancelled"}))


@contextlib.contextmanager
def said(daemon: ScriptedDaemon, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program with pipes, as a language model's would be."""
    command = [*GLMTTSCTL, "say", "-", "--stream", *arguments, "--endpoint", daemon.endpoint]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_speaks_while_its_input_grows_and_ends_with_it(daemon: ScriptedDaemon) -> None:
    daemon.script = speaks = Speaks()
    with said(daemon, "-q") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"One. T")
        # Heard before the next word is written.
        assert process.stdout.read(6) == b"One. T"
        process.stdin.write("wo 二".encode()[:-1])
        assert process.stdout.read(3) == b"wo "
        process.stdin.write("二".encode()[-1:])
        process.stdin.close()
        assert process.stdout.read() == "二".encode()
        assert process.wait(20) == 0
    assert speaks.texts == ["One. Two 二"]


def test_ctrl_c_cancels_the_job(daemon: ScriptedDaemon) -> None:
    daemon.script = Speaks()
    with said(daemon) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"One. ")
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert (process.returncode, words.strip()) == (130, b"Interrupted.")
    assert daemon.next_of(Cancel).job == "j1"


def test_ctrl_c_before_the_first_word_leaves_no_job(daemon: ScriptedDaemon) -> None:
    daemon.script = Speaks()
    with said(daemon) as process:
        daemon.next_of(Info)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert (process.returncode, words.strip(), daemon.asked()) == (130, b"Interrupted.", [])


def test_a_closed_output_ends_it_quietly(daemon: ScriptedDaemon) -> None:
    daemon.script = Speaks(text_chars=5_000)
    with said(daemon, "-q") as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"One. ")
        process.stdout.read(5)
        process.stdout.close()
        process.stdin.write(b"Two. ")
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
    assert daemon.next_of(Cancel).job == "j1"


def test_a_longer_text_than_a_job_takes_is_several_jobs(daemon: ScriptedDaemon) -> None:
    daemon.script = speaks = Speaks()
    with said(daemon) as process:
        heard, words = process.communicate(b"This is one sentence. This is another one. And a third. ", timeout=20)
    assert heard == b"This is one sentence. This is another one. And a third. "
    assert speaks.texts == ["This is one sentence. ", "This is another one. And a third. "]
    assert process.returncode == 0 and words.count(b" of speech") == 2


@pytest.mark.parametrize(
    ("text", "words"), [(b" \n", b"no letter or digit"), ("天气".encode("gbk"), b"not valid UTF-8")]
)
def test_an_input_that_is_no_text_is_wrong_usage(daemon: ScriptedDaemon, text: bytes, words: bytes) -> None:
    daemon.script = Speaks()
    with said(daemon) as process:
        _, told = process.communicate(text, timeout=20)
    assert process.returncode == 2 and words in told, told


def test_utf_16_is_read(daemon: ScriptedDaemon) -> None:
    daemon.script = speaks = Speaks()
    with said(daemon) as process:
        process.communicate("今天天气。".encode("utf-16"), timeout=20)
    assert speaks.texts == ["今天天气。"]


def test_who_pauses_hears_what_was_written_and_keeps_the_job() -> None:
    """The line that a person has typed is spoken, and the daemon is not left without text for as long as it waits."""
    read, write = os.pipe()
    text = GrowingText(read, longest=40, patience_s=1.0)
    threading.Timer(0.1, os.write, (write, b"Hello.\n")).start()
    assert text.wait()
    pieces = text.pieces()
    assert next(pieces) == "Hello.\n"
    began = time.monotonic()
    assert next(pieces) is FLUSH
    assert next(pieces) == " "
    assert time.monotonic() - began < 5
    os.close(write)
    assert list(pieces) == [] and not text.wait()
    os.close(read)
