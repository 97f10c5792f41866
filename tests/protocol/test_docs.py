"""docs/protocol.md is what people write clients from: it has all that the types have, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest

from glmtts.protocol import codec, control, endpoints, events, requests
from glmtts.protocol.audio_formats import ENCODER_RATES, FORMATS
from glmtts.protocol.errors import ErrorCode

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))
REQUESTS: list[type[Any]] = [*get_args(requests.ClientRequest), *get_args(control.ControlRequest)]
EVENTS: list[type[Any]] = list(get_args(events.ClosedEvent))


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda t: t.__name__)
def test_every_request_and_every_key_of_it_is_documented(request_type: type[Any]) -> None:
    keys = {request_type.__struct_config__.tag, *request_type.__struct_encode_fields__}
    assert keys <= WORDS, f"docs/protocol.md says nothing of {sorted(keys - WORDS)}"


@pytest.mark.parametrize("event_type", EVENTS, ids=lambda t: t.__name__)
def test_every_event_and_every_key_of_it_is_documented(event_type: type[Any]) -> None:
    keys = {event_type.__struct_config__.tag, *event_type.__struct_encode_fields__}
    assert keys <= WORDS, f"docs/protocol.md says nothing of {sorted(keys - WORDS)}"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_is_documented_with_whether_a_retry_helps(code: ErrorCode) -> None:
    row = re.search(rf"^\| `{code}` \| (yes|no) \| .+ \|$", PAGE, re.MULTILINE)
    assert row, f"docs/protocol.md has no row for {code}"
    assert (row[1] == "yes") == code.retryable


def test_no_error_code_is_documented_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:yes|no) \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(ErrorCode)


def test_formats_rates_words_and_sockets_are_documented() -> None:
    assert set(FORMATS) <= WORDS
    assert {*requests.PRIORITIES, *get_args(requests.JobState), *get_args(control.LogLevel)} <= WORDS
    assert {endpoints.REQUESTS, endpoints.CONTROL, endpoints.EVENTS} <= WORDS
    assert all(str(rate) in PAGE for rates in ENCODER_RATES.values() for rate in rates)
    limits = codec.CodecLimits()
    assert f"{limits.header_bytes >> 10} KiB" in PAGE
    assert f"{limits.body_bytes >> 20} MiB" in PAGE
    assert f"{limits.text_chars:,} characters" in PAGE
    assert str(requests.MAX_SEED) in PAGE


def test_the_example_in_bytes_is_what_the_page_says() -> None:
    asked, answered = (bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", PAGE, re.DOTALL))
    assert msgpack.unpackb(asked) == {"v": 1, "op": "synthesize", "id": "a1", "text": "Hi"}
    assert f"these {len(asked)} bytes" in PAGE
    assert codec.decode_request([asked], codec.CodecLimits()).id == "a1"
    event = codec.decode_event(answered)
    assert event == events.Accepted(id="a1", job="k3f-1", position=0, queue_size=1)


def test_the_example_client_is_python() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(source, "docs/protocol.md", "exec")
