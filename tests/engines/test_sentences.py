"""daemon/engines/sentences.py: where a pause is heard, and in which language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon.engines.sentences import split


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("今天天气不错。我们走吧！", ["今天天气不错。", "我们走吧！"]),
        ("It is 3.14. Not 2.71!", ["It is 3.14.", "Not 2.71!"]),
        ("Dr. Wu met Mr. Smith, e.g. here. Then he left.", ["Dr. Wu met Mr. Smith, e.g. here.", "Then he left."]),
        ("See example.org/a.b today; fine.", ["See example.org/a.b today;", "fine."]),
        ('"Stop!" he said.', ['"Stop!"', "he said."]),
        ("“停！”他说。", ["“停！”", "他说。"]),
        ("first line\nsecond line\r\n\r\nthird", ["first line", "second line", "third"]),
        ("Wait... what?!", ["Wait...", "what?!"]),
        ("没有标点", ["没有标点"]),
        ("。。。你好", ["。。。你好"]),
        ("", [""]),
    ],
)
def test_sentences_end_where_a_reader_would_pause(text: str, sentences: list[str]) -> None:
    assert [sentence.text for sentence in split(text)] == sentences


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("你好。Hello.", [True, False]),
        ("我喜欢 Python。", [True]),
        ("你好。2024. ", [True, True]),
        ("Hello. 2024. 你好。", [False, False, True]),
        ("2024. 你好。", [True, True]),
        ("2024", [False]),
        ("𠀀", [True]),
        ("Ça va?", [False]),
    ],
)
def test_each_sentence_has_the_language_that_it_is_written_in(text: str, chinese: list[bool]) -> None:
    assert [sentence.has_han for sentence in split(text)] == chinese


@given(st.text(max_size=80))
def test_nothing_that_was_written_is_left_out(text: str) -> None:
    spoken = "".join("".join(sentence.text.split()) for sentence in split(text))
    assert spoken == "".join(text.split())
