"""The output of a worker: whole lines arrive, and a flood does not."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon.log.worker_output import WorkerOutput, understood


def test_lines_are_whole_whatever_the_chunks() -> None:
    output = WorkerOutput()
    assert output.feed(b"load", 0.0) == []
    assert output.feed(b"ing\nrea", 0.0) == ["loading"]
    assert output.feed(b"dy\r\n\n  \nlast", 0.0) == ["ready"]
    assert output.end(0.0) == ["last"]


def test_of_a_progress_bar_the_last_drawing_is_the_line() -> None:
    assert WorkerOutput().feed(b" 10%\r 50%\r100%\r\n", 0.0) == ["100%"]


def test_invalid_bytes_are_replaced() -> None:
    assert WorkerOutput().feed(b"a\xff\x00b\n", 0.0) == ["a\ufffd\x00b"]


def test_a_character_may_come_in_two_chunks() -> None:
    output = WorkerOutput()
    data = "好".encode()
    assert output.feed(data[:1], 0.0) == []
    assert output.feed(data[1:] + b"\n", 0.0) == ["好"]


def test_a_line_without_an_end_is_cut_and_takes_no_memory() -> None:
    output = WorkerOutput()
    tracemalloc.start()
    for _ in range(100):
        assert output.feed(b"x" * 65_536, 0.0) == []
    assert tracemalloc.get_traced_memory()[0] < 100_000
    tracemalloc.stop()
    (line,) = output.feed(b"\nshort\n", 0.0)[:1]
    assert line == f"{'x' * 4_096}... ({100 * 65_536 - 4_096} bytes left out)"
    assert output.feed(b"next\n", 0.0) == ["next"]


def test_a_long_line_is_not_cut_inside_a_character() -> None:
    (line,) = WorkerOutput(max_line=4).feed("好好\n".encode(), 0.0)
    assert line == "好... (2 bytes left out)"


def test_a_flood_is_counted_and_reported_as_soon_as_lines_pass_again() -> None:
    output = WorkerOutput()
    passed = output.feed(b"x\n" * 10_000, 0.0)
    assert passed == ["x"] * 200
    assert output.feed(b"y\n", 0.01) == []
    assert output.feed(b"z\n", 0.05) == ["9801 lines left out", "z"]
    assert output.feed(b"", 10.0) == []
    assert len(output.feed(b"w\n" * 300, 10.0)) == 200
    assert output.end(10.0) == ["100 lines left out"]


def test_a_steady_printer_gets_fifty_lines_a_second() -> None:
    output = WorkerOutput()
    output.feed(b"x\n" * 200, 0.0)
    passed = [line for tick in range(1, 1_001) for line in output.feed(b"x\n" * 10, tick / 100)]
    assert 480 <= len(passed) <= 520


def test_a_clock_that_jumps_back_does_no_harm() -> None:
    output = WorkerOutput()
    assert output.feed(b"a\n", 5.0) == ["a"]
    assert output.feed(b"b\n", 1.0) == ["b"]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_chunks_make_no_difference(chunks: list[bytes]) -> None:
    one, many = WorkerOutput(), WorkerOutput()
    whole = one.feed(b"".join(chunks), 0.0) + one.end(0.0)
    assert [line for chunk in chunks for line in many.feed(chunk, 0.0)] + many.end(0.0) == whole


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"a\n", b"\n", b"bcd", b"e\nf\n"]), max_size=60), st.integers(1, 5))
def test_every_line_passes_or_is_counted(chunks: list[bytes], burst: int) -> None:
    output = WorkerOutput(burst=burst, rate=1e-9)
    lines = [line for chunk in chunks for line in output.feed(chunk, 0.0)] + output.end(0.0)
    counted = sum(int(line.split()[0]) for line in lines if line.endswith(" lines left out"))
    passed = sum(not line.endswith(" lines left out") for line in lines)
    full = b"".join(chunks).split(b"\n")
    assert sum(bool(line) for line in full) <= passed + counted <= len(full)


@pytest.mark.parametrize(
    ("line", "level", "job", "words"),
    [
        ("<4>[job b-1] cut there", "warning", "b-1", "cut there"),
        ("<3>ends", "error", "", "ends"),
        ("<7>KeyError: x", "debug", "", "KeyError: x"),
        ("plain words", "info", "", "plain words"),
        ("<9>no priority", "info", "", "<9>no priority"),
        ("[job b-1] without", "info", "", "[job b-1] without"),
    ],
)
def test_a_line_that_says_its_priority_and_job_is_logged_by_them(line: str, level: str, job: str, words: str) -> None:
    assert understood(line, by_default="info") == (level, job, words)
