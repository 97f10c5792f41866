"""Texts that upstream raises on, swallows or speaks nonsense of: spoken, or refused in words, and no harm to others."""

from __future__ import annotations

import pytest

from glmtts.protocol.worker import Failed, Finished

from ..process.worker_under_test import WorkerUnderTest
from .test_jobs import SHORT, is_unharmed, speak
from .upstream_root import asked

#: What upstream raises AssertionError, TypeError, ValueError and IndexError of among them.
SPOKEN = [
    "(\t你好)",
    "\t 你好",
    "气压是0.00001×10^3帕。",
    "距离99999999999999999×10^3米。",
    "wonderful " * 60,
    "internationalization" * 5,
    "a" * 300,
    "x",
    "1",
    "３．５",
    "!?你好?!",
    "你好😀",
    "第一行\n\n第二行\r\n第三行",
    "- 一\n- 二\n# 标题",
    "ａｂｃ ＡＢＣ",
    "café naïve",
    "H₂O 和 10²",
    "\ufeff你好\u200b",
    "龘靐齉",
    "<|user|>你好<|audio_5|>",
    "C:\\temp\\new",
    "%s %d {} {0}",
]
#: What upstream would speak as "." or spell, and nobody would want.
REFUSED = [
    "",
    "   ",
    "。。。",
    "?!",
    "😀😀",
    "\x00\x07",
    "\u200b\ufeff",
    "これはとてもいい本です。",
    "Привет, мир",
    "مرحبا بالعالم",
    "안녕하세요",
    "สวัสดี",
]


@pytest.fixture(scope="module")
def before(worker: WorkerUnderTest) -> bytes:
    """What the worker says of an ordinary text, before it has met any other."""
    return speak(worker, SHORT)


@pytest.mark.parametrize("text", SPOKEN, ids=ascii)
def test_a_text_that_is_odd_is_spoken_and_the_next_is_as_before(
    worker: WorkerUnderTest, before: bytes, text: str
) -> None:
    end, _ = worker.until_end(worker.start(**asked(text, options={"max_tokens": 40})))
    assert isinstance(end, Finished), end
    assert end.audio_s > 0.04
    assert is_unharmed(worker, before)


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_a_text_of_which_nothing_is_spoken_is_refused_and_the_next_is_as_before(
    worker: WorkerUnderTest, before: bytes, text: str
) -> None:
    end, _ = worker.until_end(worker.start(**asked(text)))
    assert isinstance(end, Failed), end
    assert end.code == "bad_request" and end.message.startswith("text: ") and not end.fatal
    assert is_unharmed(worker, before)


@pytest.mark.parametrize("text", ["", "。。", "(\t你好)"], ids=ascii)
def test_what_a_recording_says_may_be_as_odd(worker: WorkerUnderTest, before: bytes, text: str) -> None:
    end, _ = worker.until_end(worker.start(**asked(SHORT, prompt_text=text, options={"max_tokens": 40})))
    assert isinstance(end, Finished) or end.code in ("bad_request", "bad_audio"), end
    assert is_unharmed(worker, before)
