"""Bytes to messages and back, with explicit limits: no bytes of a peer raise anything but RequestError.

msgspec decodes a well-formed message straight into its type. Whatever it refuses is decoded once more by msgpack, which
has a limit for every kind of container, to find the request's id and the field at fault.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgpack
import msgspec
from msgspec import UNSET, Struct

from . import control, events, texts
from .audio_formats import ENCODER_RATES, misnamed
from .errors import ErrorCode, RequestError
from .requests import VERSION, ClientRequest, Synthesize, Text, VoiceAdd

T = TypeVar("T")


class CodecLimits(Struct, frozen=True, kw_only=True):
    """Sizes above which a message is refused."""

    header_bytes: int = 64 * 1024
    body_bytes: int = 16 * 1024 * 1024
    body_frames: int = 1
    text_chars: int = 5_000


#: Most elements of a container in a request. (msgpack limits the depth.)
_MAX_ELEMENTS = 4_096

#: Code that handles options later (schema check, encoding for the worker, log) may be recursive.
_MAX_OPTIONS_DEPTH = 16

_CLIENT_TYPES: dict[str, type[Any]] = {t.__struct_config__.tag: t for t in get_args(ClientRequest)}
_CONTROL_TYPES: dict[str, type[Any]] = {t.__struct_config__.tag: t for t in get_args(control.ControlRequest)}

_client_decoder: msgspec.msgpack.Decoder[ClientRequest] = msgspec.msgpack.Decoder(ClientRequest)
_control_decoder: msgspec.msgpack.Decoder[control.ControlRequest] = msgspec.msgpack.Decoder(control.ControlRequest)
_event_decoder: msgspec.msgpack.Decoder[events.ClosedEvent] = msgspec.msgpack.Decoder(events.ClosedEvent)

_encoder = msgspec.msgpack.Encoder()


def unpack_map(data: bytes | memoryview, limits: CodecLimits) -> dict[str, Any]:
    """Decode one MessagePack map with string keys.

    Raises RequestError: ``too_large`` above ``limits.header_bytes``, ``bad_request`` for anything that is no such map.
    """
    if len(data) > limits.header_bytes:
        raise RequestError(
            ErrorCode.TOO_LARGE,
            f"header: {len(data)} bytes, the text and all keys together; at most {limits.header_bytes} are accepted",
        )
    try:
        value = _unpack(data, limits, "strict")
    except UnicodeDecodeError:
        raise _not_unicode(data, limits) from None
    except (ValueError, RecursionError, MemoryError, OverflowError, TypeError) as error:
        # ValueError covers msgpack's FormatError, StackError, ExtraData and its own size limits.
        what = str(error) or type(error).__name__
        raise RequestError(ErrorCode.BAD_REQUEST, f"header: not a MessagePack map ({what[:200]})") from None
    if not isinstance(value, dict):
        raise RequestError(ErrorCode.BAD_REQUEST, f"header: a {type(value).__name__}, where a map is expected")
    for key in value:
        if not isinstance(key, str):
            raise RequestError(ErrorCode.BAD_REQUEST, "header: every key must be a string", id=_id_of(value))
    return value


def _unpack(data: bytes | memoryview, limits: CodecLimits, unicode_errors: str) -> Any:
    return msgpack.unpackb(
        data,
        raw=False,
        unicode_errors=unicode_errors,
        strict_map_key=True,
        max_str_len=limits.header_bytes,
        max_bin_len=limits.header_bytes,
        max_array_len=_MAX_ELEMENTS,
        max_map_len=_MAX_ELEMENTS,
        max_ext_len=0,
    )


def _not_unicode(data: bytes | memoryview, limits: CodecLimits) -> RequestError:
    """The error for a header with a string that is not UTF-8, with the request's id and the key if they can be read.

    Some languages cut a text in the middle of a surrogate pair.
    """
    key, id = "header", ""
    with contextlib.suppress(ValueError, RecursionError, MemoryError, OverflowError, TypeError):
        value = _unpack(data, limits, "surrogateescape")
        if isinstance(value, dict):
            key = next((k for k, v in value.items() if isinstance(v, str) and not _is_unicode(v)), key)
            id = _id_of(value)
    key, id = (word if _is_unicode(word) else default for word, default in ((key, "header"), (id, "")))
    return RequestError(ErrorCode.BAD_REQUEST, f"{key[:80]}: a string is not valid UTF-8", id=id)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_request(frames: Sequence[bytes | memoryview], limits: CodecLimits) -> ClientRequest:
    """Decode and validate a request of the requests socket: ``frames`` is ``[header, body...]``. Its texts are folded.

    Raises RequestError naming the offending field.
    """
    request = _decode(frames, limits, _client_decoder, _CLIENT_TYPES)
    if type(request) is Synthesize:
        _check_synthesize(request, len(frames) > 1, limits)
    elif type(request) is VoiceAdd:
        _check_voice(request, len(frames) > 1)
        if not request.consent:
            message = "consent: a voice is kept only where this is true: the person who is heard agrees to it"
            raise RequestError(ErrorCode.BAD_REQUEST, message, id=request.id)
        for key in ("language", "description"):
            if texts.has_control_character(getattr(request, key)):
                raise RequestError(ErrorCode.BAD_REQUEST, f"{key}: has a control character in it", id=request.id)
    elif type(request) is Text and len(frames) == 1:
        _check_piece(request, limits)
    elif len(frames) > 1:
        raise RequestError(ErrorCode.BAD_REQUEST, f"body: {_op_of(request)} takes none", id=request.id)
    return request


def decode_control(frames: Sequence[bytes | memoryview], limits: CodecLimits) -> control.ControlRequest:
    """Decode and validate an operation of the control socket; a transcript is folded. Raises as decode_request."""
    request = _decode(frames, limits, _control_decoder, _CONTROL_TYPES)
    if type(request) is control.VoiceAdd:
        _check_voice(request, len(frames) > 1)
    elif len(frames) > 1:
        raise RequestError(ErrorCode.BAD_REQUEST, f"body: {_op_of(request)} takes none", id=request.id)
    return request


def _check_voice(request: VoiceAdd | control.VoiceAdd, has_body: bool) -> None:
    """Fold the transcript of a voice, and check it."""
    if not has_body:
        raise RequestError(ErrorCode.BAD_REQUEST, "body: voice_add needs the recording as its body", id=request.id)
    try:
        request.text = texts.transcript(request.text)
    except texts.TextError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, f"text: {error}", id=request.id) from None


def encode(message: Struct) -> bytes:
    """Encode a request or an event as its header frame."""
    if type(message) is events.Result:
        return _encoder.encode({"event": "result", "id": message.id, "v": message.v, **message.values})
    return _encoder.encode(message)


def encode_map(values: dict[str, Any]) -> bytes:
    """Encode a plain map, as the events socket carries them."""
    return _encoder.encode(values)


def decode_event(header: bytes | memoryview) -> events.ServerEvent | None:
    """Decode an event, for a client. Returns None for one that this version doesn't know.

    Raises ValueError for anything that is no event.
    """
    try:
        return _event_decoder.decode(header)
    except (ValueError, RecursionError):
        pass  # an open event, an unknown one, or none
    value = msgpack.unpackb(header, raw=False)
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise ValueError("not an event")
    name = value["event"]
    if name == "result":
        rest = {k: v for k, v in value.items() if k not in ("event", "id", "v")}
        return events.Result(id=value.get("id", ""), v=value.get("v", VERSION), values=rest)
    if name not in _EVENT_TYPES:
        return None
    return msgspec.convert(value, _EVENT_TYPES[name])  # type: ignore[no-any-return]


_EVENT_TYPES: dict[str, type[Any]] = {t.__struct_config__.tag: t for t in get_args(events.ClosedEvent)}


def _decode(
    frames: Sequence[bytes | memoryview],
    limits: CodecLimits,
    decoder: msgspec.msgpack.Decoder[T],
    types: dict[str, type[Any]],
) -> T:
    if not frames:
        raise RequestError(ErrorCode.BAD_REQUEST, "header: the message has no frames")
    if len(frames) == 1 and len(frames[0]) <= limits.header_bytes:
        try:
            request = decoder.decode(frames[0])
        except (ValueError, RecursionError, MemoryError):
            pass  # the answer below names what is wrong
        else:
            if _is_simple(request):
                return request
    return _decode_carefully(frames, limits, types)  # type: ignore[no-any-return]


def _is_simple(request: Any) -> bool:
    """Whether the limits that msgspec does not check hold: the version's value, and the containers in options."""
    if request.v != VERSION:
        return False
    options = getattr(request, "options", None)
    if not options:
        return True
    return len(options) <= _MAX_ELEMENTS and all(isinstance(value, _SCALARS) for value in options.values())


def _decode_carefully(frames: Sequence[bytes | memoryview], limits: CodecLimits, types: dict[str, type[Any]]) -> Any:
    """Decode within all limits, and raise RequestError with the request's id and the field at fault."""
    value = unpack_map(frames[0], limits)
    id = _id_of(value)
    try:
        if len(frames) - 1 > limits.body_frames:
            raise RequestError(
                ErrorCode.BAD_REQUEST, f"body: {len(frames) - 1} frames; at most {limits.body_frames} is accepted"
            )
        for body in frames[1:]:
            if len(body) > limits.body_bytes:
                raise RequestError(
                    ErrorCode.TOO_LARGE, f"body: {len(body)} bytes; at most {limits.body_bytes} are accepted"
                )
        for key in ("v", "op", "id"):
            if key not in value:
                raise RequestError(ErrorCode.BAD_REQUEST, f"{key}: this key is missing")
        if value["v"] != VERSION or type(value["v"]) is not int:
            raise RequestError(ErrorCode.BAD_REQUEST, f"v: this daemon speaks version {VERSION} of the protocol")
        op = value["op"]
        if not isinstance(op, str) or op not in types:
            known = ", ".join(sorted(types))
            raise RequestError(ErrorCode.BAD_REQUEST, f"op: {_short(op)} is not one of {known}")
        try:
            return msgspec.convert(value, types[op])
        except msgspec.ValidationError as error:
            raise RequestError(ErrorCode.BAD_REQUEST, field_problem(str(error), value, types[op])) from None
        except (RecursionError, ValueError, TypeError) as error:
            raise RequestError(ErrorCode.BAD_REQUEST, f"header: {error}") from None
    except RequestError as error:
        error.id = id
        raise


def _check_synthesize(request: Synthesize, has_body: bool, limits: CodecLimits) -> None:
    """Fold the texts; check them, and what involves several fields."""

    def refuse(message: str, code: ErrorCode = ErrorCode.BAD_REQUEST) -> RequestError:
        return RequestError(code, message, id=request.id)

    length = len(request.text)
    if length <= limits.text_chars:
        key = "text"
        try:
            if request.more:
                # The core folds it with what comes after it.
                texts.check_characters(request.text)
            else:
                request.text = texts.speakable(request.text)
            if request.prompt is not UNSET:
                key = "prompt.text"
                request.prompt.text = texts.transcript(request.prompt.text)
        except texts.TextError as error:
            raise refuse(f"{key}: {error}") from None
        length = len(request.text)
    if length > limits.text_chars:
        raise refuse(f"text: {length} characters; at most {limits.text_chars} are accepted", ErrorCode.TOO_LARGE)
    if request.more:
        if request.durable is True:
            raise refuse("durable: not together with more; what has come of the text does not survive the daemon")
        if request.key is not UNSET:
            raise refuse("key: not together with more; pieces that are sent again would be spoken twice")
        if request.events == "final":
            raise refuse("more: not together with events 'final', which does not tell the job that the pieces name")
    if request.prompt is not UNSET:
        if request.voice is not UNSET:
            raise refuse("voice: not together with prompt; send one of the two")
        if not has_body:
            raise refuse("prompt: the recording is missing; send it as the frame after the header")
    elif has_body:
        raise refuse("body: a recording is accepted with prompt alone")
    audio_format = request.resolved_format
    if request.stream and request.output is not UNSET:
        raise refuse("output: not together with stream; send one of the two")
    rates = ENCODER_RATES.get(audio_format)
    if rates and request.sample_rate is not UNSET and request.sample_rate not in rates:
        raise refuse(f"sample_rate: {audio_format} holds {', '.join(map(str, rates))} Hz alone")
    if request.output is not UNSET:
        asked = None if request.format is UNSET else request.format
        if problem := bad_file_name(request.output) or misnamed(request.output, asked):
            raise refuse(f"output: {problem}")
    if request.options and _deeper_than(request.options, _MAX_OPTIONS_DEPTH):
        raise refuse(f"options: nested deeper than {_MAX_OPTIONS_DEPTH} containers")


def _check_piece(request: Text, limits: CodecLimits) -> None:
    """Check a piece of text by itself; the core knows what came before it."""
    if len(request.text) > limits.text_chars:
        message = f"text: {len(request.text)} characters; at most {limits.text_chars} are accepted for a job"
        raise RequestError(ErrorCode.TOO_LARGE, message, id=request.id)
    try:
        texts.check_characters(request.text)
    except texts.TextError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, f"text: {error}", id=request.id) from None


def bad_file_name(name: str) -> str:
    """Why ``name`` is not a plain file name, or ``""``."""
    if "/" in name or "\\" in name:
        return "a plain file name, never a path"
    if name in (".", "..") or name.startswith("."):
        return "must not begin with a dot"
    if texts.has_control_character(name):
        return "has a control character in it"
    if len(name.encode()) > 200:
        return "longer than 200 bytes"
    return ""


def _op_of(request: Struct) -> str:
    return str(request.__struct_config__.tag)


def _id_of(value: dict[Any, Any]) -> str:
    """The request's id if it is a valid one, else ``""``."""
    id = value.get("id")
    return id if isinstance(id, str) and 1 <= len(id) <= 64 else ""


def _short(value: object) -> str:
    """A value for an error message; a container by its kind, because its repr may be huge or too deep."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 60 else repr(value[:57]) + "..."
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else repr(value)
    return _KINDS.get(type(value).__name__, "something else")


def _deeper_than(value: object, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        containers = [v for v in level if isinstance(v, dict | list)]
        level = [item for c in containers for item in (c.values() if isinstance(c, dict) else c)]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


_SCALARS = (str, bytes, int, float, bool, type(None))
_KINDS = {"dict": "a map", "list": "an array"}
_WIRE_NAMES = {"`object`": "a map", "`array`": "an array", "`null`": "null", "`bool`": "true or false"}
_PATH = re.compile(r"^(?P<what>.*?) - at (?P<path>.+)$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
_BOUND = re.compile(r"^Expected `(?:int|float)` [<>]")
_TYPE_NAME = re.compile(r"`(\w+)`")


def field_problem(message: str, value: dict[str, Any], type_: type[Any]) -> str:
    """msgspec's message with the field in front: ``Expected `str`, got `int` - at `$.text``` as ``text: expected str,
    got int``; where one of a few words is expected, the words.
    """
    path = ""
    if match := _PATH.match(message):
        message = match["what"]
        # "`key` in `$.options`" for the key of a map, "`$.options[...]`" for a value in it
        path = match["path"].rpartition("`$")[2].rstrip("`").removeprefix(".")
    prefix = f"{path}." if path else ""
    if match := _UNKNOWN.match(message):
        return f"{prefix}{match['name'][:80]}: unknown key"
    if match := _MISSING.match(message):
        return f"{prefix}{match['name']}: this key is missing"
    if message.startswith("Invalid enum value") and path in value:
        return f"{path}: {_short(value[path])} is not one of {', '.join(_choices(type_, path))}"
    if "matching regex" in message:
        # The one pattern of the protocol is that of a registered voice's name.
        return f"{path}: use 1..64 letters, digits, hyphens and underscores"
    if _BOUND.match(message) and path in value and (allowed := _range(type_, path)):
        return f"{path}: {_short(value[path])} is out of range: {allowed}"
    message = _TYPE_NAME.sub(lambda m: _WIRE_NAMES.get(m[0], m[1]), message)
    return f"{path or 'header'}: {message[:1].lower()}{message[1:200]}"


def _choices(type_: type[Any], key: str) -> list[str]:
    """The values that a key of ``type_`` may have."""
    return [str(choice) for part in _parts(type_, key) if get_origin(part) is Literal for choice in get_args(part)]


def _range(type_: type[Any], key: str) -> str:
    """The numbers that a key of ``type_`` may have, in words; ``""`` without any bound."""
    for part in _parts(type_, key):
        if isinstance(part, msgspec.Meta):
            least = f"above {part.gt:g}" if part.gt is not None else "" if part.ge is None else f"from {part.ge:g}"
            return f"{least} to {part.le:.10g}" if part.le is not None else least
    return ""


def _parts(type_: type[Any], key: str) -> Iterator[Any]:
    """The annotation of a key of ``type_``, and all that it is made of."""
    pending = [field.type for field in msgspec.structs.fields(type_) if field.encode_name == key]
    while pending:
        part = pending.pop()
        yield part
        if get_origin(part) is not Literal:
            pending += get_args(part)
