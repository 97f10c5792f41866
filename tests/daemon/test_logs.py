"""The log: no peer can forge a line, and a log that is read slowly stops nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon.log import logger
from glmtts.daemon.log.format import json_line, text_line, timestamp
from glmtts.daemon.log.logger import Format, Logger, is_journal
from glmtts.protocol.control import LogLevel

FORMATS: tuple[Format, ...] = ("text", "json")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def written(
    file: Path, log_lines: Callable[[Logger], object], level: LogLevel = "info", format: Format = "text"
) -> list[str]:
    """The lines of a log after ``log_lines``."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    log = Logger(level, format, fd=fd, journal=False, capacity=10_000)
    log_lines(log)
    assert log.close(10)
    os.close(fd)
    return file.read_text(encoding="utf-8").splitlines()


def test_a_line_has_time_level_message_and_fields(tmp_path: Path) -> None:
    (line,) = written(
        tmp_path / "log",
        lambda log: log.info("worker ready", worker="w0", load_s=1.2, gpu=None, spare=False, cause="exit 1", empty=""),
    )
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO worker ready "
        r'worker=w0 load_s=1\.2 gpu=None spare=false cause="exit 1" empty=""',
        line,
    )
    assert timestamp(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"


def test_lines_below_the_level_are_not_written_and_the_level_changes_at_run_time(tmp_path: Path) -> None:
    def log_lines(log: Logger) -> None:
        log.info("one")
        log.warning("two")
        assert not log.enabled("info") and log.enabled("error")
        log.level = "debug"
        log.debug("three")
        log.log("error", "four")

    lines = written(tmp_path / "log", log_lines, "warning")
    assert [line.split(" ", 1)[1] for line in lines] == ["WARNING two", "DEBUG three", "ERROR four"]


def test_json_is_one_object_in_a_line_whatever_the_fields_hold(tmp_path: Path) -> None:
    fields = {"x": float("nan"), "y": [1, {"z": float("inf")}], "path": Path("/a"), "lone": "\ud800", "text": "好"}
    (line,) = written(tmp_path / "log", lambda log: log.info("a\nb", level="mine", **fields), format="json")
    value = json.loads(line, parse_constant=pytest.fail)
    assert (value["message"], value["level"], value["level_"]) == ("a\nb", "info", "mine")
    assert (value["x"], value["y"], value["path"]) == ("nan", [1, {"z": "inf"}], "/a")
    assert (value["lone"], value["text"]) == ("\ud800", "好")


@settings(deadline=None)
@given(st.text(), st.text())
def test_no_text_forges_a_second_line_or_steers_a_terminal(message: str, value: str) -> None:
    assert text_line(0.0, "info", message, {"output": value}).isprintable()
    line = json_line(0.0, "info", message, {"output": value})
    assert json.loads(line)["output"] == value and len(line.splitlines()) == 1


def test_a_value_can_not_look_like_further_fields_and_a_huge_one_is_cut() -> None:
    line = text_line(0.0, "info", "m", {"a": 'x" b="y', "c": "d=e", "f": "back\\slash", "g": "a\nb\x1b[31m"})
    assert line.endswith(r'a="x\" b=\"y" c="d=e" f="back\\slash" g="a\nb\x1b[31m"')
    assert len(text_line(0.0, "info", "m" * 100_000, {"a": "b" * 100_000})) < 20_000


@pytest.mark.parametrize("format", FORMATS)
def test_a_field_that_can_not_be_printed_does_not_cost_its_line(tmp_path: Path, format: Format) -> None:
    class Broken:
        def __str__(self) -> NoReturn:
            raise RuntimeError("no")

    (line,) = written(tmp_path / "log", lambda log: log.info("one", field=Broken(), job="b-1"), format=format)
    assert "one" in line and "RuntimeError" in line and "b-1" in line


@pytest.mark.parametrize(("level", "quoted"), [("info", 0), ("debug", 2)])
def test_a_bug_is_one_line_whose_traceback_quotes_a_client_at_debug_level_alone(
    tmp_path: Path, level: LogLevel, quoted: int
) -> None:
    private = "the text of a client"

    def log_lines(log: Logger) -> None:
        try:
            try:
                raise KeyError(private)
            except KeyError as error:
                raise OSError(28, os.strerror(28), private) from error
        except OSError as error:
            log.exception("mistake", error, job="j")  # noqa: PLE1205 (no logging.Logger)

    (line,) = written(tmp_path / "log", log_lines, level)
    assert "ERROR mistake job=j traceback=" in line and "in log_lines" in line
    assert "KeyError" in line and "OSError: " in line and "No space left on device" in line
    assert line.count(private) == quoted


def test_the_journal_gets_priorities_and_no_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    assert not is_journal(pipe[1]) and not is_journal(999_999)
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log = Logger("debug", fd=pipe[1])
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert log.close(5)
    assert os.read(pipe[0], 1_000).decode().splitlines() == ["<7>DEBUG a", "<6>INFO b", "<4>WARNING c", "<3>ERROR d"]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_log_that_is_not_read_blocks_no_caller_and_the_loss_is_counted(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"." * 4_096)
    os.set_blocking(pipe[1], blocking)
    log = Logger(fd=pipe[1], journal=False, capacity=100)
    started = time.monotonic()
    for number in range(5_000):
        log.info("line", number=number, filler="x" * 20)
    assert time.monotonic() - started < 5
    assert log.dropped > 0
    assert not log.close(0.05)
    received = bytearray()

    def read() -> None:
        while b"log lines lost" not in received:
            received.extend(os.read(pipe[0], 65_536))

    reader = threading.Thread(target=read)
    reader.start()
    assert log.close(10)
    reader.join(10)
    os.set_blocking(pipe[0], False)
    with contextlib.suppress(BlockingIOError):
        received.extend(os.read(pipe[0], 65_536))
    lost = re.findall(rb"log lines lost: the log is read too slowly lines=(\d+)", received)
    assert sum(map(int, lost)) == log.dropped
    assert received.count(b" INFO line ") + log.dropped == 5_000


def test_a_log_whose_reader_is_gone_does_not_end_the_daemon() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    log = Logger(fd=writing, journal=False)
    log.info("not read by any process")
    assert log.close(5)
    log.info("after the end")
    assert log.close(5)
    os.close(writing)


def test_lines_that_a_full_disk_loses_are_counted_and_said_when_there_is_room(tmp_path: Path) -> None:
    file = tmp_path / "log"
    fd = os.open("/dev/full", os.O_WRONLY)
    log = Logger(fd=fd, journal=False)
    for _ in range(3):
        log.warning("lost")
    while log.dropped < 3:
        time.sleep(0.001)
    room = os.open(file, os.O_WRONLY | os.O_CREAT)
    os.dup2(room, fd)
    log.warning("there is room")
    assert log.close(5)
    assert "lost: they could not be written lines=3" in file.read_text() and "there is room" in file.read_text()
    assert log.dropped == 3
    os.close(room)
    os.close(fd)


def test_a_warning_is_not_held_back_to_be_written_with_later_lines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "_GATHER_S", 60.0)
    log = Logger(fd=pipe[1], journal=False)
    log.info("first")
    os.read(pipe[0], 1_000)
    time.sleep(0.05)  # now the thread lets lines gather, or this test could not fail
    log.warning("second")
    assert select.select([pipe[0]], [], [], 20.0)[0], "written with the next lines"
    assert log.close(5)


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    def log_lines(log: Logger) -> None:
        def write(thread: int) -> None:
            for number in range(200):
                log.info("line", thread=thread, number=number)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lines = written(tmp_path / "log", log_lines)
    assert len(lines) == 1_000
    assert all(re.search(r" INFO line thread=\d number=\d+$", line) for line in lines)
