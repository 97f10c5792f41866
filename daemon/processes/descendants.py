"""Processes that ended workers left behind: the daemon adopts them, ends them and reaps them.

A kill of the worker's process group misses children that have left the group. A snapshot of the tree before the kill
misses children that are forked meanwhile, and all of them when the worker crashes by itself. So the daemon is a
*subreaper* (``PR_SET_CHILD_SUBREAPER``, prctl(2)): when a worker dies, the kernel makes its children children of the
daemon. The daemon finds them without a scan of /proc and can't confuse them with other processes: the pid of a child is
not reused before the child is reaped.
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

#: Processes killed in one turn of the loop: a fork bomb must not block it. Each death starts the next turn.
_MAX_AT_ONCE = 200


def adopt(*, on: bool = True) -> None:
    """Make this process the subreaper of its descendants, or with ``on=False`` no longer. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(code := ctypes.get_errno(), os.strerror(code))


def children() -> list[int]:
    """The pids of the main thread's children; the kernel gives it every adopted one too."""
    own = os.getpid()
    try:
        with open(_CHILDREN.format(own), "rb") as file:  # noqa: PTH123 (half the time)
            return [int(pid) for pid in file.read().split()]
    except OSError:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
        return [pid for pid in pids if (about := guardian.stat(pid)) is not None and about.parent == own]


class Descendants:
    """Owns the adopted processes: each is reaped, and killed first if its worker has ended."""

    def __init__(self, incarnation_of: Callable[[str], int | None]) -> None:
        """``incarnation_of``: the incarnation that a boot token was made for; None for a token of another daemon."""
        self._incarnation_of = incarnation_of
        own = guardian.stat(os.getpid())
        self._session = own.session if own is not None else 0
        self._not_before = own.started if own is not None else 0

    def tidy(self, own: Collection[int | None], living: Mapping[int, tuple[int, int]], *, all: bool = False) -> int:
        """Reap adopted processes that have ended, and kill those whose worker has ended. Never waits.

        Args:
            own: Children that other code reaps.
            living: The living workers, as pid -> (start time in clock ticks, incarnation).
            all: Kill every descendant of a worker, because the daemon ends.

        Returns:
            The number of processes that were killed and not reaped yet.
        """
        left = 0
        for pid in children():
            if pid in own:
                continue
            about = guardian.stat(pid)
            # The daemon's other children are in its session; descendants of workers never are.
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
        """Whether its worker is dead. A grandchild of a living worker is adopted too, when its parent ends."""
        if about.started < self._not_before:
            return False
        # The first process of a container adopts every orphan there: only the token tells which are a worker's.
        is_init = os.getpid() == 1
        if not is_init and (all or not any(started <= about.started for started, _ in living.values())):
            return True
        # The session of a living worker proves it. The environment would too, but reading it can block in state D.
        if about.session in living or about.state == "D":
            return False
        incarnation = self._incarnation_of(guardian.boot_of(pid))
        return incarnation is not None and (
            all or incarnation not in {incarnation for _, incarnation in living.values()}
        )

    @staticmethod
    def _kill(pid: int, about: guardian.Stat) -> None:
        # A child that is not reaped keeps its pid and its group's id: the signal can't reach another process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if about.group == pid:
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
