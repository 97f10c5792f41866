"""Batch files as people really have them: both dialects, bad lines, and names that want to get out of the folder."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.client.cli.batch.file import BadLine, BatchLine, OutputNames, read_lines


def line(number: int = 1, name: str = "", text: str = "你好") -> BatchLine:
    return BatchLine(number=number, text=text, name=name)


def test_a_line_of_upstream_keeps_its_text_prompt_and_name() -> None:
    raw = json.dumps({"uttid": "a1", "prompt_text": "喂", "prompt_speech": "p.wav", "syn_text": "你好"}).encode()
    assert read_lines([raw]) == [BatchLine(1, "你好", "a1", prompt="p.wav", prompt_text="喂", label="a1")]


def test_a_line_of_the_web_interfaces_keeps_its_text_prompt_and_name() -> None:
    raw = json.dumps({"output_name": "a1", "prompt_text": "喂", "prompt_audio": "p.wav", "input_text": "你好"}).encode()
    assert read_lines([raw]) == [BatchLine(1, "你好", "a1", prompt="p.wav", prompt_text="喂", label="a1")]


def test_a_line_needs_no_prompt_and_may_name_a_voice_and_a_seed() -> None:
    raw = json.dumps(
        {"uttid": 7, "prompt_text": "", "prompt_speech": "", "syn_text": "hi", "voice": "en", "seed": 3, "speed": 1.5}
    )
    assert read_lines([raw.encode()]) == [BatchLine(1, "hi", "7", voice="en", seed=3, label="7", speed=1.5)]


def test_a_line_s_label_is_its_own_or_its_name_and_never_spoils_it() -> None:
    lines = [{"uttid": "a1", "text": "hi", "label": "Chapter\t1"}, {"uttid": "n" * 300, "text": "hi"}, {"text": "hi"}]
    found = read_lines(json.dumps(line).encode() for line in lines)
    assert [line.label for line in found if isinstance(line, BatchLine)] == ["Chapter 1", "n" * 200, None]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"uttid": "a"}', "no text: one of syn_text, input_text, text is needed"),
        (b'{"syn_text": "   "}', "text: there is no letter or digit"),
        ('{"syn_text": "\u200b\ufeff"}'.encode(), "text: there is no letter or digit"),
        (b'{"syn_text": "a\\u0007"}', "text: control character U+0007 at position 1"),
        (b'{"syn_text": "a", "prompt_speech": "p", "prompt_text": "..."}', "prompt_text: there is no letter or digit"),
        (b'{"syn_text": 5}', "syn_text: expected a string"),
        (b'{"syn_text": "!!!"}', "text: there is no letter or digit"),
        (b'{"syn_text": "a\\ud800"}', "text: U+D800 at position 1 is half a character"),
        (b'{"syn_text": "a", "input_text": "b"}', "both syn_text and input_text"),
        (b'{"syn_text": "a", "prompt_speech": "p.wav"}', "prompt_text: missing"),
        (b'{"syn_text": "a", "prompt_speech": "p", "prompt_text": "b", "voice": "v"}', "voice: not together"),
        (b'{"syn_text": "a", "seed": -1}', "seed:"),
        (b'{"syn_text": "a", "seed": true}', "seed:"),
        (b'{"syn_text": "a", "speed": 4}', "speed: expected a number from 0.5 to 2"),
        (b'{"syn_text": "a", "speed": true}', "speed:"),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_spoils_no_other(raw: bytes, words: str) -> None:
    found = read_lines([raw + b"\n", b"\n", b'{"syn_text": "ok"}\n'])
    assert isinstance(found[0], BadLine)
    assert found[0].number == 1
    assert words in found[0].reason
    assert found[1] == BatchLine(3, "ok")


def test_a_byte_order_mark_does_not_spoil_the_first_line() -> None:
    assert read_lines([b'\xef\xbb\xbf{"syn_text": "ok"}']) == [BatchLine(1, "ok")]


@given(st.binary())
def test_no_line_whatever_it_holds_breaks_the_batch(raw: bytes) -> None:
    assert len(read_lines([raw])) == bool(raw.removeprefix(b"\xef\xbb\xbf").strip())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a1", "a1.wav"),
        ("a1.wav", "a1.wav"),
        ("a1.FLAC", "a1.flac"),
        ("v1.5", "v1.5.wav"),
        ("", "line-000001.wav"),
        ("../../etc/passwd", "_.._etc_passwd.wav"),
        ("/abs", "_abs.wav"),
        (".hidden", "hidden.wav"),
        ("..", "line-000001.wav"),
        (".wav", "wav.wav"),
        ("a\0b\n", "a_b_.wav"),
        ("@outputs/batch/x", "@outputs_batch_x.wav"),
    ],
)
def test_an_output_stays_in_its_folder_whatever_the_line_calls_it(name: str, expected: str) -> None:
    assert OutputNames(None).give(line(name=name))[0] == expected


@given(st.lists(st.text(), max_size=8))
def test_every_output_has_a_name_of_its_own_that_a_file_can_have(names: list[str]) -> None:
    giver = OutputNames("wav")
    given_names = [giver.give(line(number, name))[0] for number, name in enumerate(names, 1)]
    assert len({name.casefold() for name in given_names}) == len(names)
    for name in given_names:
        assert PurePosixPath(name).name == name
        assert not name.startswith(".")
        assert "\0" not in name
        assert len(name.encode()) < 220


def test_a_format_that_is_asked_for_decides_the_suffix() -> None:
    assert OutputNames("mp3").give(line(name="a.wav")) == ("a.mp3", "mp3")
    assert OutputNames("ogg").give(line(name="a.opus")) == ("a.opus", "ogg")
    assert OutputNames("pcm_f32le").give(line(name="a")) == ("a.pcm", "pcm_f32le")


def test_lines_of_the_same_name_do_not_overwrite_each_other() -> None:
    names = OutputNames(None)
    assert [names.give(line(n, name))[0] for n, name in enumerate(("a", "a", "A", "a-2"), 1)] == [
        "a.wav",
        "a-2.wav",
        "A-3.wav",
        "a-2-2.wav",
    ]
