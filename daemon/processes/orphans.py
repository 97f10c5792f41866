"""What a daemon that died has left behind: recorded while it lives, ended by the next one that starts in its folder.

A worker dies with its daemon by the lifeline, and what has left the worker's group by the guardian. This is the third
line, for the day when these were killed too, or not yet there. A process is ended if it carries the boot token of a
daemon that held this very runtime folder (whose lock we hold now), under our user, in our pid namespace, under the same
kernel, and was started after that daemon. Everything else is left alone, whatever the record says.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat as modes
import threading
from pathlib import Path

from msgspec import Struct

from . import guardian

FILE = "processes"

#: A record longer than that is none of ours.
_MAX_BYTES = 1 << 20
#: Written anew without those that have ended, when it has grown to this.
_COMPACT_BYTES = 64 << 10
#: Of so many daemons before us, one after the other, what could not be killed is tried again.
_MAX_BOOTS = 16
_BOOT = re.compile(r"boot 1 ([0-9a-f]{32}) ([0-9a-f-]{36}) (pid:\[\d+\]) (\d{1,20})")
_WORKER = re.compile(r"([+-]) (\d{1,10}) (\d{1,20}) ([\x21-\x7e]{1,200})")


class Boot(Struct):
    """One start of a daemon: its token, when its process started (clock ticks), and its workers by pid."""

    token: str
    #: Of the kernel, and the pid namespace: pids and start times of others mean nothing to us.
    kernel: str
    namespace: str
    started: int
    #: pid -> (start time in clock ticks, name).
    workers: dict[int, tuple[int, str]]

    def lines(self) -> str:
        text = f"boot 1 {self.token} {self.kernel} {self.namespace} {self.started}\n"
        return text + "".join(f"+ {pid} {started} {name}\n" for pid, (started, name) in self.workers.items())


class Orphan(Struct, frozen=True):
    """A process that a daemon before us has left behind. ``worker``: its name, empty for what a worker has started."""

    pid: int
    worker: str
    #: Letter of its state when it could not be killed in time (``D``: stuck in the kernel); empty when it is gone.
    stuck: str = ""


class Records:
    """The record of this daemon's processes in the runtime folder, whose lock must be held."""

    def __init__(self, folder: Path) -> None:
        """Read what is left of daemons before, and begin anew. Never raises: a daemon works without a record."""
        self.path = folder / FILE
        #: Why there is no record, or what was wrong with the one that was there; for the log.
        self.problem = ""
        own = guardian.stat(os.getpid())
        self.boot = Boot(
            token=secrets.token_hex(16),
            kernel=_kernel(),
            namespace=str(Path("/proc/self/ns/pid").readlink()),
            started=own.started if own is not None else 0,
            workers={},
        )
        self._file = -1
        self._size = 0
        self._before = [
            boot
            for boot in self._read()[-_MAX_BOOTS:]
            if (boot.kernel, boot.namespace) == (self.boot.kernel, self.boot.namespace)
        ]
        self._write()

    # --- the daemons before us

    def sweep(self, patience_s: float = 2.0) -> list[Orphan]:
        """End what daemons before us have left, and wait for its end; takes no time when there were none.

        What is still there after ``patience_s`` stays in the record for the next start.
        """
        if not self._before:
            return []
        found: dict[int, guardian.Stat] = {}
        left: dict[int, guardian.Stat] = {}
        done = threading.Event()

        def run() -> None:
            tokens = [boot.token for boot in self._before]
            killed, stuck = guardian.sweep(tokens, patience_s, min(boot.started for boot in self._before))
            found.update(killed)
            left.update(stuck)
            done.set()

        # Looking at a process that is stuck in the kernel can get stuck as well; that thread is left to itself.
        threading.Thread(target=run, name="orphans", daemon=True).start()
        if not done.wait(patience_s + 0.5):
            self.problem = "looking for orphans of the daemon before took too long: a process is stuck in the kernel"
            return []
        names = {(pid, started): name for b in self._before for pid, (started, name) in b.workers.items()}
        orphans = [
            Orphan(pid, names.get((pid, about.started), ""), left[pid].state if pid in left else "")
            for pid, about in (found | left).items()
        ]
        if not left:
            self._before = []
            self._write()
        return orphans

    # --- this daemon's processes

    def token(self, incarnation: int) -> str:
        """What the process of this spawn has in its environment."""
        return f"{self.boot.token}.{incarnation}"

    def incarnation_of(self, token: str) -> int | None:
        """The spawn that a token was made for; None if it is not one of this daemon's."""
        boot, _, incarnation = token.partition(".")
        return int(incarnation) if boot == self.boot.token and incarnation.isdecimal() else None

    def begun(self, pid: int, started: int, name: str) -> None:
        """A worker's process runs."""
        name = re.sub(r"[^\x21-\x7e]", "?", name)[:200] or "?"
        self.boot.workers[pid] = (started, name)
        self._append(f"+ {pid} {started} {name}\n")

    def ended(self, pid: int) -> None:
        """A worker's process is gone."""
        if (worker := self.boot.workers.pop(pid, None)) is not None:
            self._append(f"- {pid} {worker[0]} {worker[1]}\n")

    def close(self, *, clean: bool = True) -> None:
        """The daemon ends. Where all of its processes are gone, there is nothing to tell the next one."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if clean and not self._before:
                with contextlib.suppress(OSError):
                    self.path.unlink()

    # --- the file

    def _append(self, line: str) -> None:
        """One write to the page cache, never flushed: the record of a kernel that is gone is of no use."""
        if self._file < 0:
            return
        if self._size > _COMPACT_BYTES:
            self._write()
            return
        try:
            self._size += os.write(self._file, line.encode())
        except OSError as error:
            self._give_up(error)

    def _write(self) -> None:
        """Write the record anew, in one step."""
        data = "".join(boot.lines() for boot in [*self._before, self.boot]).encode()
        temporary = self.path.with_name(f"{FILE}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(temporary, flags, 0o600)
            if self._file >= 0:
                os.close(self._file)
            self._file = file
            os.write(file, data)
            temporary.replace(self.path)
        except OSError as error:
            self._give_up(error)
        else:
            # What it has grown by counts, not what it must have.
            self._size = 0

    def _give_up(self, error: OSError) -> None:
        self.problem = (
            f"{self.path}: {error.strerror}: no record of the workers is kept; should this daemon be killed together "
            "with its guardian, the next one can't end what they leave behind"
        )
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> list[Boot]:
        try:
            # A link leads elsewhere, and opening a FIFO would wait.
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}: the record of the daemon before is not used"
            return []
        try:
            about = os.fstat(file)
            wrong = ""
            if not modes.S_ISREG(about.st_mode):
                wrong = "not a file"
            elif about.st_uid != os.geteuid():
                wrong = f"belongs to user {about.st_uid}"
            elif about.st_mode & 0o022:
                wrong = "others may write to it"
            elif about.st_size > _MAX_BYTES:
                wrong = f"{about.st_size} bytes, more than any record has"
            if wrong:
                self.problem = f"{self.path}: {wrong}: the record of the daemon before is not used"
                return []
            return parse(os.read(file, _MAX_BYTES).decode(errors="replace"))
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}: the record of the daemon before is not used"
            return []
        finally:
            os.close(file)


def parse(text: str) -> list[Boot]:
    """What a record tells; lines that make no sense (the last may be half a line) are passed over."""
    boots: list[Boot] = []
    for line in text.split("\n"):
        if boot := _BOOT.fullmatch(line):
            token, kernel, namespace, started = boot.groups()
            boots.append(Boot(token, kernel, namespace, int(started), {}))
        elif boots and (worker := _WORKER.fullmatch(line)):
            sign, pid, started, name = worker.groups()
            if sign == "+":
                boots[-1].workers[int(pid)] = (int(started), name)
            else:
                boots[-1].workers.pop(int(pid), None)
    return boots


def _kernel() -> str:
    """Changes with each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
