"""Ends every process that carries a daemon's boot token. Run as a script, it waits for that daemon's end first.

Each daemon makes a token when it starts, and each worker gets it in its environment (``GLMTTS_BOOT``); whatever a
worker starts inherits it. The kernel keeps the environment that a process was started with, so the token finds the
children that have left their worker's group and session, which the lifeline (lifeline.py) can't reach.

The guardian is a process of its own because nothing else outlives a SIGKILL of the daemon: it sleeps until the pipe
that only the daemon can write to is closed, ends what carries the token, and goes. It is given nothing but that pipe,
imports nothing of ours, and needs no installed package: ``python -I -S guardian.py``.

What it can't find: a process that has cleared its environment or written over it (setproctitle does), has left its
worker's group, and whose parents are gone. As long as the daemon lives, that one is found too (descendants.py); after
it, only a service manager that kills the whole control group can.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable

#: Token of the daemon, a dot, and the number of the spawn.
VARIABLE = "GLMTTS_BOOT"

#: A first look may miss a child that is being made; between two looks it has the time to appear.
_PAUSE_S = 0.02
#: Looks that must find nobody before it is believed.
_QUIET_LOOKS = 3
#: The guardian does not wait for longer for what can't be killed: it would stay for ever.
_PATIENCE_S = 30.0


class Stat:
    """What /proc/PID/stat says. Unlike ``environ`` and ``cmdline`` it can always be read without waiting."""

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
    """How a process is; None when there is none."""
    try:
        return Stat(_read(f"/proc/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return None


def boot_of(pid: int) -> str:
    """What a process was started with in ``GLMTTS_BOOT``; empty when it is not there or not ours to read.

    Reading it can wait for a process that is stuck in the kernel with its memory map locked.
    """
    try:
        environment = b"\0" + _read(f"/proc/{pid}/environ")
    except OSError:
        return ""
    _, found, rest = environment.partition(f"\0{VARIABLE}=".encode())
    return rest.partition(b"\0")[0].decode(errors="replace") if found else ""


def find(tokens: Iterable[str], not_before: int = 0) -> dict[int, Stat]:
    """The processes that carry one of the tokens, and their descendants: of our user, in our pid namespace.

    Never this process nor one that it descends from, whatever they carry, and none that was started before
    ``not_before`` (in clock ticks): what the daemon of the token has started is younger than that daemon.
    """
    wanted = set(tokens)
    namespace, user = os.readlink("/proc/self/ns/pid"), os.geteuid()  # noqa: PTH115 (pathlib is heavy)
    everybody: dict[int, Stat] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (ten times as fast, and there may be thousands)
        if name.isdigit() and (about := stat(int(name))) is not None:
            everybody[int(name)] = about
    spared = _line_of(os.getpid(), everybody)

    def ours(pid: int, about: Stat) -> bool:
        # Kernel threads have no memory, and nobody else's processes are ours to end.
        if pid in spared or about.gone or about.started < not_before:
            return False
        try:
            return os.stat(f"/proc/{pid}").st_uid == user  # noqa: PTH116
        except OSError:
            return False

    found = {}
    # What is stuck in the kernel comes last: reading its environment may wait, and the others shall not wait for it.
    for pid, about in sorted(everybody.items(), key=lambda entry: entry[1].state == "D"):
        if ours(pid, about) and boot_of(pid).partition(".")[0] in wanted and _same_namespace(pid, namespace):
            found[pid] = about
    children: dict[int, list[int]] = {}
    for pid, about in everybody.items():
        children.setdefault(about.parent, []).append(pid)
    waiting = list(found)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found and ours(pid, everybody[pid]) and _same_namespace(pid, namespace):
                found[pid] = everybody[pid]
                waiting.append(pid)
    return found


def _line_of(pid: int, everybody: dict[int, Stat]) -> set[int]:
    """A process and all that it descends from."""
    line = set()
    while pid in everybody and pid not in line:
        line.add(pid)
        pid = everybody[pid].parent
    return line


def _same_namespace(pid: int, namespace: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == namespace  # noqa: PTH115
    except OSError:
        return False


def end(found: dict[int, Stat]) -> dict[int, int]:
    """Send SIGKILL to these very processes; returns a pidfd of each that was there, to be closed by the caller."""
    descriptors = {}
    for pid, about in found.items():
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        # From here on the pid can't come to mean another process without our noticing.
        now = stat(pid)
        if now is None or now.started != about.started:
            os.close(descriptor)
            continue
        descriptors[pid] = descriptor
        try:
            if now.group == pid:
                os.killpg(pid, signal.SIGKILL)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return descriptors


def sweep(tokens: Iterable[str], patience_s: float, not_before: int = 0) -> tuple[dict[int, Stat], dict[int, Stat]]:
    """End everything that carries one of the tokens, and wait for its end.

    Returns what was found, and what of it is still there after ``patience_s``: it can't be killed now.
    """
    deadline = time.monotonic() + patience_s
    wanted = list(tokens)
    everything: dict[int, Stat] = {}
    quiet = 0
    while True:
        found = find(wanted, not_before)
        everything |= found
        # A daemon that starts has nobody to wait for when the first look finds nobody: its predecessor's guardian
        # has looked already.
        quiet = quiet + 1 if not found else 0
        if quiet >= (_QUIET_LOOKS if everything else 1):
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
    """Read the token from stdin, wait there for the daemon's end, and end what carries the token."""
    # The daemon tells when it is over, by ending; a service manager asks everybody.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = b""
    while chunk := os.read(0, 4096):
        told += chunk
    token = told.decode(errors="replace").strip()
    if not token:
        return
    deadline = time.monotonic() + _PATIENCE_S
    # Twice: a worker that the daemon had begun to make when it died may not have had its environment yet.
    for _ in range(2):
        sweep([token], max(0.0, deadline - time.monotonic()))
        time.sleep(5 * _PAUSE_S)


if __name__ == "__main__":
    main()
