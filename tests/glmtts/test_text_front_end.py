"""daemon/engines/glmtts/text.py before upstream's own text front end: any text is spoken, or refused and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .upstream_root import Ask, Root

pytestmark = [
    pytest.mark.skipif(
        not (os.environ.get("GLMTTS_ROOT") and os.environ.get("GLMTTS_PYTHON")),
        reason="GLMTTS_ROOT and GLMTTS_PYTHON name no checkout of GLM-TTS and no interpreter with its packages",
    ),
    pytest.mark.timeout(600),
]

#: Seconds of processor time between two beats. Parts are made to take 0.3 on a core at rest.
_LONGEST_S = 1.5

_ENGLISH = (
    "The quick brown fox jumps over the lazy dog. It's 3.14 or $20.50, isn't it? \"Yes!\" she said; then: no. "
    "Dr. Smith came at 10:30 on May 5, 2024.\n- item one\n- item 2\n\n1. First\n2. Second\n\nHe said (quietly) that "
    "50% of users don't care — really... Visit https://example.com/a?b=1 now! "
)
_CHINESE = (
    "今天天气很好，我们一起去公园散步。“真的吗？”他问！一共花了30.5元；其中：50%是门票。2024年5月6日下午3:30到达\n第一，准备\n"
    "第二、出发\n\n1. 开始\n2. 结束\n他说（小声地）——好吧…… "
)
_MIXED = (
    "我们用Python 3.11写代码。It's great! 版本是v1.2。Don't worry, be happy.\nHello world\n你好 world。"
    "OK, let's go! 价格$20。This is a long English sentence inside a Chinese text, with numbers like 42 and 3.5. "
)


@pytest.fixture(scope="module")
def ask(root: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks a process of upstream's interpreter what becomes of a text; see upstream_texts.py."""
    with root.upstream_reads(tmp_path_factory.mktemp("grammar")) as answer:
        yield answer


def _check_spoken(text: str, found: dict[str, Any]) -> None:
    assert not found["refused"], (text, found["refused"])
    assert found["segments"]
    for segment in [*found["segments"], *found["spoken"]]:
        assert any(map(str.isalnum, segment)), (text, segment)
    assert found["spoken_by_ours"] == found["spoken"]
    assert found["longest_s"] < _LONGEST_S


@pytest.mark.parametrize(
    "text",
    [
        "你好。",
        "Hello there!",
        "噢，30.5元？",
        "一\n二",
        "1. One\n2. Two",
        "x² and H₂O",
        _ENGLISH[:150],
        _CHINESE,
        _MIXED,
    ],
)
def test_a_text_sounds_as_it_does_with_upstream_alone(ask: Ask, text: str) -> None:
    found = ask(text)
    _check_spoken(text, found)
    assert found["ours"] == found["whole"]
    assert found["segments"] == found["whole_segments"]


@pytest.mark.parametrize("text", [_CHINESE * 5, _MIXED * 3, (_MIXED + _CHINESE) * 2])
def test_a_long_text_sounds_as_if_it_was_normalised_at_once(ask: Ask, text: str) -> None:
    found = ask(text)
    _check_spoken(text, found)
    assert found["ours"] == found["whole"]
    assert found["segments"] == found["whole_segments"]


def test_a_long_english_text_differs_by_no_more_than_upstream_from_itself(ask: Ask) -> None:
    # It reads "1,250" with an "and" or without, by what else is in the text.
    found = ask(_ENGLISH * 2)
    _check_spoken(_ENGLISH * 2, found)
    assert found["ours"].replace(" and ", " ") == found["whole"].replace(" and ", " ")


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("(\t你好)", "AssertionError"),
        ("《\u3000你好》", "AssertionError"),
        ("是0.00001×10^3吗", "TypeError"),
        ("12345678901234567×10^3个", "ValueError"),
        ("１" * 40, "NumOutOfRangeError"),
        ("٣" * 40, "NumOutOfRangeError"),
        ("international cooperation " * 12, "IndexError"),
        ("wonderful" * 40, "IndexError"),
    ],
)
def test_what_upstream_raises_on_is_spoken_all_the_same(ask: Ask, text: str, upstream: str) -> None:
    found = ask(text)
    assert found["raised"] == upstream
    _check_spoken(text, found)


@pytest.mark.parametrize("text", [".", "👍", "1️⃣", "—", "Привет", "你" * 0, "\\", "*" * 400])
def test_what_upstream_would_speak_as_a_full_stop_is_refused(ask: Ask, text: str) -> None:
    assert ask(text)["refused"].startswith("bad_request: text: ")


@pytest.mark.parametrize("text", ["1" * 300, "啊" * 2_000, "abc" * 300, "word " * 300, "a, " * 200, "9.9/" * 100])
def test_no_text_keeps_the_worker_from_beating(ask: Ask, text: str) -> None:
    _check_spoken(text, ask(text))


def test_upstreams_own_readings_are_found_where_upstream_finds_them(ask: Ask) -> None:
    found = ask("琴弦与弈棋，乡音无改鬓毛衰，和弦use python。")
    assert "<|IAN2|>" in found["phonemes"]
    assert found["phonemes_by_ours"] == found["phonemes"]


#: Separated by bars, which would be taken out of the text anyway.
_ATOMS = (
    "the|wonderful|Dr.|don't|GPU|你好|天气|额|第|元|年|°C|km/h|m²|x³|①|½|Ⅷ|α|∈|€5|$3.50|10%|1/2|3:30|2024-05-06|v1.2.3|"
    "1e-5|3×10^8|0.00001×10^-3|2*3|https://a.b/c?d=e|a@b.com|**b**|`c`|- |1. |“引”|《书》|(a)|'|\"|—|…|~|/|\\|_|^|&|"
    "+|-|，|。|！|？|；|,|.|!|?|;|:| |\t|\n|\r\n|\u3000|\xa0|\u2028|\x0b|\u200b|\ufeff|\x00|\u0301|👍|1️⃣|Привет|"
    "こんにちは|é|１２３|٣٤٥|Ａ|𝟙|㈠|〇|𠀀|123|007|1234567890|-5"
)
_ATOM = st.sampled_from(_ATOMS.split("|"))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.lists(_ATOM, max_size=25).map("".join), st.lists(_ATOM, max_size=15).map(" ".join), st.text(max_size=60)
    )
)
def test_any_text_is_spoken_or_refused(ask: Ask, text: str) -> None:
    found = ask(text)
    if found["refused"]:
        assert found["refused"].startswith("bad_request: text: "), (text, found)
    else:
        _check_spoken(text, found)
