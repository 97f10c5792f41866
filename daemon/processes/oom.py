"""Tells an out-of-memory kill by the kernel from any other SIGKILL of a worker.

The kernel counts its victims per control group: in ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1),
whichever limit was reached: the group's own, a parent's or the machine's. Without a group, ``/proc/vmstat`` counts
those of the whole machine. The kernel counts before it kills, so the count has grown by the time the death is seen.
"""

from __future__ import annotations

import os
from pathlib import Path


class OomKills:
    """Reads the kernel's count of out-of-memory kills for the control group of this process and its workers."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = -1
        #: The file that is read; None where there is none.
        self.source: Path | None = None
        for path in _candidates(proc):
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            if self.count() is not None:
                self.source = path
                return
            self.close()

    def count(self) -> int | None:
        """The count so far; None on systems without one."""
        if self._file < 0:
            return None
        try:
            text = os.pread(self._file, 1 << 16, 0)
        except OSError:
            return None
        for line in text.splitlines():
            name, _, value = line.partition(b" ")
            if name == b"oom_kill" and value.isdigit():
                return int(value)
        return None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _candidates(proc: Path) -> list[Path]:
    """The files that may have the count, the nearest first."""
    v2: list[Path] = []
    v1: list[Path] = []
    try:
        mounts = [line.split(" ") for line in (proc / "self/mountinfo").read_text().splitlines()]
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        mounts, groups = [], []
    for fields in mounts:
        if "-" not in fields[6:] or len(fields) < fields.index("-", 6) + 4:
            continue
        kind, _, options = fields[fields.index("-", 6) + 1 :][:3]
        root, point = fields[3], Path(fields[4].replace("\\040", " "))
        for _, controllers, group in (g for g in groups if len(g) == 3):
            if kind == "cgroup2" and not controllers:
                v2 += [folder / "memory.events" for folder in _folders(point, root, group)]
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                v1 += [folder / "memory.oom_control" for folder in _folders(point, root, group)]
    return [*v2, *v1, proc / "vmstat"]


def _folders(point: Path, root: str, group: str) -> list[Path]:
    """Where a group's folder may be: a container sees a part of the tree, but /proc may show the path on the host."""
    inside = group.removeprefix(root) if root != "/" else group
    folder = point / inside.lstrip("/")
    return [folder] if folder == point else [folder, point]
