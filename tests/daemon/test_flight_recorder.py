"""After a worker's death the supervisor reads which work it had begun, whatever instruction it died at."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon import flight_recorder
from glmtts.daemon.flight_recorder import SIZE, Note, Recorder


@pytest.fixture
def memory() -> Iterator[int]:
    fd = flight_recorder.create()
    yield fd
    os.close(fd)


def test_the_last_note_is_read(memory: int) -> None:
    assert flight_recorder.read(memory) == Note()
    recorder = Recorder(memory)
    for stage, jobs in (("prefill", ("j-1",)), ("decode", ("j-1", "j-2")), ("decode", ("j-1", "j-2")), ("idle", ())):
        recorder.note(stage, jobs)
        assert flight_recorder.read(memory) == Note(stage, jobs)


def test_sixty_four_jobs_fit(memory: int) -> None:
    jobs = tuple(f"j-{number:016d}" for number in range(64))
    Recorder(memory).note("decode", jobs)
    assert flight_recorder.read(memory).jobs == jobs


def test_a_note_that_was_not_written_whole_is_not_read(memory: int) -> None:
    """The other place may hold anything: the byte that makes it valid was not written."""
    recorder = Recorder(memory)
    recorder.note("flow", ["j-1"])
    valid = os.pread(memory, 1, 0)[0] & 1
    os.pwrite(memory, b"\xff" * 40, SIZE // 2 * (1 - valid) + 1)
    assert flight_recorder.read(memory) == Note("flow", ("j-1",))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_note_or_none(data: bytes) -> None:
    """A worker that writes to wrong addresses may write here."""
    fd = flight_recorder.create()
    try:
        os.pwrite(fd, data, 0)
        flight_recorder.read(fd)
    finally:
        os.close(fd)


def test_a_descriptor_without_the_memory_gives_an_empty_note() -> None:
    read_end, write_end = os.pipe()
    assert flight_recorder.read(read_end) == Note()
    os.close(read_end)
    os.close(write_end)
