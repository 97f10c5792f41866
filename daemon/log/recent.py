"""The last lines of the log, kept in memory for ``glmttsctl logs``: the same with and without a service manager."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from typing import Any

from msgspec import UNSET

from glmtts.protocol.control import LogLevel, Logs

#: Of longer fields only the beginning is kept, and of the lists in them so much: an estimate is enough for a bound.
_MAX_VALUE = 2_000
_MAX_ITEMS = 50
#: An answer is not much longer than that, in characters; who wants more asks again.
_MAX_ANSWER = 200_000
_RANK: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_Line = tuple[int, float, LogLevel, str, dict[str, Any]]


class KeptLines:
    """The last ``most`` lines. Lines are added in the log's thread and looked for in the loop."""

    def __init__(self, most: int) -> None:
        self._lines: deque[_Line] = deque(maxlen=most)
        self._number = 0
        self._lock = threading.Lock()

    def add(self, at: float, level: LogLevel, message: str, fields: dict[str, Any]) -> None:
        """Keep a line, and forget the oldest if there are too many."""
        kept = {name: _short(value) for name, value in fields.items()}
        with self._lock:
            self._number += 1
            self._lines.append((self._number, at, level, message[:_MAX_VALUE], kept))

    def describe(self, asked: Logs) -> dict[str, Any]:
        """The lines that were asked for, the oldest first; ``newest`` is to be the next question's ``after``.

        ``lost``: how many lines after ``after`` were forgotten before they were asked for.
        """
        with self._lock:
            lines, newest = list(self._lines), self._number
        after = 0 if asked.after is UNSET else asked.after
        oldest = lines[0][0] if lines else newest + 1
        lost = 0 if asked.after is UNSET else max(0, oldest - after - 1)
        wanted = [line for line in islice(lines, max(0, after - oldest + 1), None) if _fits(line, asked)]
        if asked.after is UNSET:
            wanted = wanted[max(0, len(wanted) - asked.limit) :]
        elif len(wanted) > asked.limit:
            wanted = wanted[: asked.limit]
            newest = wanted[-1][0] if wanted else after
        found: list[dict[str, Any]] = []
        room = _MAX_ANSWER
        for number, at, level, message, fields in wanted if asked.after is not UNSET else reversed(wanted):
            room -= len(message) + sum(len(str(value)) for value in fields.values())
            if room < 0 and found:
                newest = found[-1]["number"] if asked.after is not UNSET else newest
                break
            line = {"number": number, "time": round(at, 3), "level": level, "message": message, "fields": fields}
            found.append(line)
        return {"lines": found if asked.after is not UNSET else found[::-1], "newest": newest, "lost": lost}


def _fits(line: _Line, asked: Logs) -> bool:
    _, _, level, _, fields = line
    if _RANK[level] < _RANK[asked.level]:
        return False
    if asked.worker is not UNSET and asked.worker not in (fields.get("worker"), fields.get("replaces")):
        return False
    return asked.job is UNSET or fields.get("job") == asked.job


def _short(value: Any) -> Any:
    """A value that can be sent, and is not changed any more by whoever gave it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [str(item)[:_MAX_VALUE] for item in value[:_MAX_ITEMS]]
    try:
        text = str(value)
    except Exception as error:
        return f"unprintable ({type(error).__name__})"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}... ({len(text) - _MAX_VALUE} more characters)"
