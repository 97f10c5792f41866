"""Available host memory: that of the machine, or of the daemon's control group where that has less.

The kernel kills processes when a control group is full, whatever the machine has left. Versions 1 and 2 of control
groups are read (``memory.limit_in_bytes``, ``memory.max``), with the limits of all parent groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

#: Version 1 writes "no limit" as the largest number of pages.
_NO_LIMIT = 1 << 60
#: How often the groups with a limit are looked up.
_LOOK_S = 30.0


class _Files(NamedTuple):
    """The files of a version of control groups."""

    limit: str
    usage: str
    #: Page cache counts as usage, though the kernel drops it before it kills a process.
    cache: bytes


_V2 = _Files("memory.max", "memory.current", b"inactive_file")
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file")


class HostMemory:
    """Owns the list of control groups with a limit, which is renewed now and then."""

    def __init__(
        self, clock: Callable[[], float], *, proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        """``proc`` is the folder of the process in /proc, ``cgroups`` where control groups are mounted."""
        self._clock = clock
        self._proc = proc
        self._cgroups = cgroups
        self._limited: list[tuple[Path, _Files]] = []
        self._look_at = float("-inf")

    def read(self) -> tuple[int, int]:
        """Total and available bytes of the machine, or of the control group that leaves less."""
        least = _machine()
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._limited = [group for group in _groups(self._proc, self._cgroups) if _limit(*group)]
        for folder, files in self._limited:
            limit = _limit(folder, files)
            if limit is not None:
                available = _available(folder, files, limit)
                if available is not None and available < least[1]:
                    least = (limit, available)
        return least


def _machine() -> tuple[int, int]:
    """Total and available bytes from the first lines of /proc/meminfo, in a third of the time of psutil."""
    fd = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(fd, 256).split(b"\n")
    finally:
        os.close(fd)
    figures = {line[: line.index(b":")]: int(line.split()[1]) << 10 for line in lines[:3]}
    return figures[b"MemTotal"], figures[b"MemAvailable"]


def _limit(folder: Path, files: _Files) -> int | None:
    try:
        words = (folder / files.limit).read_bytes()
        return int(words) if not words.startswith(b"max") and int(words) < _NO_LIMIT else None
    except (OSError, ValueError):
        return None


def _available(folder: Path, files: _Files, limit: int) -> int | None:
    try:
        usage = int((folder / files.usage).read_bytes())
        for line in (folder / "memory.stat").read_bytes().splitlines():
            name, _, value = line.partition(b" ")
            if name == files.cache:
                usage -= int(value)
                break
    except (OSError, ValueError):
        return None
    return min(limit, max(0, limit - usage))


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, _Files]]:
    """The folders of the process's control group and of its parents, as far as they are visible."""
    try:
        lines = (proc / "cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", _V1
        else:
            continue
        folder = root / path.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = root  # a container sees its own group there, and the machine's path in /proc
        yield folder, files
        while folder != root:
            folder = folder.parent
            yield folder, files
