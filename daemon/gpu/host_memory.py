"""How much memory the machine has left, or the control group that the daemon runs in where that has less.

The kernel ends processes when a control group is full, however much the machine has. Version 2 of control groups is
read (``memory.max``), and version 1 (``memory.limit_in_bytes``), with the limits of all groups above as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: Version 1 says "no limit" as the largest number of pages.
_NO_LIMIT = 1 << 60
#: How often it is looked whether a group has got a limit.
_LOOK_S = 30.0


class _Files(NamedTuple):
    """Names of what is read, per version."""

    limit: str
    usage: str
    #: Page cache that the kernel drops before it ends a process; it counts as usage, and is as good as free.
    cache: bytes


_V2 = _Files("memory.max", "memory.current", b"inactive_file")
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file")


class HostMemory:
    """Reads it again and again."""

    def __init__(self, clock: Callable[[], float], *, proc: Path = Path("/proc/self")) -> None:
        self._clock = clock
        self._proc = proc
        self._limited: list[tuple[Path, _Files]] = []
        self._look_at = float("-inf")

    def read(self) -> tuple[int, int]:
        """Total and available bytes of the machine, or of the control group that leaves less."""
        least = _machine()
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._limited = [(folder, files) for folder, files in _groups(self._proc) if _limit(folder, files)]
        for folder, files in self._limited:
            limit = _limit(folder, files)
            if limit is not None:
                available = _available(folder, files, limit)
                if available is not None and available < least[1]:
                    least = (limit, available)
        return least


def _machine() -> tuple[int, int]:
    """Total and available bytes, from the first lines of /proc/meminfo: a third of what psutil takes for all of it."""
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


def _groups(proc: Path) -> list[tuple[Path, _Files]]:
    """Folders of the process's own control group and of those above it, as far as they are to be seen from here."""
    try:
        lines = (proc / "cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            files, kind, controller = _V2, "cgroup2", ""
        elif "memory" in controllers.split(","):
            files, kind, controller = _V1, "cgroup", "memory"
        else:
            continue
        for root, mount in _mounts(mounts, kind, controller):
            if not Path(path).is_relative_to(root):
                # A container that sees only its own part, with the machine's path in /proc: the mount is its group.
                path = root
            folder = mount / Path(path).relative_to(root)
            while True:
                found.append((folder, files))
                if folder in (mount, folder.parent):
                    break
                folder = folder.parent
            break
    return found


def _mounts(lines: list[str], kind: str, controller: str) -> list[tuple[str, Path]]:
    """Where control groups of a kind are mounted: the group that is the root of the mount, and the folder."""
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, (type_, _, options) = left.split(" "), [*right.split(" "), "", "", ""][:3]
        if type_ == kind and len(fields) > 4 and (not controller or controller in options.split(",")):
            found.append((_unescaped(fields[3]), Path(_unescaped(fields[4]))))
    return found


def _unescaped(path: str) -> str:
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path
