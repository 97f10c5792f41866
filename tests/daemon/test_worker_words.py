"""What a worker says of an exception helps to find it, and has nothing of the text in it that was to be spoken."""

from __future__ import annotations

import pytest

from glmtts.daemon.log.worker_output import understood
from glmtts.daemon.worker import log


def speak(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as error:
        raise ValueError(f"no words for\n{text}") from error


def test_an_exception_is_told_by_its_place_and_its_words_at_debug_level_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="geheim") as caught:
        speak("geheim")
    log.report(caught.value, "b-1")
    lines = [understood(line, by_default="error") for line in capsys.readouterr().err.splitlines()]
    assert [(line.level, line.job) for line in lines] == [("warning", "b-1"), ("debug", "b-1")] * 2
    assert [line.words.partition(",")[0] for line in lines if line.level == "warning"] == ["KeyError", "ValueError"]
    assert all("daemon/test_worker_words.py:" in line.words and "in speak" in line.words for line in lines[::2])
    assert not any("geheim" in line.words for line in lines[::2])
    assert lines[3].words == "ValueError: no words for geheim"  # one line for one fact


def test_what_cuda_says_is_told_and_what_anything_else_says_is_not() -> None:
    assert "illegal memory access" in log.safe_words(
        RuntimeError("CUDA error: an illegal memory access was encountered")
    )
    assert "geheim" not in log.safe_words(RuntimeError("geheim"))
    assert log.safe_words(RuntimeError("geheim")).startswith("RuntimeError; ")


def test_an_exception_that_says_nothing_is_told_by_its_type_alone() -> None:
    assert log.in_words(MemoryError()) == "MemoryError"
    assert log.in_words(ValueError("so: ")) == "ValueError: so: "


def test_causes_that_go_in_a_circle_come_to_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    log.report(first)
    assert len(capsys.readouterr().err.splitlines()) == 4
