"""protocol/texts.py: what is heard alike is one text for every engine, and what is not heard is not asked of any."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glmtts.protocol.texts import TextError, fold, speakable, transcript


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("１２３", "123"),
        ("ｈｅｌｌｏ　ｗｏｒｌｄ", "hello world"),
        ("⼈工智能", "人工智能"),
        ("⻓⻔⻢", "长门马"),
        ("豈", "豈"),
        ("oﬃce ﬁnd", "office find"),
        ("ｶﾞｷﾞｸﾞ｡", "ガギグ。"),
        ("ﾡￂ", "ㄱㅏ"),
        ("ﺳﻼﻡ", "سلام"),
        ("𝗛𝗲𝗹𝗹𝗼 𝟭", "Hello 1"),
        ("e\u0301te\u0301", "été"),
        ("１２：３０", "12:30"),
        ("１，０００", "1,000"),
        ("３．５", "3.5"),
        ("ｗｗｗ．ａ．ｃｎ", "www.a.cn"),
        ("５０％ ￥５", "50% ¥5"),
        ("﹐︒﹗", "，。！"),
        ("page one\x0cpage two", "page one\npage two"),
        ("a\x0bb\x85c\u2028d\u2029e\r\nf\rg", "a\nb\nc\nd\ne\nf\ng"),
        ("a\xa0b\u2009c\u3000d", "a b c d"),
        ("\ufeffso\xadft \u200bzero\u202e\u2066 ❤\ufe0f", "soft zero ❤"),
        ("葛\U000e0100", "葛"),
    ],
)
def test_characters_that_are_read_alike_become_one(written: str, read: str) -> None:
    assert speakable(f"a {written}") == f"a {read}"


@pytest.mark.parametrize(
    "text",
    [
        "今天天气不错，我们去公园！真的吗？（是）：好；“行”…——～、《书》「话」",
        "①②³½ x² H₂O ㎡ ㎏ ℃ ℉ № ™ ℠ ㈱ Ⅷ ª ㍿ ﷺ ˢ",
        "12：30 比分3：2，1，2，3号",
        "Good morning. It costs $5.\tReally?\n",
        "ㅋㅋㅋ 안녕하세요 ำ สวัสดี नमस्ते क्‍ष می‌شود",
        "👩 ok 🇨🇳",
        "naïve café — “quotes” ‘single’ …",
    ],
)
def test_what_compatibility_would_change_and_ordinary_texts_stay(text: str) -> None:
    assert fold(text) == text


@pytest.mark.parametrize("text", ["１，２，３号", "你好．再见"])
def test_marks_at_which_engines_pause_stay_between_wide_characters(text: str) -> None:
    assert fold(text).count("，") == text.count("，") and fold(text).count("．") == text.count("．")


@given(st.text() | st.text(st.characters(min_codepoint=0x2000, max_codepoint=0xFFFF, exclude_categories=())))
@example("ا\u200c\u200d\u200b")
@example("１\r\n：１")
@example("\u115f\u1161\u11a8")
@example("e\u200b\u0301")
@example("A\u180e\u200b")
def test_any_text_is_folded_once_and_loses_nothing_that_is_heard(text: str) -> None:
    folded = fold(text)
    assert fold(folded) == folded
    assert not set(folded) & set("\r\x0b\x0c\x85\u2028\u2029\xa0\u3000\xad\ufeff\u202e")

    def heard(of: str) -> list[str]:
        return [c for c in unicodedata.normalize("NFKD", of) if c.isalnum() and c not in "\u115f\u1160\u3164\uffa0"]

    if not any("⺀" <= c <= "⻳" for c in text):
        assert heard(folded) == heard(text)


@given(st.text())
def test_a_text_is_refused_or_folded_and_nothing_else_happens(text: str) -> None:
    try:
        assert speakable(text) == fold(text)
    except TextError as error:
        assert str(error)
    else:
        assert transcript(text) == fold(text)


@given(st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20)) | st.text("你好，。！？：；（）、“”…今天天气"))
def test_ordinary_english_and_chinese_is_what_it_was(text: str) -> None:
    assert fold(text) is text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ab\x07c", "control character U+0007 at position 2"),
        ("\u200ba\x92", "control character U+0092 at position 2"),
        ("a\ud800", "U+D800 at position 1 is half a character"),
        ("\u3164", "no letter or digit"),
    ],
)
def test_a_refusal_names_the_character_and_its_place_in_what_was_sent(text: str, words: str) -> None:
    for judge in (speakable, transcript):
        with pytest.raises(TextError, match=words.replace("+", r"\+")) as caught:
            judge(text)
        assert ("words that are said" in str(caught.value)) == (judge is transcript and "no letter" in words)
