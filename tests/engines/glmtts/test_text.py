"""daemon/engines/glmtts/text.py and what it is made of: any text is spoken or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon.engines.base import EngineError
from glmtts.daemon.engines.glmtts import normalise_parts, split
from glmtts.daemon.engines.glmtts.text import Texts, check_speakable, normalising

_SENTENCE = "The quick brown fox jumps over the lazy dog. "
_CHINESE_SENTENCE = "今天天气很好，我们一起去公园散步。"


@dataclass
class FrontEnd:
    """Stands where upstream's front end does: lower case, one line, a mark at the end; raises where it is told to."""

    raises: Callable[[str], bool] = str.isspace
    texts: list[str] = field(default_factory=list)

    def text_normalize(self, text: str) -> str:
        self.texts.append(text)
        if self.raises(text):
            raise TypeError("'<' not supported")
        one_line = " ".join(text.split()).lower()
        end = "。" if normalise_parts.is_chinese(one_line) else "."
        return one_line + end if not one_line or one_line[-1] not in ".。?？" else one_line

    def split_by_len(self, text: str) -> list[str]:
        if not text or text[0].isspace():
            raise AssertionError
        if max(map(len, re.split("[.。]", text))) > 200:
            raise IndexError("list index out of range")
        return re.findall(r"[^.。]*[.。]\s*|[^.。]+", text)


def normalise(front_end: FrontEnd, text: str) -> str:
    """``text``, normalised in as many tasks as it takes."""
    texts, reading = Texts(front_end), normalising(text)
    source = next(reading)
    while True:
        try:
            source = reading.send(texts.read(source))
        except StopIteration as end:
            return str(end.value)


@pytest.mark.parametrize(
    "text", ["你好。", "Hello!", "2024", "①", "第Ⅷ章", "Привет是什么意思", "用Яндекс搜索", "α", "π≈3", "Ａ", "5Ω"]
)
def test_a_text_with_something_to_speak_is_let_through(text: str) -> None:
    check_speakable(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no letter or digit"),
        (" \t\n\u3000", "no letter or digit"),
        ("?!……", "no letter or digit"),
        ("👍🎉", "no letter or digit"),
        ("你好\ud800", "U+D800 at position 2"),
        ("Привет, мир", "Cyrillic; GLM-TTS speaks Chinese and English"),
        ("Привет 2024", "Cyrillic"),
        ("こんにちは", "Japanese kana"),
        ("안녕하세요", "Korean Hangul"),
        ("สวัสดี", "Thai"),
        ("مرحبا", "Arabic"),
        ("Καλημέρα", "Greek"),
        ("שלום и привет", "Cyrillic and Hebrew"),
    ],
)
def test_a_text_that_would_be_silence_or_noise_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_speakable(text)
    assert caught.value.code == "bad_request"
    assert caught.value.message.startswith("text: ")
    assert problem in caught.value.message


@pytest.mark.parametrize("text", ["Hello there.", "你好，世界。", "one\ntwo", "It costs $5."])
def test_a_short_text_reaches_upstream_as_it_was_sent(text: str) -> None:
    front_end = FrontEnd()
    assert normalise(front_end, text) == FrontEnd().text_normalize(text)
    assert front_end.texts == [text]


@pytest.mark.parametrize(
    "text",
    [
        _SENTENCE * 40,
        _CHINESE_SENTENCE * 60,
        (_SENTENCE * 12 + _CHINESE_SENTENCE) * 3,
        (_CHINESE_SENTENCE + _SENTENCE * 12) * 3,
        "line one\nline two\n" * 100,
        "word " * 500,
        "one, two, " * 200,
        "啊" * 3_000,
    ],
)
def test_a_long_text_sounds_as_if_it_was_normalised_at_once(text: str) -> None:
    front_end = FrontEnd()
    normalised = normalise(front_end, text)
    assert normalised.replace(" ", "") == FrontEnd().text_normalize(text).replace(" ", "")
    assert len(front_end.texts) > 1


@given(
    st.lists(st.sampled_from(["aB " * 9, "123456789", ", ", ". ", "\n", "。", "你好" * 9, "é-'?\t"]), min_size=60).map(
        "".join
    )
)
def test_no_part_of_a_text_keeps_its_process_for_long(text: str) -> None:
    found = normalise_parts.parts(text)
    chinese = normalise_parts.is_chinese(text)
    assert all(normalise_parts.cost_ms(part.source, chinese) < normalise_parts.LIMIT_MS + 10 for part in found)
    letters = "".join(re.sub("(and|好|and好)$" if part.tail else "$", "", part.source) for part in found)
    assert re.sub(r"\s", "", letters).replace("。", "") == re.sub(r"\s", "", text).replace("。", "")


def test_a_number_of_many_digits_is_cut_though_it_has_no_blank() -> None:
    assert normalise(FrontEnd(), "1" * 5_000) == "1" * 5_000 + "."


def test_what_has_no_sound_does_not_reach_the_model() -> None:
    front_end = FrontEnd()
    normalise(front_end, "\ufeff你\u200b好\u202e\r\n再见\u2028完")
    assert front_end.texts == ["你好\n再见\n完"]


def test_a_number_that_upstream_raises_on_is_spoken_all_the_same() -> None:
    front_end = FrontEnd(raises=lambda text: "×" in text or "５" in text)
    assert "0.00001乘10的负3次方和5" in normalise(front_end, "是0.00001×10^-3和５")


def test_a_failure_that_nobody_foresaw_says_where_and_ends_one_job_alone() -> None:
    front_end = FrontEnd(raises=lambda text: "bad" in text)
    with pytest.raises(EngineError) as caught:
        normalise(front_end, "a bad text")
    assert caught.value.code == "synthesis_failed"
    assert "'a bad text': TypeError: '<' not supported" in caught.value.message
    assert not caught.value.fatal
    assert normalise(front_end, "a good text") == "a good text."


@pytest.mark.parametrize("text", [".", "👍", "-"])
def test_a_text_of_which_nothing_is_left_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="nothing to speak") as caught:
        normalise(FrontEnd(), text)
    assert caught.value.code == "bad_request"


def test_segments_are_upstreams_own() -> None:
    text = "one two. three. 四。"
    assert Texts(FrontEnd()).segments(text) == FrontEnd().split_by_len(text) == ["one two. ", "three. ", "四。"]


@pytest.mark.parametrize("text", ["\t你好。再见。", "wonderful " * 100, "a" * 500, "啊" * 9_000, "好" * 250])
def test_a_text_that_upstream_can_not_split_is_split_by_the_same_measure(text: str) -> None:
    segments = Texts(FrontEnd()).segments(text)
    assert "".join(segments) == text.strip()
    assert all(len(re.findall(r"[a-z]{1,40}|\S", segment)) <= split.MOST for segment in segments)


def test_long_words_are_not_torn_where_a_blank_is_near() -> None:
    segments = split.split("international cooperation " * 30)
    assert len(segments) > 1
    assert all(re.fullmatch(r"(international |cooperation ?)+", segment) for segment in segments)


def test_a_segment_of_marks_alone_is_never_spoken() -> None:
    assert split.merge_silent(["。", "你好。", "”", "。", "再见。", "!"]) == ["。你好。”。", "再见。!"]
    assert split.merge_silent(["。"]) == []


@given(st.text(min_size=1, max_size=400))
def test_nothing_that_was_written_is_left_out_of_the_segments(text: str) -> None:
    assert "".join(split.split(text)) == text.strip()


def test_a_segment_that_upstream_would_lose_is_spoken_as_it_is() -> None:
    texts = Texts(FrontEnd(raises=lambda text: "bad" in text))
    assert texts.normalise_segment("Good") == "good."
    assert texts.normalise_segment("bad.") == "bad."


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("The weather is nice today, and so we shall go for a walk.", "The weather is nice today, "),
        ("今天天气不错，我们去公园散步吧。", "今天天气不错，"),
        # A clause of a word or two would cost more than it brings, and so would a rest.
        ("Well, the weather is nice today, and we go for a walk.", "Well, the weather is nice today, "),
        ("我们今天去公园里散步，好吧。", ""),
        # A mark inside a number or a name ends nothing.
        ("version 1.25 of example.org:80 is there for you", ""),
        ("no mark at all in this one", ""),
    ],
)
def test_the_first_clause_is_cut_where_both_parts_can_be_spoken_well(text: str, clause: str) -> None:
    rest = ["and another segment."]
    assert split.cut_first_clause([text, *rest]) == ([clause, text[len(clause) :], *rest] if clause else [text, *rest])
    assert split.cut_first_clause([]) == []
