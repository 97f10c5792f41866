"""The lines that a worker prints: decoded, cut and rate-limited, so that no engine can flood the log. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from glmtts.protocol.control import LogLevel

#: The prefix that worker/log.py gives a line: its priority, as in sd-daemon(3), and the job that it is about.
_PREFIX = re.compile(r"<([0-7])>(?:\[job ([\w-]{1,64})\] )?")
_LEVELS: dict[str, LogLevel] = {
    **dict.fromkeys("0123", "error"),
    "4": "warning",
    **dict.fromkeys("56", "info"),
    "7": "debug",
}


class Understood(NamedTuple):
    """A line that a worker has printed; ``job`` is ``""`` where the line names none."""

    level: LogLevel
    job: str
    words: str


def understood(line: str, *, by_default: LogLevel) -> Understood:
    """Split a line into its parts; ``by_default`` is the level of a line without one."""
    match = _PREFIX.match(line)
    if match is None:
        return Understood(by_default, "", line)
    return Understood(_LEVELS[match[1]], match[2] or "", line[match.end() :])


class WorkerOutput:
    """Turns chunks of a worker's stdout or stderr into lines for the log.

    A line is cut after ``max_line`` bytes. At most ``burst`` lines at once and ``rate`` lines a second pass; the others
    are counted, and ``"1234 lines left out"`` replaces them as soon as lines pass again.
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
        """The lines that ``chunk``, which may be empty, completes; ``now`` is in seconds of any monotonic clock."""
        lines: list[str] = []
        self._refill(now)
        self._report(lines)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._append(chunk, start, end)
            self._complete(lines)
            start = end + 1
            if self._tokens < 1:
                # A flood: count the lines that can't pass, without touching each.
                last = chunk.rfind(b"\n", start)
                if last >= 0:
                    self._left_out += chunk.count(b"\n", start, last + 1)
                    start = last + 1
        self._append(chunk, start, len(chunk))
        return lines

    def end(self, now: float) -> list[str]:
        """The lines that remain once the worker has closed its output: one without a newline, and the count."""
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
