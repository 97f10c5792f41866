"""Ends every process that carries a daemon's boot token. Run as a script, it waits for that daemon's end first.

Each daemon makes a token when it starts, and each worker gets it in its environment (``GLMTTS_BOOT``); the worker's
children inherit it. The kernel keeps the environment that a process was started with, so the token also finds children
that have left their worker's group and session. The lifeline (lifeline.py) can't reach those.

The guardian is a separate process because it has to outlive a SIGKILL of the daemon. It sleeps until the daemon, the
only writer of its pipe, is gone, ends the processes that carry the token, and exits. It gets nothing but that pipe,
imports no other module of this package, and needs no installed package: ``python -I -S guardian.py``.

It can't find a process that has cleared or overwritten its environment (setproctitle does), has left its worker's
group, and has no living parent. While the daemon lives, it finds that one too (descendants.py); afterwards only a
service manager that kills the whole control group does.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable

#: Token of the daemon, a dot, and the number of the incarnation.
VARIABLE = "GLMTTS_BOOT"

#: Time between two scans: a child that was being forked during the first appears in the second.
_PAUSE_S = 0.02
#: Scans in a row that must find no process before the sweep ends.
_QUIET_SCANS = 3
#: The guardian's longest wait for processes that can't be killed.
_PATIENCE_S = 30.0


class Stat:
    """The fields of /proc/PID/stat. Unlike ``environ`` and ``cmdline``, that file never blocks its reader."""

    __slots__ = ("group", "parent", "session", "started", "state")

    def __init__(self, text: bytes) -> None:
        fields = text[text.rindex(b")") + 2 :].split(None, 20)
        self.state = fields[0].decode()
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        #: In clock ticks since the machine's start: with the pid, it names a process for as long as the kernel runs.
        self.started = int(fields[19])

    @property
    def gone(self) -> bool:
        return self.state in "ZXx"


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(descriptor, 1 << 20):
            chunks.append(chunk)
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def stat(pid: int) -> Stat | None:
    """The state of a process; None when there is none."""
    try:
        return Stat(_read(f"/proc/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return None


def boot_of(pid: int) -> str:
    """The ``GLMTTS_BOOT`` that a process was started with; empty when it has none or may not be read.

    Reading it can block on a process that is stuck in the kernel with its memory map locked.
    """
    try:
        environment = b"\0" + _read(f"/proc/{pid}/environ")
    except OSError:
        return ""
    _, found, rest = environment.partition(f"\0{VARIABLE}=".encode())
    return rest.partition(b"\0")[0].decode(errors="replace") if found else ""


def find(tokens: Iterable[str], not_before: int = 0) -> dict[int, Stat]:
    """The processes that carry one of the tokens, and their descendants: of our user, in our pid namespace.

    Leaves out this process, its ancestors, and processes started before ``not_before`` (in clock ticks): the
    descendants of a daemon are younger than the daemon.
    """
    wanted = set(tokens)
    namespace, user = os.readlink("/proc/self/ns/pid"), os.geteuid()  # noqa: PTH115 (pathlib is heavy)
    processes: dict[int, Stat] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (ten times as fast, and there may be thousands)
        if name.isdigit() and (about := stat(int(name))) is not None:
            processes[int(name)] = about
    spared = _line_of(os.getpid(), processes)

    def ours(pid: int, about: Stat) -> bool:
        # Kernel threads have no memory; processes of other users are never touched.
        if pid in spared or about.gone or about.started < not_before:
            return False
        try:
            return os.stat(f"/proc/{pid}").st_uid == user  # noqa: PTH116
        except OSError:
            return False

    found = {}
    # Processes stuck in the kernel come last: reading their environment may block the scan.
    for pid, about in sorted(processes.items(), key=lambda entry: entry[1].state == "D"):
        if ours(pid, about) and boot_of(pid).partition(".")[0] in wanted and _same_namespace(pid, namespace):
            found[pid] = about
    children: dict[int, list[int]] = {}
    for pid, about in processes.items():
        children.setdefault(about.parent, []).append(pid)
    waiting = list(found)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found and ours(pid, processes[pid]) and _same_namespace(pid, namespace):
                found[pid] = processes[pid]
                waiting.append(pid)
    return found


def _line_of(pid: int, processes: dict[int, Stat]) -> set[int]:
    """A process and its ancestors."""
    line = set()
    while pid in processes and pid not in line:
        line.add(pid)
        pid = processes[pid].parent
    return line


def _same_namespace(pid: int, namespace: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == namespace  # noqa: PTH115
    except OSError:
        return False


def end(found: dict[int, Stat]) -> dict[int, int]:
    """Send SIGKILL to these processes; returns a pidfd of each that still existed, to be closed by the caller.

    Without pidfds (an older kernel, a strict seccomp profile) it returns none, and the next scan sees who is left.
    """
    descriptors = {}
    for pid, about in found.items():
        descriptor = _pidfd(pid)
        # From here on the pidfd refers to this process, even if its pid is reused.
        now = stat(pid)
        if now is None or now.started != about.started:
            if descriptor is not None:
                os.close(descriptor)
            continue
        if descriptor is not None:
            descriptors[pid] = descriptor
        try:
            if now.group == pid:
                os.killpg(pid, signal.SIGKILL)
            _kill(pid, descriptor)
        except (ProcessLookupError, PermissionError):
            pass
    return descriptors


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _kill(pid: int, descriptor: int | None) -> None:
    try:
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        pass
    os.kill(pid, signal.SIGKILL)


def sweep(tokens: Iterable[str], patience_s: float, not_before: int = 0) -> tuple[dict[int, Stat], dict[int, Stat]]:
    """End every process that carries one of the tokens, and wait for its end.

    Returns the processes that were found, and those still there after ``patience_s``: they can't be killed now.
    """
    deadline = time.monotonic() + patience_s
    wanted = list(tokens)
    everything: dict[int, Stat] = {}
    quiet = 0
    while True:
        found = find(wanted, not_before)
        everything |= found
        # One scan without a find is enough at a start: the predecessor's guardian has swept already.
        quiet = quiet + 1 if not found else 0
        if quiet >= (_QUIET_SCANS if everything else 1):
            return everything, {}
        wait_gone(end(found), deadline)
        if time.monotonic() >= deadline:
            return everything, find(wanted, not_before)
        time.sleep(_PAUSE_S)


def wait_gone(descriptors: dict[int, int], deadline: float) -> None:
    """Wait until the processes of these pidfds are gone, all at once, and close the descriptors."""
    poll = select.poll()
    for descriptor in descriptors.values():
        poll.register(descriptor, select.POLLIN)
    left = set(descriptors.values())
    while left and (wait_s := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(wait_s * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)
    for descriptor in descriptors.values():
        os.close(descriptor)


def main() -> None:
    """Read the token from stdin, wait for the end of the daemon (end of file), and end the processes of the token."""
    # Only the daemon's end counts; a service manager sends its signals to every process of the service.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    read = b""
    while chunk := os.read(0, 4096):
        read += chunk
    token = read.decode(errors="replace").strip()
    if not token:
        return
    deadline = time.monotonic() + _PATIENCE_S
    # Twice: a worker that was being started when the daemon died may not have had its environment yet.
    for _ in range(2):
        sweep([token], max(0.0, deadline - time.monotonic()))
        time.sleep(5 * _PAUSE_S)


if __name__ == "__main__":
    main()
