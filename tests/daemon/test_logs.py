"""The log: nothing that a peer says forges a line, and nobody waits for whoever reads it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon.log import logger


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def opened(file: Path, **options: Any) -> logger.Logger:
    return logger.Logger(fd=os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), **options)


def test_a_line_has_time_level_message_and_fields(tmp_path: Path) -> None:
    log = opened(tmp_path / "log", journal=False)
    log.info("worker ready", worker="w0", load_s=1.2, gpu=None, spare=False, cause="exit 1", empty="")
    assert log.close(5)
    (line,) = lines_of(tmp_path / "log")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO worker ready "
        r'worker=w0 load_s=1\.2 gpu=None spare=false cause="exit 1" empty=""',
        line,
    )


def test_the_time_is_utc_to_the_millisecond() -> None:
    assert logger.timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert logger.timestamp(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"


def test_levels_that_are_off_cost_no_line_and_can_be_set_at_run_time(tmp_path: Path) -> None:
    log = opened(tmp_path / "log", level="warning", journal=False)
    log.info("one")
    log.warning("two")
    assert not log.enabled("info") and log.enabled("error")
    log.level = "debug"
    log.debug("three")
    log.log("error", "four")
    assert log.close(5)
    assert [line.split(" ", 1)[1] for line in lines_of(tmp_path / "log")] == [
        "WARNING two",
        "DEBUG three",
        "ERROR four",
    ]


def test_json_is_one_object_in_a_line_whatever_the_fields_hold(tmp_path: Path) -> None:
    log = opened(tmp_path / "log", format="json", journal=False)
    log.info(
        "a\nb", level="mine", x=float("nan"), y=[1, {"z": float("inf")}], path=Path("/a"), lone="\ud800", text="好"
    )
    assert log.close(5)
    (line,) = lines_of(tmp_path / "log")
    value = json.loads(line, parse_constant=pytest.fail)
    assert (value["message"], value["level"], value["level_"]) == ("a\nb", "info", "mine")
    assert (value["x"], value["y"], value["path"]) == ("nan", [1, {"z": "inf"}], "/a")
    assert (value["lone"], value["text"]) == ("\ud800", "好")


@settings(deadline=None)
@given(st.text(), st.text(), st.sampled_from(["text", "json"]))
def test_no_text_forges_a_second_line_or_steers_a_terminal(message: str, value: str, format: str) -> None:
    if format == "text":
        line = logger.text_line(0.0, "info", message, {"output": value})
        assert line.isprintable()
    else:
        line = logger.json_line(0.0, "info", message, {"output": value})
        assert json.loads(line)["output"] == value
    assert len(line.splitlines()) == 1


def test_a_value_can_not_look_like_further_fields() -> None:
    line = logger.text_line(0.0, "info", "m", {"a": 'x" b="y', "c": "d=e", "f": "back\\slash", "g": "a\nb\x1b[31m"})
    assert line.endswith(r'a="x\" b=\"y" c="d=e" f="back\\slash" g="a\nb\x1b[31m"')


def test_a_huge_value_is_cut() -> None:
    assert len(logger.text_line(0.0, "info", "m" * 100_000, {"a": "b" * 100_000})) < 20_000


def test_a_field_that_can_not_be_printed_costs_its_line_alone(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    for format in ("text", "json"):
        log = opened(tmp_path / format, format=format, journal=False)
        log.info("one", field=Broken())
        log.info("two")
        assert log.close(5)
        one, two = lines_of(tmp_path / format)
        assert "one" in one and "RuntimeError" in one
        assert "two" in two


def test_an_exception_is_one_line_with_its_traceback_and_its_words_at_debug_level_alone(tmp_path: Path) -> None:
    said = "what somebody said"
    levels: tuple[logger.Level, ...] = ("info", "debug")
    for level in levels:
        log = logger.Logger(level, fd=os.open(tmp_path / level, os.O_WRONLY | os.O_CREAT), journal=False)
        try:
            try:
                raise KeyError(said)
            except KeyError as error:
                raise OSError(28, os.strerror(28), said) from error
        except OSError as error:
            log.exception("mistake", error, job="j")  # noqa: PLE1205 (no logging.Logger)
        assert log.close(5)
        (line,) = lines_of(tmp_path / level)
        assert "ERROR mistake job=j traceback=" in line and "in test_an_exception" in line
        assert "KeyError" in line and "OSError: " in line and "No space left on device" in line
        assert line.count(said) == (2 if level == "debug" else 0)


def test_the_journal_gets_priorities_and_no_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log = logger.Logger("debug", fd=pipe[1])
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert log.close(5)
    assert os.read(pipe[0], 1_000).decode().splitlines() == ["<7>DEBUG a", "<6>INFO b", "<4>WARNING c", "<3>ERROR d"]


def test_a_terminal_that_is_not_the_journal_gets_the_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    assert not logger.is_journal(pipe[1])
    assert not logger.is_journal(999_999)


@pytest.mark.parametrize("blocking", [True, False])
def test_nobody_waits_for_a_log_that_is_not_read_and_the_loss_is_told(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"." * 4_096)
    os.set_blocking(pipe[1], blocking)
    log = logger.Logger(fd=pipe[1], journal=False, capacity=100)
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
    log = logger.Logger(fd=writing, journal=False)
    log.info("nobody reads this")
    assert log.close(5)
    log.info("nor this, after the end")
    assert log.close(5)
    os.close(writing)


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    log = opened(tmp_path / "log", journal=False, capacity=10_000)

    def write(thread: int) -> None:
        for number in range(200):
            log.info("line", thread=thread, number=number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.close(10)
    lines = lines_of(tmp_path / "log")
    assert len(lines) == 1_000
    assert all(re.search(r" INFO line thread=\d number=\d+$", line) for line in lines)
