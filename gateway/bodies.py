"""Bodies of requests: read within a size and a time, decoded, and refused with the key at fault; and long answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .errors import HttpError

T = TypeVar("T")
Body = TypeVar("Body", bound=msgspec.Struct)

#: Seconds that a body may take to come.
_BODY_S = 60.0
_LONGER_THAN_PATHS = 1_024
#: Bytes that are sent at a time.
_PIECE = 64 << 10
#: Values of a JSON body. Ten million empty lists are 28 MiB of body, 760 MiB of memory and 13 s for all other requests.
_MAX_VALUES = 200_000
#: From here on floats are no longer exact.
_EXACT = 2**53
#: msgspec names the key at the end of its message.
_AT = re.compile(r" - at `\$\.?([^`]*)`$")


class ClientGoneError(Exception):
    """The other side has closed its connection."""


async def read(request: Request, most: int) -> bytes:
    """The body, of at most ``most`` bytes. Raises HttpError and ClientGoneError."""
    limit = f"{most >> 20} MiB ([gateway] body_mib)" if most >> 20 else f"{most} bytes"
    too_large = HttpError(413, f"the body is over {limit}", code="too_large")
    if int(request.headers.get("content-length", "0") or 0) > most:
        raise too_large
    parts = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                parts += part
                if len(parts) > most:
                    raise too_large
                request.state.held.take(len(part))
    except ClientDisconnect:
        raise ClientGoneError from None
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {_BODY_S:g} s", code="timeout", retryable=True) from None
    return bytes(parts)


def decode(body: bytes, kind: type[Body]) -> tuple[Body, list[str]]:
    """A JSON object as ``kind``, and its keys that are none of that type's. Raises HttpError."""
    return checked(parsed(body), kind)


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises HttpError."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise HttpError(413, f"the body has over {_MAX_VALUES} values", code="too_large")
    try:
        values: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None
    except RecursionError:
        raise HttpError(400, "the body is nested too deeply") from None
    if not isinstance(values, dict):
        raise HttpError(400, 'the body is to be a JSON object, such as {"input": "..."}')
    return values


def checked(values: dict[str, Any], kind: type[Body]) -> tuple[Body, list[str]]:
    """An object as ``kind``, and its keys that are none of that type's. Raises HttpError."""
    # Asking msgspec.structs.fields evaluates every annotation anew, which takes longer than all else here.
    known = kind.__struct_encode_fields__
    ignored = [key for key in values if key not in known]
    # OpenAI's packages send null for what is not given.
    given = {key: _number(value) for key, value in values.items() if key in known and value is not None}
    try:
        return msgspec.convert(given, kind), ignored
    except msgspec.ValidationError as error:
        place = _AT.search(str(error))
        key = place[1].partition(".")[0].partition("[")[0] if place else ""
        message = _AT.sub("", str(error))
        missing = re.search(r"missing required field `(\w+)`", message)
        param = missing[1] if missing else key
        raise HttpError(400, f"{param}: {message}" if param else message, param=param or None) from None


def _number(value: Any) -> Any:
    """JSON makes no difference between 1.0 and 1."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def ignored_header(ignored: Iterable[str]) -> dict[str, str]:
    """The header that names the keys of a body that are ignored; empty if there are none."""
    names = ", ".join(name for name in ignored if name.isascii() and name.isprintable())[:500]
    return {"x-glmtts-ignored": names} if names else {}


def recording(source: str, param: str) -> bytes:
    """The bytes of a recording given as base64 or as a ``data:`` URI; nothing is fetched. Raises HttpError."""
    if source.startswith("data:"):
        head, comma, source = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise HttpError(400, f"{param}: a data: URI has to end its head with ';base64,'", param=param)
    # The base64 of an MP3 file begins with "//" as well, and is longer than paths are.
    elif "://" in source[:16] or (source.startswith(("/", ".")) and len(source) < _LONGER_THAN_PATHS):
        message = f"{param}: send the recording itself, as base64 or a data: URI; addresses and paths are not read"
        raise HttpError(400, message, param=param)
    try:
        return base64.b64decode(source.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except (binascii.Error, ValueError):
        raise HttpError(400, f"{param}: this is no base64", param=param) from None


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Do ``work``, and cancel it when the client closes its connection. Raises ClientGoneError."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        drop(task, watch)
        if not task.done():
            # The client library sends the daemon its `cancel` before the handler ends.
            await asyncio.wait({task})


def drop(*tasks: asyncio.Task[Any] | asyncio.Future[Any] | None) -> None:
    """Cancel tasks; what they end with is not asked for."""
    for task in tasks:
        if task is not None:
            task.cancel()
            # Otherwise asyncio logs the error of a task that fails all the same.
            task.add_done_callback(_forget)


def _forget(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def in_pieces(file: bytes | memoryview) -> AsyncIterator[bytes | memoryview]:
    """A file, to be sent. A client that reads slowly holds it back: whole, it would be copied to the connection."""
    for start in range(0, len(file), _PIECE):
        yield file[start : start + _PIECE]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
