"""A daemon with a folder of its own, for a demonstration or a trial, and programs beside it: they leave nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from glmtts.client import Client, Control, DaemonNotRunning, GlmttsError, Timeout
from glmtts.protocol.endpoints import MAX_PATH_BYTES, REQUESTS, WORKERS
from glmtts.protocol.system_words import exit_in_words

from .failures import Failure

_CONFIG = """\
[daemon]
runtime_dir = "{folder}"
state_dir = "{folder}/state"

[engine]
name = "espeak"

[workers]
gpus = "none"
max = 2

[limits]
rate = ""
"""

_TIMEOUT_S = 60.0
_POLL_S = 0.005
#: Exit statuses after which the log is one message, which says what to do: sysexits(3).
_EX_UNAVAILABLE, _EX_CONFIG = 69, 78

_DAEMON = "daemon"
_PR_SET_PDEATHSIG = 1


class Ended(Failure):
    """A program has ended that should still run."""


class PrivateDaemon:
    """Owns the processes and their folder, from the start to the removal of everything.

    ``config``: a configuration in place of the private one; its sockets are in the folder all the same.
    """

    def __init__(self, purpose: str, config: Path | None = None) -> None:
        self.folder = _make_folder(f"glmtts-{purpose}-")
        self.endpoint = f"ipc://{self.folder / REQUESTS}"
        self.started = 0.0
        self._config = config
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int:
        return self._processes[_DAEMON].pid

    def start(self) -> None:
        """Write its configuration and start it."""
        if self._config is None:
            self._config = self.folder / "glmtts.toml"
            self._config.write_text(_CONFIG.format(folder=self.folder))
        self.started = time.perf_counter()
        self.start_program(_DAEMON, "glmtts.daemon.supervisor")

    def start_program(self, name: str, module: str, *arguments: str, fds: Collection[int] = ()) -> None:
        """Start a program of this package, with the daemon's configuration, as its client.

        Args:
            fds: the descriptors that it inherits.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GLMTTS_")}
        environment["GLMTTS_RUNTIME_DIR"] = str(self.folder)
        with self._log(name).open("wb") as log:
            # In a session of its own: Ctrl-C is for this program, which then stops that one.
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(self._config), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=fds,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - unsafe with threads; there are none yet
            )

    def check(self) -> None:
        """Raise Ended if one of the programs has ended."""
        if any(process.poll() is not None for process in self._processes.values()):
            raise self._ended("")

    def _ended(self, before: str) -> Ended:
        # Two that lack their packages end a moment apart: one message for both.
        until = time.monotonic() + 1.0
        while before and time.monotonic() < until and any(p.poll() is None for p in self._processes.values()):
            time.sleep(_POLL_S)
        said = []
        for name, process in self._processes.items():
            if process.poll() is None:
                continue
            log = self.log_end(name)
            if process.returncode in (_EX_UNAVAILABLE, _EX_CONFIG) and log:
                said.append(log)
            else:
                was = "was " if process.returncode < 0 else ""
                words = f"the {name} {was}{exit_in_words(process.returncode)}{before}"
                said.append(f"{words}\nThe end of its log:\n{log}" if log else words)
        return Ended("\n".join(said))

    def until_accepting(self) -> float:
        """Wait for its first answer. Returns the seconds since its start."""

        def answers() -> bool:
            try:
                with Client(self.endpoint, timeout=1.0, reconnect_s=1.0) as client:
                    client.ping()
            except (DaemonNotRunning, Timeout):
                return False
            return True

        self.until("accept requests", answers)
        return time.perf_counter() - self.started

    def until_ready(self, count: int = 1, without: int = 0) -> dict[str, int]:
        """Wait for ``count`` ready workers, not counting the process ``without``. Returns their pids by name."""
        found: dict[str, int] = {}
        with Control(self.endpoint) as control:

            def ready() -> bool:
                found.clear()
                able = (w for w in control.workers()["workers"] if w["state"] in ("ready", "busy"))
                found.update({w["name"]: w["pid"] for w in able if w["pid"] != without})
                return len(found) >= count

            self.until(f"have {count} ready workers", ready)
        return found

    def worker_count(self) -> int:
        """The number of workers, ready or not."""
        with Control(self.endpoint) as control:
            return len(control.workers()["workers"])

    def stop(self) -> float:
        """Stop it. Returns the seconds that it took."""
        process = self._processes[_DAEMON]
        began = time.perf_counter()
        with Control(self.endpoint) as control:
            control.call("stop")
        try:
            process.wait(timeout=20.0)
        except subprocess.TimeoutExpired:
            raise Failure("the daemon did not end within 20 s after the request to stop") from None
        if process.returncode:
            raise Failure(f"the daemon {exit_in_words(process.returncode)}")
        return time.perf_counter() - began

    def end(self, within_s: float) -> None:
        """Ask every program to end, the newest first, and wait for ``within_s`` seconds in all at most."""
        until = time.monotonic() + within_s
        for process in reversed(self._processes.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def processes(self) -> list[int]:
        """All processes: the daemon, its workers, their children, and the programs beside it."""
        mark = f"GLMTTS_RUNTIME_DIR={self.folder}".encode()
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    alive.append(int(entry.name))
        return alive

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log_end(self, name: str = _DAEMON, lines: int = 15) -> str:
        """The last lines of a program's log."""
        try:
            return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def remove(self) -> None:
        """Kill all processes that are left, and remove the folder."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def until(self, what: str, ready: Callable[[], bool], name: str = _DAEMON) -> None:
        """Wait until a program can do ``what``. Raises Failure."""
        ends = time.monotonic() + _TIMEOUT_S
        while not ready():
            if any(process.poll() is not None for process in self._processes.values()):
                raise self._ended(f" before it could {what}")
            if time.monotonic() > ends:
                raise Failure(f"the {name} did not {what} within {_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)


@contextlib.contextmanager
def private_daemon(purpose: str, config: Path | None = None) -> Iterator[PrivateDaemon]:
    """A daemon that is removed after the block, however the block ends."""
    daemon = PrivateDaemon(purpose, config)
    try:
        daemon.start()
        yield daemon
    except Ended:
        raise
    except (GlmttsError, Failure) as error:
        lines = daemon.log_end()
        raise Failure(f"{error}\nThe end of the daemon's log:\n{lines}" if lines else str(error)) from error
    finally:
        daemon.remove()


def _end_with_parent() -> None:
    """Have the kernel end the program when this process is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _make_folder(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    # The path of a socket must be short (unix(7)), and a TMPDIR may be long.
    if len(str(folder / WORKERS)) > MAX_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    return folder
