"""The last lines of the log, kept in memory for ``glmttsctl logs``: the same with and without a service manager."""

from __future__ import annotations

import threading
from typing import Any

from msgspec import UNSET

from glmtts.protocol.control import LogLevel, Logs

from ..core.shares import SharedRows
from .format import RANK, plain

#: Longer texts and lists are cut.
_MAX_CHARS, _MAX_ITEMS = 2_000, 50
#: About the longest answer, in characters; the next question brings the lines that follow.
_MAX_ANSWER = 200_000


class RecentLines:
    """The last ``most`` lines, numbered from 1. The log's thread adds them, and the loop reads them.

    When there are too many, the oldest of those about the client with most lines goes, so that no client drives out
    the lines about the daemon, or about another client.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: dict[int, dict[str, Any]] = {}
        self._of_client: SharedRows[int] = SharedRows()
        self._number = 0
        self._lock = threading.Lock()

    def add(self, at: float, level: LogLevel, message: str, fields: dict[str, Any]) -> None:
        """Keep a line, and drop one if there are too many."""
        kept = {name: plain(value, _MAX_CHARS, _MAX_ITEMS) for name, value in fields.items()}
        line = {"time": round(at, 3), "level": level, "message": message[:_MAX_CHARS], "fields": kept}
        with self._lock:
            self._number += 1
            self._lines[self._number] = {"number": self._number, **line}
            self._of_client.add(str(kept.get("client", "")), self._number)
            if len(self._lines) > self._most:
                client, oldest = self._of_client.first_out()
                self._of_client.remove(client, oldest)
                del self._lines[oldest]

    def describe(self, asked: Logs) -> dict[str, Any]:
        """The lines that were asked for, the oldest first.

        Returns:
            ``lines``; ``newest``, to send as ``after`` with the next request; ``lost``, the number of lines behind
            ``after`` that had been dropped before this request.
        """
        with self._lock:
            lines, newest = list(self._lines.values()), self._number
        following = asked.after is not UNSET
        after = asked.after if asked.after is not UNSET else 0
        lines = [line for line in lines if line["number"] > after]
        lost = max(0, newest - after - len(lines)) if following else 0
        wanted = [line for line in lines if _matches(line, asked)]
        if following and len(wanted) > asked.limit:
            wanted = wanted[: asked.limit]
            newest = wanted[-1]["number"] if wanted else after
        # Without ``after`` the last lines are wanted, so it is the first that don't fit.
        found: list[dict[str, Any]] = []
        room = _MAX_ANSWER
        for line in wanted if following else reversed(wanted[max(0, len(wanted) - asked.limit) :]):
            room -= len(line["message"]) + sum(len(str(value)) for value in line["fields"].values())
            if room < 0 and found:
                newest = found[-1]["number"] if following else newest
                break
            found.append(line)
        return {"lines": found if following else found[::-1], "newest": newest, "lost": lost}


def _matches(line: dict[str, Any], asked: Logs) -> bool:
    fields = line["fields"]
    if RANK[line["level"]] < RANK[asked.level]:
        return False
    if asked.worker is not UNSET and asked.worker not in (fields.get("worker"), fields.get("replaces")):
        return False
    return asked.job is UNSET or fields.get("job") == asked.job
