"""The daemon of a demonstration, with a folder and a configuration of its own, which leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from glmtts.client import Client, Control, DaemonNotRunning, GlmttsError, Timeout
from glmtts.protocol.endpoints import MAX_PATH_BYTES, REQUESTS, WORKERS
from glmtts.protocol.system_words import exit_in_words

from ..failures import Failure

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


class DemoDaemon:
    """Owns the daemon's process and folder, from the start to the removal of everything."""

    def __init__(self) -> None:
        self.folder = _make_folder()
        self.endpoint = f"ipc://{self.folder / REQUESTS}"
        self.started = 0.0
        self._log = self.folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Write its configuration and start it."""
        config = self.folder / "glmtts.toml"
        config.write_text(_CONFIG.format(folder=self.folder))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GLMTTS_")}
        environment["GLMTTS_RUNTIME_DIR"] = str(self.folder)
        with self._log.open("wb") as log:
            self.started = time.perf_counter()
            # In a session of its own: Ctrl-C is for this program, which then stops the daemon.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "glmtts.daemon.supervisor", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def until_accepting(self) -> float:
        """Wait for its first answer. Returns the seconds since its start."""

        def answers() -> bool:
            try:
                with Client(self.endpoint, timeout=1.0, reconnect_s=1.0) as client:
                    client.ping()
            except (DaemonNotRunning, Timeout):
                return False
            return True

        self._wait("accept requests", answers)
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

            self._wait(f"have {count} ready workers", ready)
        return found

    def worker_count(self) -> int:
        """The number of workers, ready or not."""
        with Control(self.endpoint) as control:
            return len(control.workers()["workers"])

    def stop(self) -> float:
        """Stop it. Returns the seconds that it took."""
        assert self._process is not None
        began = time.perf_counter()
        with Control(self.endpoint) as control:
            control.call("stop")
        try:
            self._process.wait(timeout=20.0)
        except subprocess.TimeoutExpired:
            raise Failure("the daemon did not end within 20 s after the request to stop") from None
        if self._process.returncode:
            raise Failure(f"the daemon {exit_in_words(self._process.returncode)}")
        return time.perf_counter() - began

    def processes(self) -> list[int]:
        """Every process of this demonstration: the daemon, its workers, and their children."""
        mark = f"GLMTTS_RUNTIME_DIR={self.folder}".encode()
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    alive.append(int(entry.name))
        return alive

    def log_end(self, lines: int = 15) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def remove(self) -> None:
        """Kill all processes that are left, and remove the folder."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        ends = time.monotonic() + _TIMEOUT_S
        assert self._process is not None
        while not ready():
            if self._process.poll() is not None:
                raise Failure(f"the daemon {exit_in_words(self._process.returncode)} before it could {what}")
            if time.monotonic() > ends:
                raise Failure(f"the daemon did not {what} within {_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)


@contextlib.contextmanager
def demo_daemon() -> Iterator[DemoDaemon]:
    """A daemon that is removed after the block, however the block ends."""
    daemon = DemoDaemon()
    try:
        daemon.start()
        yield daemon
    except (GlmttsError, Failure) as error:
        lines = daemon.log_end()
        raise Failure(f"{error}\nThe end of the daemon's log:\n{lines}" if lines else str(error)) from error
    finally:
        daemon.remove()


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="glmtts-demo-"))
    # The path of a socket must be short (unix(7)), and a TMPDIR may be long.
    if len(str(folder / WORKERS)) > MAX_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="glmtts-demo-", dir="/tmp"))
    return folder
