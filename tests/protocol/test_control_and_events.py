"""The control socket's operations, and events as clients decode them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtts.protocol import codec, control, events
from glmtts.protocol.codec import CodecLimits, decode_control
from glmtts.protocol.errors import RequestError

from .test_codec import LIMITS, refused
from .test_hostile_bytes import VALUES

# --- the control socket


def operate(*body: bytes, **message: Any) -> control.ControlRequest:
    return decode_control([msgpack.packb({"v": 1, "id": "c", **message}), *body], LIMITS)


def test_every_operation_without_keys_of_its_own_is_understood() -> None:
    with_keys = {"recycle", "log_level", "voice_add", "voice_remove", "cancel", "job"}
    for op in codec._CONTROL_TYPES.keys() - with_keys:
        assert operate(op=op).id == "c"


@pytest.mark.parametrize("name", ["anna", "小美", "a-b_c1", "x" * 64])
def test_a_voice_name_that_may_be_is_accepted(name: str) -> None:
    assert operate(b"RIFF", op="voice_add", name=name, text="hi").id == "c"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "a.b", "x" * 65, "a\n", "\n", "a\x00"])
def test_a_voice_name_that_is_no_file_name_is_refused(name: str) -> None:
    for op, extra, body in (("voice_add", {"text": "hi"}, [b"RIFF"]), ("voice_remove", {}, [])):
        with pytest.raises(RequestError) as caught:
            operate(*body, op=op, name=name, **extra)
        assert caught.value.message.startswith("name: ")


@pytest.mark.parametrize(
    ("op", "key", "value", "allowed"),
    [
        *(("drain", "timeout_s", value, "above 0 to 2592000") for value in (float("nan"), float("inf"), -1, 1e308)),
        *(("scale", "max", value, "from 1 to 256") for value in (0, -1, 257, 2**63)),
        ("health", "timeout_s", 1e308, "above 0 to 600"),
    ],
)
def test_a_number_out_of_range_is_answered_with_the_range(op: str, key: str, value: float, allowed: str) -> None:
    with pytest.raises(RequestError) as caught:
        operate(op=op, **{key: value})
    assert caught.value.message == f"{key}: {value!r} is out of range: {allowed}"


def test_a_voice_is_not_added_without_its_recording() -> None:
    with pytest.raises(RequestError) as caught:
        operate(op="voice_add", name="anna", text="hi")
    assert caught.value.message.startswith("body: ")


def test_operators_operations_are_unknown_to_the_requests_socket() -> None:
    assert refused(op="stop", text=...).message.startswith("op: ")


# --- events, as clients decode them


def test_events_come_back_as_they_were_sent() -> None:
    event = events.Done(
        id="a",
        job="j",
        format="wav",
        sample_rate=24_000,
        audio_s=1.0,
        waited_s=0.1,
        synthesis_s=0.5,
        first_audio_s=0.2,
        rtf=0.5,
        attempts=1,
        engine="espeak",
        voice="en",
        sha256="0",
    )
    assert codec.decode_event(codec.encode(event)) == event
    result = events.Result(id="a", values={"state": "cancelled"})
    assert codec.decode_event(codec.encode(result)) == result


def test_a_client_lives_with_events_and_keys_of_a_later_version() -> None:
    assert codec.decode_event(msgpack.packb({"event": "later", "id": "a", "v": 1})) is None
    later = {"event": "pong", "id": "a", "v": 1, "version": "9", "protocol": 1, "uptime_s": 1.0, "mood": "good"}
    assert isinstance(codec.decode_event(msgpack.packb(later)), events.Pong)


@given(st.binary(max_size=200) | VALUES.map(msgpack.packb))
def test_what_is_no_event_is_a_value_error(header: bytes) -> None:
    try:
        codec.decode_event(header)
    except ValueError:
        pass


@pytest.mark.parametrize("key", ["min", "max"])
def test_no_slip_of_the_hand_makes_a_million_workers(key: str) -> None:
    header = {"v": 1, "op": "scale", "id": "1"}
    assert decode_control([msgpack.packb(header | {key: control.MAX_WORKERS})], CodecLimits())
    with pytest.raises(RequestError, match=f"{key}: .*256"):
        decode_control([msgpack.packb(header | {key: 1_000_000})], CodecLimits())
