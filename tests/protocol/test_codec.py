"""The codec: every limit has its named answer, and nothing that a peer sends raises anything but RequestError."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest

from glmtts.protocol import codec, control, requests
from glmtts.protocol.codec import CodecLimits, decode_control, decode_request
from glmtts.protocol.errors import ErrorCode, RequestError

LIMITS = CodecLimits()
VALID: dict[str, Any] = {"v": 1, "op": "synthesize", "id": "a1", "text": "Good morning."}
EVERY_KEY: dict[str, Any] = {
    **VALID,
    "voice": "anna",
    "format": "pcm_s16le",
    "sample_rate": 16_000,
    "stream": True,
    "events": "final",
    "priority": "batch",
    "deadline_s": 2.5,
    "durable": False,
    "key": "k",
    "seed": 7,
    "options": {"rate": 200},
    "speed": 1.5,
    "label": "第一章",
    "on_behalf_of": "bob",
}


def decode(*body: bytes, **changed: Any) -> requests.ClientRequest:
    """A valid request with some keys changed; ``...`` removes one."""
    message = {key: value for key, value in {**VALID, **changed}.items() if value is not ...}
    return decode_request([msgpack.packb(message), *body], LIMITS)


def refused(*body: bytes, **changed: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(*body, **changed)
    return caught.value


# --- what is right


def test_a_request_with_every_key_keeps_every_value() -> None:
    request = decode(**EVERY_KEY)
    assert isinstance(request, requests.Synthesize)
    others = ("prompt", "output", "more", "follow")
    assert {name: getattr(request, name) for name in request.__struct_fields__ if name not in others} == {
        name: value for name, value in EVERY_KEY.items() if name != "op"
    }


def test_a_client_of_this_package_is_understood() -> None:
    request = requests.Synthesize(id="x", v=1, text="今天天气不错", stream=True)
    assert decode_request([codec.encode(request)], LIMITS) == request


@pytest.mark.parametrize(
    ("stream", "given_format", "expected"),
    [(False, ..., "wav"), (True, ..., "pcm_s16le"), (False, "mp3", "mp3"), (True, "pcm_f32le", "pcm_f32le")],
)
def test_a_stream_without_format_is_pcm_and_anything_else_wav(stream: bool, given_format: Any, expected: str) -> None:
    request = decode(stream=stream, format=given_format)
    assert isinstance(request, requests.Synthesize)
    assert request.resolved_format == expected


def test_a_prompt_comes_with_its_recording() -> None:
    request = decode(b"RIFF....", prompt={"text": "hello"})
    assert isinstance(request, requests.Synthesize)


def test_header_and_body_may_be_views_of_zeromq_frames() -> None:
    frames = [memoryview(msgpack.packb({**VALID, "prompt": {"text": "a"}})), memoryview(b"x")]
    assert decode_request(frames, LIMITS).id == "a1"


@pytest.mark.parametrize("op", ["ping", "info", "voices", "jobs"])
def test_questions_need_no_key_of_their_own(op: str) -> None:
    assert decode(op=op, text=...).id == "a1"


@pytest.mark.parametrize("op", ["cancel", "job", "wait"])
def test_questions_about_a_job_name_it(op: str) -> None:
    assert decode(op=op, text=..., job="j-1").id == "a1"
    assert refused(op=op, text=...).message == "job: this key is missing"


# --- sizes


def test_a_header_over_its_limit_is_too_large_and_at_its_limit_is_not() -> None:
    header = msgpack.packb(VALID)
    assert decode_request([header], CodecLimits(header_bytes=len(header))).id == "a1"
    with pytest.raises(RequestError) as caught:
        decode_request([header], CodecLimits(header_bytes=len(header) - 1))
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert caught.value.message.startswith("header: ")


def test_a_body_over_its_limit_is_too_large_and_the_id_is_echoed() -> None:
    header = msgpack.packb({**VALID, "prompt": {"text": "a"}})
    assert decode_request([header, b"1234"], CodecLimits(body_bytes=4)).id == "a1"
    with pytest.raises(RequestError) as caught:
        decode_request([header, b"12345"], CodecLimits(body_bytes=4))
    assert (caught.value.code, caught.value.id) == (ErrorCode.TOO_LARGE, "a1")
    assert caught.value.message.startswith("body: ")


def test_a_text_of_5001_characters_is_too_large_and_of_5000_is_not() -> None:
    assert decode(text="好" * 5_000).id == "a1"
    error = refused(text="好" * 5_001)
    assert (error.code, error.id) == (ErrorCode.TOO_LARGE, "a1")
    assert "5001" in error.message and "5000" in error.message


@pytest.mark.parametrize("count", [2, 3, 100])
def test_more_body_frames_than_one_are_refused(count: int) -> None:
    error = refused(*[b"x"] * count, prompt={"text": "a"})
    assert (error.code, error.message.split(":")[0]) == (ErrorCode.BAD_REQUEST, "body")


def test_a_message_without_frames_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        decode_request([], LIMITS)
    assert (caught.value.code, caught.value.id) == (ErrorCode.BAD_REQUEST, "")


# --- the field at fault is named


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"text": ...}, "text"),
        ({"v": ...}, "v"),
        ({"op": ...}, "op"),
        ({"id": ...}, "id"),
        ({"v": 2}, "v"),
        ({"v": True}, "v"),
        ({"v": 1.0}, "v"),
        ({"v": "1"}, "v"),
        ({"op": "sing"}, "op"),
        ({"op": ["synthesize"]}, "op"),
        ({"op": None}, "op"),
        ({"op": b"ping"}, "op"),
        ({"op": "x" * 10_000}, "op"),
        ({"txet": "a"}, "txet"),
        ({"prompt": {}}, "prompt.text"),
        ({"prompt": {"text": "a", "x": 1}}, "prompt.x"),
        ({"prompt": {"text": ""}}, "prompt.text"),
        ({"prompt": {"text": "a" * 1_001}}, "prompt.text"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"voice": ""}, "voice"),
        ({"voice": "a" * 65}, "voice"),
        ({"format": "wave"}, "format"),
        ({"stream": True, "output": "a.pcm"}, "output"),
        ({"sample_rate": 7_999}, "sample_rate"),
        ({"sample_rate": 48_001}, "sample_rate"),
        ({"sample_rate": 22_050, "format": "ogg"}, "sample_rate"),
        ({"sample_rate": 22_051, "format": "mp3"}, "sample_rate"),
        ({"sample_rate": 16_000, "format": "wav_ulaw"}, "sample_rate"),
        ({"events": "some"}, "events"),
        ({"priority": "urgent"}, "priority"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"key": ""}, "key"),
        ({"key": "k" * 129}, "key"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"speed": 0.49}, "speed"),
        ({"speed": 2.01}, "speed"),
        ({"speed": float("nan")}, "speed"),
        ({"label": "l" * 201}, "label"),
        ({"label": "two\nlines"}, "label"),
        ({"on_behalf_of": ""}, "on_behalf_of"),
        ({"on_behalf_of": "b" * 129}, "on_behalf_of"),
        ({"options": {b"a": 1}}, "options"),
    ],
)
def test_the_answer_names_the_key_at_fault(changed: dict[str, Any], field: str) -> None:
    error = refused(**changed)
    assert error.code is ErrorCode.BAD_REQUEST
    assert error.message.startswith(f"{field}: "), error.message
    assert error.id == ("" if "id" in changed else "a1")
    assert len(error.message) < 400


WRONG: list[Any] = [None, True, -1, 1.5, "\u0001", b"x", [1], {"a": 1}]
#: Right, or odd and harmless: strings that are only compared may have anything in them.
RIGHT: list[tuple[str, Any]] = [
    ("durable", True),
    ("stream", True),
    ("deadline_s", 1.5),
    ("speed", 1.5),
    ("options", {"a": 1}),
    *((key, "\u0001") for key in ("id", "voice", "key", "on_behalf_of")),
]


@pytest.mark.parametrize(
    ("key", "wrong"),
    [(key, wrong) for key in [*EVERY_KEY, "prompt", "output"] for wrong in WRONG if (key, wrong) not in RIGHT],
)
def test_a_wrong_type_is_refused_by_name(key: str, wrong: Any) -> None:
    error = refused(**{key: wrong})
    assert error.code is ErrorCode.BAD_REQUEST
    assert error.message.split(":")[0].split(".")[0] == key


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": "wave"}, ("'wave'", "wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le")),
        ({"priority": "high"}, ("'high'", "vip", "interactive", "batch")),
        ({"op": "sing"}, ("'sing'", "synthesize", "wait")),
        ({"op": "jobs", "text": ..., "state": "lost"}, ("'lost'", "waiting", "cancelled")),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(changed: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(**changed).message
    assert all(word in message for word in words), message


def test_voice_and_prompt_exclude_each_other() -> None:
    assert refused(b"x", voice="anna", prompt={"text": "a"}).message.startswith("voice: ")


def test_a_body_without_prompt_is_refused() -> None:
    assert refused(b"x").message.startswith("body: ")
    assert refused(b"x", op="ping", text=...).message.startswith("body: ")


# --- ids


@pytest.mark.parametrize("id", ["a", "ü", "x" * 64, "\x00\n"])
def test_an_id_that_may_be_is_echoed(id: str) -> None:
    assert decode(id=id).id == id
    assert refused(id=id, format="wave").id == id


@pytest.mark.parametrize("id", ["", "x" * 65, "x" * 60_000, 5, None, b"a", ["a"], {"a": "b"}])
def test_an_id_that_may_not_be_is_not_echoed(id: Any) -> None:
    error = refused(id=id)
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, "")
    assert error.message.startswith("id: ")


# --- text


@pytest.mark.parametrize(
    "text", ["a", "7", "你", "ß!", "٣", "Ⅷ", "\tHi\r\nthere", "👍 ok", "é", "x\u200by", " " * 100 + "a"]
)
def test_text_with_a_letter_or_digit_is_spoken(text: str) -> None:
    assert decode(text=text).id == "a1"


@pytest.mark.parametrize("text", ["", " ", ".", "!?…", "\n\t", "👍", "_", "——", "，。", "\u200b"])
def test_text_with_nothing_to_say_is_refused(text: str) -> None:
    assert refused(text=text).message.startswith("text: there is no letter")


@pytest.mark.parametrize("code", [0x00, 0x07, 0x08, 0x1B, 0x1F, 0x7F, 0x80, 0x9F])
def test_control_characters_are_refused_by_number_and_place(code: int) -> None:
    message = refused(text=f"ab{chr(code)}c").message
    assert message.startswith("text: ") and f"U+{code:04X}" in message and "position 2" in message


def test_lone_surrogates_are_refused() -> None:
    header = msgpack.packb(VALID | {"text": "a\ud800b"}, unicode_errors="surrogatepass")
    with pytest.raises(RequestError) as caught:
        decode_request([header], LIMITS)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert "UTF-8" in caught.value.message


USELESS = ["", " ", ".", "...", "!?…", "\n\t", "👍", "_", "，。", "\u200b", "\ufeff\u2060", "\u3164", "\x0c", "\ufffc"]


@pytest.mark.parametrize("text", USELESS)
def test_a_transcript_with_nothing_to_say_is_refused_wherever_it_is_sent(text: str) -> None:
    """It would fail every job with that voice, long after."""
    words = "there is no letter or digit in it to speak; give the words that are said in the recording"
    if text:
        assert refused(b"RIFF", prompt={"text": text}).message == f"prompt.text: {words}"
        message = {"v": 1, "op": "voice_add", "id": "a1", "name": "anna", "text": text}
        with pytest.raises(RequestError) as caught:
            decode_control([msgpack.packb(message), b"RIFF"], LIMITS)
        assert (caught.value.code, caught.value.id, caught.value.message) == ("bad_request", "a1", f"text: {words}")
    assert refused(text=text).message == f"text: {words.partition(';')[0]}"


def test_texts_and_transcripts_reach_the_engine_folded() -> None:
    request = decode(b"RIFF", text="１２３\x0c⼈工", prompt={"text": "ｈｅｌｌｏ\u200b"})
    assert isinstance(request, requests.Synthesize) and request.prompt is not msgspec.UNSET
    assert (request.text, request.prompt.text) == ("123\n人工", "hello")
    voice = {"v": 1, "op": "voice_add", "id": "a1", "name": "anna", "text": "a\x0cb"}
    assert decode_control([msgpack.packb(voice), b"RIFF"], LIMITS) == control.VoiceAdd(
        id="a1", v=1, name="anna", text="a\nb"
    )


def test_a_text_that_folding_makes_too_long_is_too_large() -> None:
    assert decode(text="ﷲ" * 1_250).id == "a1"
    assert refused(text="ﷲ" * 1_251).code is ErrorCode.TOO_LARGE


# --- output


@pytest.mark.parametrize("name", ["a.wav", "今天.wav", "a b.mp3", "a..b", "-rf", "a" * 200])
def test_a_plain_file_name_is_accepted(name: str) -> None:
    assert decode(output=name).id == "a1"


@pytest.mark.parametrize(
    ("name", "asked", "made"),
    [
        ("a.mp3", ..., "mp3"),
        ("今天.OPUS", ..., "ogg"),
        ("a.wave", ..., "wav"),
        ("a", ..., "wav"),
        ("v1.2", ..., "wav"),
        ("a.mp3", "mp3", "mp3"),
        ("a.xyz", "flac", "flac"),
        ("a.raw", "pcm_f32le", "pcm_f32le"),
        ("a.raw", "ulaw", "ulaw"),
        ("a.wav", "wav_alaw", "wav_alaw"),
    ],
)
def test_an_output_is_what_its_name_says(name: str, asked: Any, made: str) -> None:
    request = decode(output=name, format=asked)
    assert isinstance(request, requests.Synthesize)
    assert request.resolved_format == made


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("a.mp3", "wav", "output: .mp3 says mp3, but the format is wav"),
        ("a.m4a", "wav", "output: .m4a is the ending of another kind of file than wav"),
        ("a.m4a", ..., "output: .m4a is none of the known formats"),
        ("a.xyz", ..., "output: .xyz is none of the known formats"),
    ],
)
def test_an_output_that_would_not_be_what_its_name_says_is_refused(name: str, asked: Any, words: str) -> None:
    assert refused(output=name, format=asked).message.startswith(words)


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", ".hidden"],
        *["a\x00b", "a\nb", "a\tb", "a\x7f", "a" * 201, "好" * 67],
    ],
)
def test_anything_but_a_plain_file_name_is_refused(name: str) -> None:
    assert refused(output=name).message.startswith("output: ")
