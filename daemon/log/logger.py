"""The daemon's log: one line per fact, as text for people or JSON for collectors, written by a thread of its own.

The loop must not wait for a slow terminal or a full pipe: what the bounded queue can't take is counted, and the count
is logged when there is room again. :mod:`.worker_output` makes log lines of what workers print.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import threading
import time
from typing import Any, Literal

from .recent import KeptLines
from .worker_output import WorkerOutput

__all__ = ["Format", "Level", "Logger", "WorkerOutput", "escaped", "is_journal", "json_line", "text_line", "timestamp"]

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

_RANK: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

#: Priorities of syslog(3), which systemd reads in front of a line (sd-daemon(3)).
_PRIORITY: dict[str, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}

#: A value is cut after that many characters: nothing that a peer sends makes a line without an end.
_MAX_VALUE = 8_192

#: How long the thread lets lines gather after it has written some, in seconds, and which lines are not kept so long.
_NAP_S = 0.05
_URGENT = frozenset({"warning", "error"})

_Record = tuple[float, Level, str, dict[str, Any]]


class Logger:
    """Writes to the file descriptor ``fd`` until :meth:`close`; every method may be called from any thread, and from a
    signal handler.

    ``kept`` has the last ``keep`` lines, whoever reads the descriptor. ``journal``: put priorities in front and leave
    the time out, as systemd's journal likes it; None finds out.
    """

    def __init__(
        self,
        level: Level = "info",
        format: Format = "text",
        *,
        fd: int = 2,
        journal: bool | None = None,
        capacity: int = 2_048,
        keep: int = 2_000,
    ) -> None:
        self._rank = _RANK[level]
        self._level: Level = level
        self._fd = fd
        self._format: Format = format
        self._journal = is_journal(fd) if journal is None else journal
        self._capacity = capacity
        self.kept = KeptLines(keep)
        # SimpleQueue.put may be called while the same thread is inside it, which a signal handler does; Queue.put not.
        self._records: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._dropped = 0
        self._reported = 0
        self._counting = threading.RLock()
        self._closed = False
        self._wake = threading.Event()
        self._napping = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @property
    def level(self) -> Level:
        """The level that is logged from; it may be set at any time."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._rank, self._level = _RANK[level], level

    @property
    def format(self) -> Format:
        """Text or JSON; it may be set at any time."""
        return self._format

    @format.setter
    def format(self, format: Format) -> None:
        self._format = format

    @property
    def in_journal(self) -> bool:
        """Whether systemd's journal has the lines."""
        return self._journal

    @property
    def dropped(self) -> int:
        """How many lines were lost because nobody read fast enough."""
        return self._dropped

    def enabled(self, level: Level) -> bool:
        """Whether a line of this level is written: to save the making of costly fields."""
        return _RANK[level] >= self._rank

    def debug(self, message: str, /, **fields: Any) -> None:
        """What helps to follow one job."""
        if self._rank <= 10:
            self._put("debug", message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """What an operator wants to find later."""
        if self._rank <= 20:
            self._put("info", message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        """What went wrong and was put right."""
        if self._rank <= 30:
            self._put("warning", message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """What went wrong and stays so."""
        if self._rank <= 40:
            self._put("error", message, fields)

    def log(self, level: Level, message: str, /, **fields: Any) -> None:
        """A line of a level that is only known now."""
        if _RANK[level] >= self._rank:
            self._put(level, message, fields)

    def exception(self, message: str, error: BaseException, /, **fields: Any) -> None:
        """A mistake of our own, with its traceback in one field.

        The words of an exception may hold what somebody has said: they are logged at debug level alone, unless they are
        the system's (``strerror``).
        """
        import traceback

        whole = self._rank <= _RANK["debug"]
        told = "".join(traceback.format_exception(error)) if whole else _without_words(error)
        fields["traceback"] = told[-_MAX_VALUE:]
        self._put("error", message, fields)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write what is queued, for at most ``timeout_s``; whether all of it was written."""
        if not self._closed:
            self._closed = True
            self._records.put(None)
            self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        if self._closed or self._records.qsize() >= self._capacity:
            with self._counting:
                self._dropped += 1
            return
        self._records.put((time.time(), level, message, fields))
        if not self._napping or level in _URGENT:
            self._wake.set()

    # --- in the thread

    def _write(self) -> None:
        ended = False
        while not ended:
            self._wake.wait()
            self._wake.clear()
            while lines := self._batch():
                ended = lines[-1] is None
                self._write_all(b"".join(line for line in lines if line))
            self._report_dropped()
            if not ended:
                # Lines that come one after the other are written together: waking this thread for each of them would
                # cost the loop more than the lines themselves.
                self._napping = True
                self._wake.wait(_NAP_S)
                self._napping = False
                if not self._records.empty():
                    self._wake.set()

    def _batch(self) -> list[bytes | None]:
        """Some of the lines that wait; None ends them for good."""
        lines: list[bytes | None] = []
        with contextlib.suppress(queue.Empty):
            while len(lines) < 64:
                record = self._records.get_nowait()
                if record is None:
                    return [*lines, None]
                self.kept.add(*record)
                lines.append(self._line(record))
        return lines

    def _report_dropped(self) -> None:
        dropped = self._dropped
        if dropped > self._reported:
            lost, self._reported = dropped - self._reported, dropped
            fields = {"lines": lost}
            self._write_all(self._line((time.time(), "warning", "log lines lost: the log is read too slowly", fields)))

    def _line(self, record: _Record) -> bytes:
        at, level, message, fields = record
        try:
            line = json_line(*record) if self._format == "json" else text_line(*record, with_time=not self._journal)
        except Exception as error:
            # A field whose str() raises must cost its line, not the log.
            line = text_line(at, level, message, {"unprintable": f"{type(error).__name__}, {len(fields)} fields"})
        prefix = f"<{_PRIORITY[level]}>" if self._journal else ""
        return f"{prefix}{line}\n".encode("utf-8", "backslashreplace")

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError:
                # Nobody is left to tell.
                return


def _without_words(error: BaseException | None) -> str:
    """The traceback of an exception and of those that led to it, with their types."""
    import traceback

    told: list[str] = []
    while error is not None:
        words = getattr(error, "strerror", None)
        last = f"{type(error).__qualname__}: {words}" if words else type(error).__qualname__
        told.append("".join(traceback.format_tb(error.__traceback__)) + last)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nand then\n\n".join(reversed(told))


def is_journal(fd: int) -> bool:
    """Whether ``fd`` is the connection to systemd's journal that ``JOURNAL_STREAM`` names (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        status = os.fstat(fd)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def timestamp(at: float) -> str:
    """``at`` (seconds since 1970) in UTC as ISO 8601 with milliseconds."""
    milliseconds = int(at * 1_000)
    seconds, rest = divmod(milliseconds, 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:03d}Z"


def text_line(at: float, level: Level, message: str, fields: dict[str, Any], *, with_time: bool = True) -> str:
    """``TIME LEVEL message key=value ...``, without a newline anywhere in it."""
    parts = [timestamp(at)] if with_time else []
    parts += [level.upper(), escaped(_cut(message))]
    parts += [f"{name}={_text_value(value)}" for name, value in fields.items()]
    return " ".join(parts)


def json_line(at: float, level: Level, message: str, fields: dict[str, Any]) -> str:
    """One JSON object in ASCII; a field that is called like one of the line's own gets an underscore."""
    line: dict[str, Any] = {"time": timestamp(at), "level": level, "message": _cut(message)}
    for name, value in fields.items():
        line[f"{name}_" if name in line else name] = _json_value(value)
    return json.dumps(line, default=str, separators=(",", ":"))


def escaped(text: str) -> str:
    """``text`` with everything that could forge a line, or steer a terminal, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _hex(c) for c in text)


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _hex(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _text_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    text = _cut(str(value))
    if text and text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no NaN and no infinity.
        return value if value - value == 0 else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_value(item) for item in list(value)[:100]]
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in list(value.items())[:100]}
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}... ({len(text) - _MAX_VALUE} more characters)"
