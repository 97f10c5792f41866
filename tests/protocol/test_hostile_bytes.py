"""Bytes and values that a hostile peer may send: the codec raises nothing but RequestError, and is done at once."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glmtts.protocol import codec, events, requests, texts
from glmtts.protocol.codec import CodecLimits, decode_control, decode_request
from glmtts.protocol.errors import ErrorCode, RequestError

from .test_codec import EVERY_KEY, LIMITS, VALID, decode, refused


@pytest.mark.parametrize("depth", [10, 500, 1_000, 1_023, 1_024, 2_000, 30_000])
@pytest.mark.parametrize("key", ["op", "id", "v", "text", "options", "other"])
def test_deep_nesting_is_refused_wherever_it_stands(key: str, depth: int) -> None:
    nested = b"\x91" * depth + b"\x01"
    rest = {k: v for k, v in VALID.items() if k != key}
    header = bytes([0x80 | (len(rest) + 1)]) + msgpack.packb(rest)[1:] + msgpack.packb(key) + nested
    with pytest.raises(RequestError) as caught:
        decode_request([header], LIMITS)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_options_nested_so_deeply_that_they_could_hurt_later_are_refused() -> None:
    def nested(depth: int) -> Any:
        return {"a": nested(depth - 1)} if depth else 1

    assert decode(options=nested(16)).id == "a1"
    assert refused(options=nested(17)).message.startswith("options: ")
    assert refused(options={"a": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}).message.startswith("options: ")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xc0",
        b"hello",
        b"\x81",
        b"\x81\xa1v",
        b"\x80" + b"trailing",
        b"\xdd\x00\x0f\x42\x40" + b"\x01" * 60_000,  # an array that says it has a million elements
        b"\xdf\xff\xff\xff\xff",  # a map of four thousand million pairs
        b"\xdb\xff\xff\xff\xff",  # a string of four thousand million bytes
        b"\xc9\xff\xff\xff\xff\x01",  # an extension of that size
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa1v\xd6\xff\x00\x00\x00\x00",
        b"\x81\x01\x01",
        b"\x81\x90\x01",
        b"\x81\xc4\x01v\x01",
        b"\x81\xa1\xff\x01",
    ],
)
def test_bytes_that_are_no_map_get_an_answer_with_an_empty_id(header: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request([header], LIMITS)
    assert (caught.value.code, caught.value.id) == (ErrorCode.BAD_REQUEST, "")
    assert caught.value.message.startswith("header: ") or caught.value.message.startswith("v: ")


def test_a_million_elements_are_refused_for_their_size() -> None:
    with pytest.raises(RequestError) as caught:
        decode_request([msgpack.packb([0] * 1_000_000)], LIMITS)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_a_million_elements_are_refused_where_the_header_may_be_large() -> None:
    header = msgpack.packb(VALID | {"options": {"a": [0] * 1_000_000}})
    with pytest.raises(RequestError) as caught:
        decode_request([header], CodecLimits(header_bytes=2_000_000))
    assert caught.value.code is ErrorCode.BAD_REQUEST


def only_request_errors(frames: list[bytes]) -> None:
    for decoder in (decode_request, decode_control):
        try:
            decoder(frames, LIMITS)
        except RequestError as error:
            assert error.code in (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)
            assert error.message and len(error.message) < 600
            # What is answered must be encodable whatever was asked.
            codec.encode(events.Error.of(error.id, error.code, error.message))


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_arbitrary_bytes_raise_nothing_but_request_errors(frames: list[bytes]) -> None:
    only_request_errors(frames)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from([*EVERY_KEY, "prompt", "output", "x"]), VALUES | st.text(max_size=3), max_size=4)
)
def test_a_request_is_read_as_its_keys_say_or_refused(changed: dict[str, Any]) -> None:
    message = {**VALID, **changed}
    try:
        expected: Any = msgspec.convert(message, requests.ClientRequest)
    except (msgspec.ValidationError, TypeError):
        expected = None
    try:
        found: object = decode(**changed)
    except RequestError:
        return
    expected.text = texts.fold(expected.text)
    assert found == expected


@given(VALUES, st.lists(st.binary(max_size=8), max_size=2))
def test_arbitrary_values_raise_nothing_but_request_errors(value: Any, body: list[bytes]) -> None:
    only_request_errors([msgpack.packb(value), *body])


ALL_KEYS = sorted(EVERY_KEY | {"prompt": 0, "output": 0, "job": 0, "state": 0, "limit": 0, "worker": 0, "level": 0})
OPS = sorted(codec._CLIENT_TYPES.keys() | codec._CONTROL_TYPES.keys())


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(ALL_KEYS), VALUES, max_size=5), st.sampled_from(OPS), st.booleans())
@example({"text": "a", "options": {"a": float("nan")}}, "synthesize", False)
def test_valid_requests_with_some_keys_changed_raise_nothing_but_request_errors(
    changed: dict[str, Any], op: str, with_body: bool
) -> None:
    message = {**VALID, "op": op, **changed}
    frames = [msgpack.packb(message)] + ([b"body"] if with_body else [])
    only_request_errors(frames)
    try:
        assert decode_request(frames, LIMITS).id == message["id"]
    except RequestError as error:
        id = message["id"]
        assert error.id == (id if isinstance(id, str) and 1 <= len(id) <= 64 else "")


@settings(max_examples=300)
@given(st.data())
def test_valid_requests_with_bytes_changed_raise_nothing_but_request_errors(data: st.DataObject) -> None:
    header = bytearray(msgpack.packb(EVERY_KEY))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    only_request_errors([bytes(header[: data.draw(st.integers(0, len(header)))])])
    only_request_errors([bytes(header)])
