"""Lines out of what a worker prints: capped, decoded and limited, so that no engine can flood the log. No I/O."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_Level = Literal["debug", "info", "warning", "error"]

#: What stands in front of a line of which worker_words.py says what level it is of, and about which job: priorities are
#: those of sd-daemon(3).
_PREFIX = re.compile(r"<([0-7])>(?:\[job ([\w-]{1,64})\] )?")
_LEVELS: dict[str, _Level] = {**dict.fromkeys("0123", "error"), "4": "warning", "5": "info", "6": "info", "7": "debug"}


class Understood(NamedTuple):
    """A line that a worker has printed; ``job`` is ``""`` where the line does not say which it is about."""

    level: _Level
    job: str
    words: str


def understood(line: str, *, by_default: _Level) -> Understood:
    """Take a line apart; ``by_default`` is the level of one that has none."""
    match = _PREFIX.match(line)
    if match is None:
        return Understood(by_default, "", line)
    return Understood(_LEVELS[match[1]], match[2] or "", line[match.end() :])


class WorkerOutput:
    """Fed with chunks of a worker's stdout or stderr, gives the lines to log.

    A line is cut after ``max_line`` bytes. At most ``burst`` lines at once and ``rate`` lines a second pass; the others
    are counted, and ``"1234 lines left out"`` comes in their place as soon as lines pass again.
    """

    def __init__(self, *, max_line: int = 4_096, burst: int = 200, rate: float = 50.0) -> None:
        self._max_line = max_line
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._filled: float | None = None
        self._partial = bytearray()
        self._cut = 0
        self._left_out = 0

    def feed(self, chunk: bytes, now: float) -> list[str]:
        """The lines that ``chunk`` completes; ``now`` in seconds of any steady clock. An empty chunk is fine."""
        lines: list[str] = []
        self._refill(now)
        self._report(lines)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._append(chunk, start, end)
            self._complete(lines)
            start = end + 1
            if self._tokens < 1:
                # A flood: count what can't pass anyway, without touching every line.
                last = chunk.rfind(b"\n", start)
                if last >= 0:
                    self._left_out += chunk.count(b"\n", start, last + 1)
                    start = last + 1
        self._append(chunk, start, len(chunk))
        return lines

    def end(self, now: float) -> list[str]:
        """What is left when the worker has closed its output: a last line without a newline, the count of the rest."""
        self._refill(now)
        lines: list[str] = []
        if self._partial:
            self._complete(lines)
        self._tokens = max(self._tokens, 1.0)
        self._report(lines)
        return lines

    def _append(self, chunk: bytes, start: int, end: int) -> None:
        room = self._max_line - len(self._partial)
        self._partial += chunk[start : min(end, start + room)]
        self._cut += max(0, end - start - room)

    def _complete(self, lines: list[str]) -> None:
        # Of a progress bar that redraws itself with carriage returns, the last drawing is the line.
        line = bytes(self._partial).rstrip(b"\r").rpartition(b"\r")[2]
        cut, self._cut = self._cut, 0
        self._partial.clear()
        if not line.strip() and not cut:
            return
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
        text = line.decode("utf-8", "replace")
        lines.append(f"{text.rstrip(chr(0xFFFD))}... ({cut} bytes left out)" if cut else text)

    def _refill(self, now: float) -> None:
        if self._filled is not None:
            self._tokens = min(float(self._burst), self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = now

    def _report(self, lines: list[str]) -> None:
        if self._left_out and self._tokens >= 1:
            self._tokens -= 1
            lines.append(f"{self._left_out} lines left out")
            self._left_out = 0
