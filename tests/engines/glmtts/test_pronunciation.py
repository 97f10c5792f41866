"""daemon/engines/glmtts/pronunciation.py: words are said as the user wrote, and a wrong file is told line by line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.daemon.engines.glmtts.pronunciation import MAX_BYTES, MAX_PROBLEMS, Dictionary, load

_KNOWN = ["X", "IAN1", "IAN2", "I4", "UEI1"]


def _is_token(token: str) -> bool:
    return token[2:-2] in _KNOWN


def _load(folder: Path, content: str | bytes) -> dict[str, str]:
    path = folder / "words.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(path, _is_token, _KNOWN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("一根弦。", "一根<|X|><|IAN2|>。"),
        ("弦乐队和弦", "弦乐[队]和<|X|><|IAN2|>"),
        ("sql and nosql, mysql.", "sequel and nosql, mysql."),
        ("用sql查询SQL", "用sequel查询sequel"),
        ("<|X|>弦<|I4|>", "<|X|><|X|><|IAN2|><|I4|>"),
        ("new york x", "big apple letter"),
        ("sql2 2sql sql's", "sql2 2sql sequel's"),
        ("", ""),
    ],
)
def test_a_word_is_said_as_the_dictionary_has_it(text: str, said: str) -> None:
    words = {"弦": "<|X|><|IAN2|>", "弦乐队": "弦乐[队]", "SQL": "sequel", "x": "letter", "new york": "big apple"}
    assert Dictionary(words).apply(text) == said


def test_what_was_put_in_is_not_looked_at_again() -> None:
    assert Dictionary({"a": "b", "b": "a"}).apply("a b a") == "b a b"


def test_an_empty_dictionary_changes_nothing() -> None:
    assert Dictionary({}).apply("sql") == "sql"
    assert len(Dictionary({})) == 0


@given(
    st.dictionaries(
        st.text("ab 你好", min_size=1, max_size=4).filter(str.strip), st.text("xyz", min_size=1), max_size=8
    ),
    st.text("ab 你好<|>.İ", max_size=60),
)
def test_what_no_word_stands_for_stays_as_it_is(words: dict[str, str], text: str) -> None:
    fragments = Dictionary(words).fragments(text)
    left = [fragment for fragment, final in fragments if not final]
    rest = text
    for fragment in left:
        assert fragment in rest
        rest = rest[rest.index(fragment) + len(fragment) :]
    assert all(fragment in words.values() or fragment.startswith("<|") for fragment, final in fragments if final)


def test_a_large_dictionary_does_not_hold_up_a_segment() -> None:
    dictionary = Dictionary({f"w{number}": "x" for number in range(100_000)})
    started = time.thread_time()
    dictionary.apply("w99999 w1x 你好 " * 100)
    assert time.thread_time() - started < 1


def test_blank_lines_comments_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    content = '\ufeff{"弦": "<|X|><|IAN2|>"}\r\n\r\n# comment\n{"SQL": "sequel", "a b": "c"}\n{"sql": "sequel"}'
    assert _load(tmp_path, content) == {"弦": "<|X|><|IAN2|>", "sql": "sequel", "a b": "c"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "1: is no JSON: Expecting value at column 1"),
        ('["a"]', "1: is no JSON object"),
        ('"a"', "1: is no JSON object"),
        ('{"a": 1}', "1: 'a': has no string"),
        ('{"a": {"b": "c"}}', "1: 'a': has no string"),
        ("[" * 100_000, "1: is nested too deeply"),
        (b'{"a": "\xff"}', "1: is not UTF-8"),
        ('{"": "a"}', "1: '': is empty"),
        ('{" a": "b"}', "begins or ends with a blank"),
        ('{"...": "b"}', "has no letter"),
        ('{"a": ""}', "has nothing to speak"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"<|X|>": "b"}', "a phoneme may stand in the reading alone"),
        ('{"a": "<|IAN9|>"}', "1: 'a': <|IAN9|> is no phoneme that the tokenizer knows; near it are <|IAN"),
        ('{"a": "<|x|>"}', "<|x|> is no phoneme that the tokenizer knows; near it are <|X|>"),
        ('{"a": "<|X|"}', "isn't written as <|X|>"),
        ('{"a": "b"}\n{"a": "c"}', "2: 'a': has another reading on line 1"),
        ('{"a": "b", "A": "c"}', "1: 'A': has another reading on line 1"),
        ('{"' + "a" * 65 + '": "b"}', "longer than 64 characters"),
        ('{"a": "' + "b" * 1_025 + '"}', "longer than 1024 characters"),
    ],
)
def test_what_is_wrong_with_the_file_is_told_with_its_line(tmp_path: Path, line: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=r"words\.jsonl:\d+: ") as caught:
        _load(tmp_path, line)
    assert problem in str(caught.value)


def test_all_problems_are_told_at_once_up_to_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"words\.jsonl:1: ") as caught:
        _load(tmp_path, "bad\n" * 50)
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "and 30 more"


def test_a_file_too_large_to_be_a_dictionary_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is larger than 8 MiB"):
        _load(tmp_path, b"#" * (MAX_BYTES + 1))
