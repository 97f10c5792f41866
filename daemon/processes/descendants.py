"""What workers have started, and have left behind at their end: the daemon becomes its parent, ends it, and reaps it.

A kill of the worker's process group misses children that have left it. A snapshot of the tree before the kill misses
those that are made meanwhile, and all of them when the worker crashes by itself. So the daemon is a *subreaper*
(``PR_SET_CHILD_SUBREAPER``, prctl(2)): at a worker's death the kernel makes every child of it a child of the daemon.
Then they are found without a look at all of /proc, and can't be mistaken for anybody else: the pid of a child stays its
own until we have reaped it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Collection, Mapping

from . import guardian

_PR_SET_CHILD_SUBREAPER = 36

#: The children of a thread; a kernel without CONFIG_PROC_CHILDREN has no such file.
_CHILDREN = "/proc/{0}/task/{0}/children"

#: A worker that has left a fork bomb takes no more of the loop at one time than that; each death brings the next look.
_MAX_AT_ONCE = 200


def adopt(*, on: bool = True) -> None:
    """From now on this process becomes the parent of what its descendants leave behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def children() -> list[int]:
    """The children that this process's main thread has started or adopted; what is adopted is always that thread's."""
    own = os.getpid()
    try:
        with open(_CHILDREN.format(own), "rb") as file:  # noqa: PTH123 (half the time)
            return [int(pid) for pid in file.read().split()]
    except OSError:
        everybody = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
        return [pid for pid in everybody if (about := guardian.stat(pid)) is not None and about.parent == own]


class Descendants:
    """The adopted processes, apart from the daemon's own children."""

    def __init__(self, incarnation_of: Callable[[str], int | None]) -> None:
        """``spawn_of``: the spawn that a boot token was made for, None if it is not one of this daemon's."""
        self._incarnation_of = incarnation_of
        own = guardian.stat(os.getpid())
        self._session = own.session if own is not None else 0
        self._not_before = own.started if own is not None else 0

    def tidy(self, own: Collection[int | None], living: Mapping[int, tuple[int, int]], *, all: bool = False) -> int:
        """Reap adopted processes that have ended, and kill those whose worker has. Never waits.

        ``own``: children that somebody else reaps. ``living``: the workers that live, as pid -> (start time, spawn).
        ``all``: the daemon ends, and nothing of a worker may stay. Returns how many are still to be reaped.
        """
        left = 0
        for pid in children():
            if pid in own:
                continue
            about = guardian.stat(pid)
            # What the daemon has started beside workers is in its session; what comes of a worker never is.
            if about is None or about.session == self._session:
                continue
            if about.gone:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                continue
            if left < _MAX_AT_ONCE and self._is_left_behind(pid, about, living, all=all):
                left += 1
                self._kill(pid, about)
        return left

    def _is_left_behind(
        self, pid: int, about: guardian.Stat, living: Mapping[int, tuple[int, int]], *, all: bool
    ) -> bool:
        """Whether the worker that it comes of is dead: a living one's child becomes ours too, if its parent ends."""
        if about.started < self._not_before:
            return False
        # The first process of a container is given everybody's orphans: there the token alone counts.
        is_init = os.getpid() == 1
        if not is_init and (all or not any(started <= about.started for started, _ in living.values())):
            return True
        # Its worker's session says it; its environment does, but not while reading that could wait.
        if about.session in living or about.state == "D":
            return False
        incarnation = self._incarnation_of(guardian.boot_of(pid))
        return incarnation is not None and (
            all or incarnation not in {incarnation for _, incarnation in living.values()}
        )

    @staticmethod
    def _kill(pid: int, about: guardian.Stat) -> None:
        # Our child, not reaped yet: neither its pid nor its group's can be anybody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if about.group == pid:
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
