"""Processes that a dead daemon left behind: recorded while it lives, ended by the next daemon in its runtime folder.

The lifeline ends the workers of a dead daemon, and the guardian ends their children. This is the third line, for the
case that both were killed too, or not started yet. A process is ended if it carries the boot token of a daemon that
held this runtime folder (whose lock this daemon holds now), belongs to the same user, pid namespace and kernel, and is
younger than that daemon. No other process is touched, whatever the record says.
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

from ..log.logger import Logger
from . import guardian

FILE = "processes"

#: A longer file is not a record of a daemon.
_MAX_BYTES = 1 << 20
#: The record is rewritten without ended processes when it has grown by this.
_COMPACT_BYTES = 64 << 10
#: Number of earlier daemons whose unkillable processes are tried again.
_MAX_BOOTS = 16
_BOOT = re.compile(r"boot 1 ([0-9a-f]{32}) ([0-9a-f-]{36}) (pid:\[\d+\]) (\d{1,20})")
_WORKER = re.compile(r"([+-]) (\d{1,10}) (\d{1,20}) ([\x21-\x7e]{1,200})")


class Boot(Struct):
    """One start of a daemon: its token, when its process started (clock ticks), and its workers by pid."""

    token: str
    #: Ids of the kernel's boot and of the pid namespace: pids and start times are valid within these alone.
    kernel: str
    namespace: str
    started: int
    #: pid -> (start time in clock ticks, name).
    workers: dict[int, tuple[int, str]]

    def lines(self) -> str:
        text = f"boot 1 {self.token} {self.kernel} {self.namespace} {self.started}\n"
        return text + "".join(f"+ {pid} {started} {name}\n" for pid, (started, name) in self.workers.items())


class Orphan(Struct, frozen=True):
    """A process that an earlier daemon left behind. ``worker``: its name; empty for a child of a worker."""

    pid: int
    worker: str
    #: Letter of its state when it could not be killed in time (``D``: stuck in the kernel); empty when it is gone.
    stuck: str = ""


class Records:
    """Owns the record of this daemon's processes in the runtime folder, whose lock must be held."""

    def __init__(self, folder: Path) -> None:
        """Read the records of earlier daemons and begin a new one. Never raises: a daemon works without a record."""
        self.path = folder / FILE
        #: Why there is no record, or what was wrong with the old one; for the log.
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

    # --- earlier daemons

    def sweep(self, patience_s: float = 2.0) -> list[Orphan]:
        """End the processes of earlier daemons and wait for their end; returns at once when there were none.

        Processes still there after ``patience_s`` stay in the record for the next start.
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

        # Reading /proc of a process that is stuck in the kernel can block for ever; the thread is then abandoned.
        threading.Thread(target=run, name="orphans", daemon=True).start()
        if not done.wait(patience_s + 0.5):
            self.problem = "the search for orphans of an earlier daemon took too long: a process is stuck in the kernel"
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

    def end_orphans(self, log: Logger) -> None:
        """Sweep, and log each orphan: a worker of this daemon may need the GPU that it holds."""
        for orphan in self.sweep():
            what = f"worker {orphan.worker}" if orphan.worker else "started by a worker"
            if orphan.stuck:
                reason = "it is stuck in the kernel and can't be killed; its memory is not free"
                log.error("orphan left", pid=orphan.pid, what=what, state=orphan.stuck, reason=reason)
            else:
                log.warning("orphan of an earlier daemon ended", pid=orphan.pid, what=what)
        if self.problem:
            log.warning("record of processes", reason=self.problem)

    # --- this daemon's processes

    def restore(self) -> str:
        """Write the record again if its file was removed or replaced, or could not be written before.

        Returns why there is none all the same, or ``""``.
        """
        if not self._is_in_place():
            self._write()
        return self.problem if self._file < 0 else ""

    def _is_in_place(self) -> bool:
        try:
            return self._file >= 0 and os.path.samestat(os.fstat(self._file), self.path.lstat())
        except OSError:
            return False

    def token(self, incarnation: int) -> str:
        """The boot token for the environment of this incarnation's process."""
        return f"{self.boot.token}.{incarnation}"

    def incarnation_of(self, token: str) -> int | None:
        """The incarnation that a token was made for; None for a token of another daemon."""
        boot, _, incarnation = token.partition(".")
        return int(incarnation) if boot == self.boot.token and incarnation.isdecimal() else None

    def begun(self, pid: int, started: int, name: str) -> None:
        """Note that a worker's process was started at ``started`` (clock ticks)."""
        name = re.sub(r"[^\x21-\x7e]", "?", name)[:200] or "?"
        self.boot.workers[pid] = (started, name)
        self._append(f"+ {pid} {started} {name}\n")

    def ended(self, pid: int) -> None:
        """Note that a worker's process has ended."""
        if (worker := self.boot.workers.pop(pid, None)) is not None:
            self._append(f"- {pid} {worker[0]} {worker[1]}\n")

    def close(self, *, clean: bool = True) -> None:
        """Close the record; remove it when all processes of this daemon and of earlier ones are gone."""
        if self._file >= 0:
            is_own = self._is_in_place()
            os.close(self._file)
            self._file = -1
            if clean and is_own and not self._before:
                with contextlib.suppress(OSError):
                    self.path.unlink()

    # --- the file

    def _append(self, line: str) -> None:
        """Write without a flush to disk: the record is worthless after a restart of the machine."""
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
        """Replace the record atomically."""
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
            # Counts growth beyond the necessary lines.
            self._size = 0

    def _give_up(self, error: OSError) -> None:
        self.problem = (
            f"{self.path}: {error.strerror}: no record of the workers is kept. If this daemon is killed together with "
            "its guardian, the next daemon can't end the processes that they leave behind."
        )
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> list[Boot]:
        try:
            # Follow no link, and do not block on a FIFO.
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}: the record of the earlier daemon is not used"
            return []
        try:
            about = os.fstat(file)
            wrong = ""
            if not modes.S_ISREG(about.st_mode):
                wrong = "not a file"
            elif about.st_uid != os.geteuid():
                wrong = f"belongs to user {about.st_uid}"
            elif about.st_mode & 0o022:
                wrong = "other users may write to it"
            elif about.st_size > _MAX_BYTES:
                wrong = f"{about.st_size} bytes, too large for a record"
            if wrong:
                self.problem = f"{self.path}: {wrong}: the record of the earlier daemon is not used"
                return []
            return parse(os.read(file, _MAX_BYTES).decode(errors="replace"))
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}: the record of the earlier daemon is not used"
            return []
        finally:
            os.close(file)


def parse(text: str) -> list[Boot]:
    """Parse a record; skips malformed lines (the last may be incomplete)."""
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
    """The id of the kernel's boot; it changes with each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
