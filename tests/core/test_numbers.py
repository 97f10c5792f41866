"""Numbers of requests: whatever a peer sends is served or refused by the name of its key, and is never a bug."""

from __future__ import annotations

import math
import typing
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.log.recent import RecentLines
from glmtts.protocol import control
from glmtts.protocol.codec import CodecLimits, decode_control, decode_request
from glmtts.protocol.errors import RequestError
from glmtts.protocol.requests import ClientRequest

from ..support.core_world import ALICE, OPERATOR, World

NUMBERS = (
    st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.booleans()
    | st.sampled_from(
        [0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, math.nan, math.inf, -math.inf, 1e308, -0.0, 5e-324]
    )
)
#: What the keys that must be there hold, where a number is tried in another one.
NEEDED: dict[str, Any] = {
    "text": "hello", "job": "b-1", "worker": "w0", "level": "info", "name": "carol", "prompt": {"text": "x"},
    "request": "r0",
}  # fmt: skip
LIMITS = CodecLimits()


def numbers_of(kind: type[Any]) -> list[str]:
    """The keys of a request that take a number."""
    hints = {field.encode_name: repr(field.type) for field in msgspec.structs.fields(kind)}
    return [name for name, hint in hints.items() if "int" in hint or "float" in hint]


def cases(union: Any) -> list[tuple[str, str]]:
    return [(kind.__struct_config__.tag, name) for kind in typing.get_args(union) for name in numbers_of(kind)]


def message(op: str, union: Any, key: str, value: object) -> bytes:
    kind = next(kind for kind in typing.get_args(union) if kind.__struct_config__.tag == op)
    needed = {
        field.encode_name: NEEDED.get(field.encode_name) for field in msgspec.structs.fields(kind) if field.required
    }
    if op == "voice_add" and union is ClientRequest:
        needed["consent"] = True
    return bytes(msgpack.packb({**needed, "op": op, "id": "r1", "v": 1, key: value}))


def served(world: World, event: inputs.Requested | inputs.Controlled) -> None:
    """Step it; a bug of the core raises. No timer is without an end, and a look at the log is as the shell does it."""
    for effect in world.step(event):
        if isinstance(effect, effects.ReadLog):
            lines = RecentLines(10)
            lines.add(1.0, "info", "a line", {})
            assert lines.describe(effect.request)["newest"] >= 0
    due = world.machine.next_due
    assert due is None or math.isfinite(due)


def try_number(union: Any, op: str, key: str, value: object, world: World) -> None:
    data = message(op, union, key, value)
    body = [b"RIFF"] if op == "voice_add" else []
    try:
        if union is ClientRequest:
            served(world, inputs.Requested(ALICE, inputs.ReplyTo(1), decode_request([data, *body], LIMITS), None))
        else:
            served(world, inputs.Controlled(OPERATOR, decode_control([data, *body], LIMITS)))
    except RequestError as error:
        assert error.code.value == "bad_request"
        assert error.message.startswith(f"{key}: ")


@pytest.mark.parametrize(("op", "key"), cases(ClientRequest))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NUMBERS)
def test_a_number_of_a_client(world: World, op: str, key: str, value: object) -> None:
    try_number(ClientRequest, op, key, value, world)


@pytest.mark.parametrize(("op", "key"), cases(control.ControlRequest))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NUMBERS)
def test_a_number_of_an_operator(world: World, op: str, key: str, value: object) -> None:
    try_number(control.ControlRequest, op, key, value, world)


@given(st.integers(0, 2**64 - 1), st.integers(0, 500))
def test_lines_after_any_number_are_looked_up_or_refused(after: int, limit: int) -> None:
    try:
        request = decode_control(
            [msgpack.packb({"op": "logs", "id": "r1", "v": 1, "after": after, "limit": limit})], LIMITS
        )
    except RequestError as error:
        assert after > control.MAX_LINE
        assert error.message.startswith("after: ")
    else:
        assert isinstance(request, control.Logs)
        assert RecentLines(10).describe(request)["lines"] == []
