"""Lines of the log, as text for people and as JSON for collectors. Nothing in a field forges a line. No I/O."""

from __future__ import annotations

import json
import time
import traceback
from typing import Any, get_args

from glmtts.protocol.control import LogLevel

#: Levels in their order.
RANK: dict[LogLevel, int] = {level: rank for rank, level in enumerate(get_args(LogLevel))}

#: Longer texts and lists are cut, which bounds a line whatever a peer sends.
MAX_CHARS, MAX_ITEMS = 8_192, 100
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text_line(at: float, level: LogLevel, message: str, fields: dict[str, Any], *, with_time: bool = True) -> str:
    """``TIME LEVEL message key=value ...``, without a newline anywhere in it."""
    parts = [timestamp(at)] if with_time else []
    parts += [level.upper(), _escaped(_cut(message, MAX_CHARS))]
    parts += [f"{name}={_quoted(value)}" for name, value in fields.items()]
    return " ".join(parts)


def json_line(at: float, level: LogLevel, message: str, fields: dict[str, Any]) -> str:
    """One JSON object in ASCII; a field with the name of one of the line's own gets an underscore."""
    line: dict[str, Any] = {"time": timestamp(at), "level": level, "message": _cut(message, MAX_CHARS)}
    for name, value in fields.items():
        line[f"{name}_" if name in line else name] = plain(value)
    return json.dumps(line, separators=(",", ":"))


def timestamp(at: float) -> str:
    """``at`` (seconds since 1970) in UTC as ISO 8601 with milliseconds."""
    seconds, milliseconds = divmod(int(at * 1_000), 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def plain(value: Any, chars: int = MAX_CHARS, items: int = MAX_ITEMS) -> Any:
    """A bounded copy of ``value`` that JSON and MessagePack can hold: numbers that JSON lacks become text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, chars, items) for item in list(value)[:items]]
    if isinstance(value, dict):
        return {str(key): plain(item, chars, items) for key, item in list(value.items())[:items]}
    return _cut(_printed(value), chars)


def traceback_of(error: BaseException) -> str:
    """The whole traceback of an exception, its messages included."""
    return "".join(traceback.format_exception(error))[-MAX_CHARS:]


def quiet_traceback_of(error: BaseException | None) -> str:
    """The same with the types of the exceptions alone: a message may quote what a client wants spoken.

    The operating system's messages (``strerror``) stay.
    """
    parts: list[str] = []
    while error is not None:
        words = getattr(error, "strerror", None)
        last = f"{type(error).__qualname__}: {words}" if words else type(error).__qualname__
        parts.append("".join(traceback.format_tb(error.__traceback__)) + last)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nand then\n\n".join(reversed(parts))[-MAX_CHARS:]


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    text = _cut(_printed(value), MAX_CHARS)
    if text and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return '"' + _escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _printed(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"unprintable ({type(error).__name__})"


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars]}... ({len(text) - chars} more characters)"


def _escaped(text: str) -> str:
    """``text`` with everything that could forge a line, or steer a terminal, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _hex(ord(c)) for c in text)


def _hex(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
