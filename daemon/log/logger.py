"""The daemon's log: one line per fact, written by a thread of its own.

A slow terminal or a full pipe never blocks the loop: a line that the bounded queue can't take is counted, and the count
is logged once there is room. Not on :mod:`logging`: its records and its queue listener took ten times as long in the
calling thread (10.6 us a line instead of 1.1), because each line wakes the other thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import stat
import threading
import time
from pathlib import Path
from typing import Any, Literal

from glmtts.protocol.control import LogLevel

from .format import RANK, json_line, quiet_traceback_of, text_line, traceback_of
from .recent import RecentLines

Format = Literal["text", "json"]

#: Priorities of syslog(3), which systemd reads in front of a line (sd-daemon(3)).
_PRIORITY: dict[LogLevel, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}

#: How long the thread lets lines gather after it has written some, in seconds, and which lines are written at once.
_GATHER_S = 0.05
_URGENT = frozenset({"warning", "error"})
_BATCH = 64

_Record = tuple[float, LogLevel, str, dict[str, Any]]


class Logger:
    """Writes lines to a file descriptor until it is closed. Every method may be called from any thread.

    ``level`` and ``format`` may be set at any time. ``recent`` has the last lines, and ``dropped`` counts the lines
    that were lost because the descriptor was read too slowly, or could not be written to.
    """

    def __init__(
        self,
        level: LogLevel = "info",
        format: Format = "text",
        *,
        fd: int = 2,
        journal: bool | None = None,
        capacity: int = 2_048,
        keep: int = 2_000,
    ) -> None:
        """Start the thread.

        Args:
            journal: whether ``fd`` leads to systemd's journal, which wants priorities and no time; None finds out.
            capacity: lines that may wait to be written.
            keep: lines that ``recent`` holds.
        """
        self.level: LogLevel = level
        self.format: Format = format
        self.in_journal = is_journal(fd) if journal is None else journal
        self.recent = RecentLines(keep)
        self.dropped = 0
        self._reported = 0
        #: Lines that could not be written since the last one that was, and why.
        self._unwritten, self._reason = 0, ""
        self._fd = fd
        self._capacity = capacity
        self._closed = False
        self._counting = threading.Lock()
        self._records: queue.SimpleQueue[_Record | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def enabled(self, level: LogLevel) -> bool:
        """Whether a line of this level is written: saves the making of costly fields."""
        return RANK[level] >= RANK[self.level]

    def log(self, level: LogLevel, message: str, /, **fields: Any) -> None:
        """Log a line of a level that is only known at run time."""
        self._put(level, message, fields)

    def debug(self, message: str, /, **fields: Any) -> None:
        """Log a detail that helps to follow a single job."""
        self._put("debug", message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """Log a fact that an operator may look for later."""
        self._put("info", message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        """Log a problem that the daemon has dealt with."""
        self._put("warning", message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """Log a problem that persists."""
        self._put("error", message, fields)

    def exception(self, message: str, error: BaseException, /, **fields: Any) -> None:
        """Log a bug with its traceback; the exception's message, which may quote a client, at debug level alone."""
        fields["traceback"] = traceback_of(error) if self.enabled("debug") else quiet_traceback_of(error)
        self._put("error", message, fields)

    def restore(self) -> str:
        """Make the log's file again if it was removed, or take the one that is in its place; returns why it can't be.

        Where the log is no file, as with systemd, there is nothing to do.
        """
        try:
            about = os.fstat(self._fd)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink:
                return ""
            # The kernel marks the name of a removed file.
            name = str(Path(f"/proc/self/fd/{self._fd}").readlink()).removesuffix(" (deleted)")
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, stat.S_IMODE(about.st_mode))
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
                    return f"the log's file {name} was removed, and there is something else: remove that"
                os.set_blocking(fd, True)
                os.dup2(fd, self._fd, inheritable=self._fd <= 2)
            finally:
                os.close(fd)
        except OSError as error:
            reason = error.strerror or str(error)
            return f"the log's file was removed and can't be made again ({reason}): 'glmttsctl logs' has the last lines"
        self.warning("the log's file was removed, and is made again", file=name)
        return ""

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write the lines that wait, for at most ``timeout_s``; returns whether all were written."""
        if not self._closed:
            self._closed = True
            self._records.put(None)
            self._hurry.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, level: LogLevel, message: str, fields: dict[str, Any]) -> None:
        if RANK[level] < RANK[self.level]:
            return
        if self._closed or self._records.qsize() >= self._capacity:
            with self._counting:
                self.dropped += 1
            return
        self._records.put((time.time(), level, message, fields))
        if level in _URGENT:
            self._hurry.set()

    # --- in the thread

    def _run(self) -> None:
        open = True
        while open:
            records = [self._records.get()]
            self._hurry.clear()
            with contextlib.suppress(queue.Empty):
                while records[-1] is not None and len(records) < _BATCH:
                    records.append(self._records.get_nowait())
            open = records[-1] is not None
            lines = [self._line(record) for record in records if record is not None]
            if (lost := self.dropped - self._reported) and (not open or self._records.empty()):
                self._reported += lost
                message = "log lines lost: the log is read too slowly"
                lines.append(self._line((time.time(), "warning", message, {"lines": lost})))
            if unwritten := self._unwritten:
                message = "log lines lost: they could not be written"
                fields = {"lines": unwritten, "reason": self._reason}
                lines.append(self._line((time.time(), "warning", message, fields)))
            if self._write(b"".join(lines)):
                self._unwritten -= unwritten
            else:
                new = len(records) - (not open)
                self._unwritten += new
                with self._counting:
                    self.dropped += new
                self._reported += new
            if open and self._records.empty():
                # Waking this thread for each line would cost the loop more than the line itself.
                self._hurry.wait(_GATHER_S)

    def _line(self, record: _Record) -> bytes:
        self.recent.add(*record)
        line = json_line(*record) if self.format == "json" else text_line(*record, with_time=not self.in_journal)
        prefix = f"<{_PRIORITY[record[1]]}>" if self.in_journal else ""
        return f"{prefix}{line}\n".encode("utf-8", "backslashreplace")

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError as error:
                # The disk is full, the reader is gone, or stderr is closed.
                self._reason = error.strerror or str(error)
                return False
        return True


def is_journal(fd: int) -> bool:
    """Whether ``fd`` is the connection to systemd's journal that ``JOURNAL_STREAM`` names (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        status = os.fstat(fd)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False
