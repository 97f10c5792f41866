"""A worker with the processes that it has started: their pids, and their memory together."""

from __future__ import annotations

import contextlib
import os
import resource
import time

_PAGE_BYTES = resource.getpagesize()
#: Indexes behind the name in /proc/PID/stat, where proc(5) counts from 3.
_STARTED, _RSS, _STACK = 22 - 3, 24 - 3, 28 - 3
#: Bytes by which a fork's size must change before its shared memory is measured again, which takes 10 ms.
_MOVED = 1 << 20
#: Seconds for which the list of descendants is kept.
_LISTED_S = 1.0


def descendants(pid: int) -> list[int]:
    """The living processes that ``pid`` and its children have started, without ``pid``; in the order of their birth.

    Empty on a kernel without CONFIG_PROC_CHILDREN.
    """
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children: list[int] = []
        with contextlib.suppress(OSError):
            # Of each thread, as each may start processes.
            for thread in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208 (pathlib takes twice the time)
                with contextlib.suppress(OSError):
                    children += map(int, _read(f"/proc/{parent}/task/{thread}/children").split())
        waiting += children
        found += children
    return sorted(found)


class ProcessTree:
    """Measures this process and its descendants. Owns the last measure of each that shares its memory with others."""

    def __init__(self) -> None:
        # Now, because a confined worker can't open it later; it has no children.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._pid = os.getpid()
        #: The descendants, and when they were last listed: that takes a read for each of their threads.
        self._descendants: list[int] = []
        self._listed_at = -_LISTED_S
        #: By pid: start time, resident bytes, and its part of them.
        self._parts: dict[int, tuple[bytes, int, int]] = {}

    def rss(self) -> int:
        """Resident bytes of all of them. Memory that a fork shares with others counts by its part (Pss)."""
        total = int(os.pread(self._statm, 128, 0).split()[1]) * _PAGE_BYTES
        if _has_no_child():
            return total
        if (now := time.monotonic()) - self._listed_at >= _LISTED_S:
            self._descendants, self._listed_at = descendants(self._pid), now
        stats = {pid: fields for pid in self._descendants if (fields := _stat(pid))}
        if not stats:
            return total
        stacks = [fields[_STACK] for fields in [_stat(self._pid), *stats.values()] if fields]
        parts = dict[int, tuple[bytes, int, int]]()
        for pid, fields in stats.items():
            rss = int(fields[_RSS]) * _PAGE_BYTES
            # Without an exec, a process has the address of its parent's first stack. 0: it may not be read.
            if fields[_STACK] == b"0" or stacks.count(fields[_STACK]) == 1:
                total += rss
                continue
            started, then, part = self._parts.get(pid, (b"", 0, 0))
            if started != fields[_STARTED] or abs(rss - then) >= _MOVED:
                then, part = rss, _pss(pid) or rss
            parts[pid] = (fields[_STARTED], then, part)
            total += part
        self._parts = parts
        return total


def _has_no_child() -> bool:
    """Whether this process has no child. Asked after each job: it takes 1 us, by way of /proc 35."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _stat(pid: int) -> list[bytes]:
    """The fields behind the name; none if the process is gone."""
    with contextlib.suppress(OSError):
        return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    return []


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 16_384)
    finally:
        os.close(fd)
