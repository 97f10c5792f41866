"""Worker processes: starting them, reading their output, noticing their end at once, and signalling them.

A worker is a fresh interpreter in a session of its own. SIGCHLD reports its end, on every kernel and in every container
(pidfd_open(2) is missing before Linux 5.3, and forbidden by some seccomp profiles); its stdout and stderr are pipes
that the loop reads in bounded pieces; a third pipe ties its life to the daemon's (lifeline.py).

No child of a worker outlives it: at its end its group is killed, then the children that had left the group
(descendants.py). No process outlives the daemon: lifeline.py ends its workers, guardian.py ends their children, and if
both were killed as well, the next daemon ends the rest (orphans.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .. import flight_recorder
from ..core.effects import Spawn
from ..core.settings import Settings
from ..log.worker_output import WorkerOutput, understood
from . import guardian
from .command import command, environment
from .descendants import Descendants, adopt
from .guardian_client import Guardian, not_started
from .oom import OomKills
from .orphans import Records

#: Bytes read from a pipe in one turn, so that a worker that floods its stdout does not block the loop.
_READ_BYTES = 64 * 1024

#: oom_score_adj of workers, -1000..1000: when memory runs out, the kernel kills a worker before the daemon.
_OOM_SCORE_ADJ = 500

#: How long the daemon's end waits for its processes; the guardian ends those that are left.
_END_S = 1.0


class WorkerProcess:
    """One process of a worker, from its start until it is reaped; owns its pipes and its lifeline."""

    def __init__(
        self,
        incarnation: int,
        name: str,
        popen: subprocess.Popen[bytes],
        token: str,
        *,
        lifeline: int,
        recorder: int | None,
    ) -> None:
        self.incarnation = incarnation
        self.name = name
        self.popen = popen
        self.token = token
        self.pid = popen.pid
        #: Closing it kills the process group.
        self.lifeline = lifeline
        #: The memory of its flight recorder; None where the system has none to give.
        self._recorder = recorder
        assert popen.stdout is not None and popen.stderr is not None
        self.outputs = {popen.stdout.fileno(): WorkerOutput(), popen.stderr.fileno(): WorkerOutput()}
        self.stderr_fd = popen.stderr.fileno()
        self.last_words = ""
        #: Whether it is loaded. From then on it gets texts, and its output may contain them.
        self.ready = False
        #: Its address on the workers' socket, known since its ``hello``.
        self.routing_id = b""
        about = guardian.stat(popen.pid)
        #: In clock ticks since the machine's start; never None, because it is not reaped yet.
        self.started = about.started if about is not None else 0
        #: Whether this daemon sent it SIGKILL.
        self.killed = False
        #: The kernel's count of out-of-memory kills when the process was last seen alive.
        self.oom_kills: int | None = None
        for fd in self.outputs:
            os.set_blocking(fd, False)

    @property
    def note(self) -> flight_recorder.Note:
        """The last note in its flight recorder."""
        return flight_recorder.Note() if self._recorder is None else flight_recorder.read(self._recorder)

    def close(self) -> None:
        """Release the descriptors that belong to the process alone."""
        for pipe in (self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self.lifeline)
        if self._recorder is not None:
            os.close(self._recorder)


class Processes:
    """Owns all worker processes: each is watched until its end, and reported by ``on_ended`` once.

    ``watch`` and ``unwatch`` register descriptors with the loop's poller.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        interpreter: str,
        records: Records,
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        on_ended: Callable[[WorkerProcess, int, bool, flight_recorder.Note], None],
        on_line: Callable[[WorkerProcess, str], None],
        clock: Callable[[], float],
    ) -> None:
        """``on_ended`` gets the process, its return code, whether the kernel killed it for lack of memory, and the
        last note in its flight recorder.

        This process becomes the subreaper of its workers' children: call ``tidy`` at each SIGCHLD.
        """
        self._settings = settings
        self._endpoint = endpoint
        self._interpreter = interpreter
        self._watch = watch
        self._unwatch = unwatch
        self._on_ended = on_ended
        self._on_line = on_line
        self._clock = clock
        self._by_incarnation: dict[int, WorkerProcess] = {}
        self._records = records
        self._guardian = Guardian(records.boot.token)
        self._descendants = Descendants(records.incarnation_of)
        self._oom = OomKills()
        with contextlib.suppress(OSError):  # a container forbids it; the doctor says what that means
            adopt()

    def use(self, settings: Settings, interpreter: str) -> None:
        """Use these settings for processes started from now on."""
        self._settings, self._interpreter = settings, interpreter

    def find(self, incarnation: int) -> WorkerProcess | None:
        """The process of an incarnation; None when it is reaped."""
        return self._by_incarnation.get(incarnation)

    @property
    def guardian_pid(self) -> int | None:
        """The pid of the guardian, which cleans up if this process is killed; None when there is none."""
        return self._guardian.pid

    @property
    def oom_source(self) -> Path | None:
        """The file with the kernel's count of out-of-memory kills; None on systems without one."""
        return self._oom.source

    def with_token(self, token: str) -> WorkerProcess | None:
        """The process that was started with this token."""
        for process in self._by_incarnation.values():
            if secrets.compare_digest(process.token.encode(), token.encode("utf-8", "surrogatepass")):
                return process
        return None

    def start(self, wanted: Spawn) -> int:
        """Start a worker's process and return its pid. Raises OSError.

        CUDA_VISIBLE_DEVICES is set to the device, or to the GPU's number without one; without both it is left
        unchanged.
        """
        self._guardian.ensure()
        token = secrets.token_hex(16)
        read_end, write_end = os.pipe()
        recorder = None
        # An old kernel or a seccomp profile forbids it: then more jobs are suspects when a worker dies.
        with contextlib.suppress(OSError, AttributeError):
            recorder = flight_recorder.create()
        own = {
            "name": wanted.name,
            "endpoint": self._endpoint,
            "token": token,
            "lifeline_fd": read_end,
            "recorder_fd": recorder,
            "vram_share": wanted.vram_share,
            "slots": wanted.slots,
        }
        incarnation, device = wanted.incarnation, wanted.device
        if device is None and wanted.gpu is not None:
            device = str(wanted.gpu)
        inherited = [fd for fd in (read_end, recorder) if fd is not None]
        try:
            popen = subprocess.Popen(
                command(self._interpreter),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(self._settings, own, self._records.token(incarnation), device),
                pass_fds=inherited,
                start_new_session=True,
                cwd="/",
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(write_end)
            if recorder is not None:
                os.close(recorder)
            raise OSError(not_started(self._interpreter, error)) from None
        finally:
            os.close(read_end)
        process = WorkerProcess(incarnation, wanted.name, popen, token, lifeline=write_end, recorder=recorder)
        self._by_incarnation[incarnation] = process
        process.oom_kills = self._oom.count()
        _make_preferred_victim(process.pid)
        self._records.begun(process.pid, process.started, wanted.name)
        for fd in process.outputs:
            self._watch(fd, lambda fd=fd: self._read(process, fd))  # type: ignore[misc]
        return process.pid

    def signal(self, incarnation: int, which: str) -> None:
        """Send SIGTERM to a worker, or SIGKILL to its whole group; does nothing when the worker is gone."""
        process = self._by_incarnation.get(incarnation)
        if process is None:
            return
        # It is not reaped yet, so its pid and its group's id can't have been reused.
        with contextlib.suppress(ProcessLookupError):
            if which == "term":
                os.kill(process.pid, signal.SIGTERM)
            else:
                process.killed = True
                os.killpg(process.pid, signal.SIGKILL)

    def state(self, incarnation: int) -> str:
        """The letter of a worker's state (proc(5)); ``D``: it can't be killed now. Empty when there is no process."""
        process = self._by_incarnation.get(incarnation)
        about = guardian.stat(process.pid) if process is not None else None
        return about.state if about is not None else ""

    def _read(self, process: WorkerProcess, fd: int) -> None:
        """Read a piece of a worker's output."""
        try:
            chunk = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._close_output(process, fd)
            return
        self._tell(process, fd, process.outputs[fd].feed(chunk, self._clock()))

    def _tell(self, process: WorkerProcess, fd: int, lines: list[str]) -> None:
        for line in lines:
            if fd == process.stderr_fd and line.strip():
                process.last_words = understood(line.strip(), by_default="info").words
            self._on_line(process, line)

    def _close_output(self, process: WorkerProcess, fd: int) -> None:
        output = process.outputs.pop(fd, None)
        if output is not None:
            self._unwatch(fd)
            self._tell(process, fd, output.end(self._clock()))

    def _reap(self, process: WorkerProcess) -> None:
        """Kill the rest of an ended worker's group, release its descriptors, and report its end."""
        if not _has_ended(process.pid):
            return
        # It is not reaped yet, so the group's id can't have been reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        returncode = process.popen.wait()
        oom_killed, note = self._was_oom_killed(process, returncode), process.note
        self._release(process)
        self._on_ended(process, returncode, oom_killed, note)

    def _release(self, process: WorkerProcess) -> None:
        """Forget a process that is reaped, and end the children that it left behind."""
        for fd in list(process.outputs):
            # Its last output. Later output of its children is dropped.
            self._read(process, fd)
            self._close_output(process, fd)
        process.close()
        del self._by_incarnation[process.incarnation]
        self._records.ended(process.pid)
        self._tidy()

    def restore(self) -> str:
        """Start the guardian and write the record again if they are gone; returns why that fails, or ``""``."""
        problem = self._records.restore()
        if self._by_incarnation:
            try:
                self._guardian.ensure()
            except OSError as error:
                problem = f"the guardian of the workers can't be started: {error}"
        return problem

    def tidy(self) -> None:
        """Report the workers that have ended; reap and end the processes that they left. Call it at each SIGCHLD."""
        self._guardian.reap()
        for process in list(self._by_incarnation.values()):
            self._reap(process)
        self._tidy()

    def _tidy(self, *, all: bool = False) -> int:
        living = {p.pid: (p.started, p.incarnation) for p in self._by_incarnation.values()}
        own = living.keys() | {self._guardian.pid}
        return self._descendants.tidy(own, {} if all else living, all=all)

    def _was_oom_killed(self, process: WorkerProcess, returncode: int) -> bool:
        """Whether it died by a SIGKILL that this daemon did not send while the kernel counted an out-of-memory kill."""
        # A shell that wraps the interpreter exits with 137.
        if process.killed or returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return False
        count, before = self._oom.count(), process.oom_kills
        # The kill that explains this death explains no later one. Processes that died at the same moment keep theirs.
        for other in self._by_incarnation.values():
            if other is not process and not _has_ended(other.pid):
                other.oom_kills = count
        return count is not None and before is not None and count > before

    def kill_all(self) -> None:
        """End every worker and its children now, because the daemon ends."""
        deadline = time.monotonic() + _END_S
        for incarnation in list(self._by_incarnation):
            self.signal(incarnation, "kill")
        for process in list(self._by_incarnation.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(timeout=max(0.0, deadline - time.monotonic()))
                self._release(process)
        while (left := self._tidy(all=True)) and time.monotonic() < deadline:
            time.sleep(0.002)
        clean = not left and not self._by_incarnation
        self._guardian.dismiss(clean=clean)
        self._records.close(clean=clean)
        self._oom.close()


def _has_ended(pid: int) -> bool:
    """Whether this child has ended; does not reap it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _make_preferred_victim(pid: int) -> None:
    """Raise its oom_score_adj, which needs no privilege and is inherited by its children."""
    file = Path(f"/proc/{pid}/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(file.read_bytes()) < _OOM_SCORE_ADJ:
            file.write_bytes(str(_OOM_SCORE_ADJ).encode())
