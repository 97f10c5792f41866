"""Worker processes: starting them, hearing what they print, learning of their end at once, and signalling them.

A worker is a fresh interpreter in a session of its own. Its end is noticed through a pidfd; its stdout and stderr are
pipes that are read as far as the loop has time for; a third pipe ties its life to the daemon's (lifeline.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from .core.settings import Settings
from .worker_output import WorkerOutput

#: What is read of a pipe at one time: a worker that floods its stdout takes no more of the loop than that.
_READ_BYTES = 64 * 1024

#: Runs the worker in an interpreter that this package is not installed in: it sees ``glmtts`` and nothing else of ours.
_BOOTSTRAP = """
import runpy, sys, types
glmtts = types.ModuleType("glmtts")
glmtts.__path__ = sys.argv[1].split(":")
sys.modules["glmtts"] = glmtts
del sys.argv[1]
runpy.run_module("glmtts.daemon.gpu_worker", run_name="__main__", alter_sys=True)
"""


class WorkerProcess:
    """One process of a worker."""

    def __init__(self, spawn: int, name: str, popen: subprocess.Popen[bytes], token: str, lifeline: int) -> None:
        self.spawn = spawn
        self.name = name
        self.popen = popen
        self.token = token
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)
        #: Closing it kills the process group.
        self.lifeline = lifeline
        assert popen.stdout is not None and popen.stderr is not None
        self.outputs = {popen.stdout.fileno(): WorkerOutput(), popen.stderr.fileno(): WorkerOutput()}
        self.stderr_fd = popen.stderr.fileno()
        self.last_words = ""
        #: Where it is reached on the workers socket, once it has said hello.
        self.routing_id = b""
        for fd in self.outputs:
            os.set_blocking(fd, False)


class Processes:
    """All worker processes. ``watch`` and ``unwatch`` register descriptors with the loop's poller."""

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        interpreter: str,
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        on_ended: Callable[[WorkerProcess, int], None],
        on_line: Callable[[WorkerProcess, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._interpreter = interpreter
        self._watch = watch
        self._unwatch = unwatch
        self._on_ended = on_ended
        self._on_line = on_line
        self._clock = clock
        self._by_spawn: dict[int, WorkerProcess] = {}

    def find(self, spawn: int) -> WorkerProcess | None:
        """The process of a spawn, as long as it is not reaped."""
        return self._by_spawn.get(spawn)

    def with_token(self, token: str) -> WorkerProcess | None:
        """The process that was started with this token."""
        for process in self._by_spawn.values():
            if secrets.compare_digest(process.token.encode(), token.encode("utf-8", "surrogatepass")):
                return process
        return None

    def start(self, spawn: int, name: str, gpu: int | None) -> int:
        """Start a worker's process and return its pid. Raises OSError."""
        token = secrets.token_hex(16)
        read_end, write_end = os.pipe()
        try:
            popen = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(name, gpu, token, read_end),
                pass_fds=(read_end,),
                start_new_session=True,
                cwd="/",
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(write_end)
            raise OSError(f"{self._interpreter}: {error}") from None
        finally:
            os.close(read_end)
        try:
            process = WorkerProcess(spawn, name, popen, token, write_end)
        except OSError:
            # No descriptor is left for it: it can't be watched, so it can't be.
            os.close(write_end)
            popen.kill()
            popen.wait()
            raise
        self._by_spawn[spawn] = process
        self._watch(process.pidfd, lambda: self._reap(process))
        for fd in process.outputs:
            self._watch(fd, lambda fd=fd: self._read(process, fd))  # type: ignore[misc]
        return process.pid

    def _command(self) -> list[str]:
        if self._interpreter == sys.executable:
            return [sys.executable, "-m", "glmtts.daemon.gpu_worker"]
        import glmtts

        return [self._interpreter, "-c", _BOOTSTRAP, ":".join(glmtts.__path__)]

    def _environment(self, name: str, gpu: int | None, token: str, lifeline_fd: int) -> dict[str, str]:
        settings = self._settings
        engine = settings.engine
        worker: dict[str, Any] = {
            "name": name,
            "endpoint": self._endpoint,
            "token": token,
            "daemon_pid": os.getpid(),
            "lifeline_fd": lifeline_fd,
            "engine": engine.name,
            "engine_settings": msgspec.to_builtins(getattr(engine, engine.name, None)) or {},
            "warmup_text": engine.warmup_text,
            "recording_min_s": settings.limits.recording_min_s,
            "recording_max_s": settings.limits.recording_max_s,
            "default_sample_rate": settings.audio.sample_rate,
        }
        environment = dict(os.environ)
        # The service manager's channels are the daemon's alone.
        for private in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"):
            environment.pop(private, None)
        environment["GLMTTS_WORKER"] = json.dumps(worker)
        environment["PYTHONUNBUFFERED"] = "1"
        if gpu is not None:
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        return environment

    def signal(self, spawn: int, which: str) -> None:
        """Send SIGTERM to a worker, or SIGKILL to its whole group; one that is gone does not matter."""
        process = self._by_spawn.get(spawn)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if which == "term":
                signal.pidfd_send_signal(process.pidfd, signal.SIGTERM)
            else:
                # Not reaped yet, so its pid, and its group's, can't be anybody else's.
                os.killpg(process.pid, signal.SIGKILL)

    def _read(self, process: WorkerProcess, fd: int) -> None:
        """Read some of what a worker has printed."""
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
                process.last_words = line.strip()
            self._on_line(process, line)

    def _close_output(self, process: WorkerProcess, fd: int) -> None:
        output = process.outputs.pop(fd, None)
        if output is not None:
            self._unwatch(fd)
            self._tell(process, fd, output.end(self._clock()))

    def _reap(self, process: WorkerProcess) -> None:
        """The process is gone: learn how, end what is left of its group, and give its descriptors back."""
        returncode = process.popen.poll()
        if returncode is None:
            return
        self._unwatch(process.pidfd)
        os.close(process.pidfd)
        for fd in list(process.outputs):
            # Its last words; what a child of it goes on to print is not waited for.
            self._read(process, fd)
            self._close_output(process, fd)
        for pipe in (process.popen.stdout, process.popen.stderr):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(process.lifeline)
        del self._by_spawn[process.spawn]
        self._on_ended(process, returncode)

    def kill_all(self) -> None:
        """End every process now; for a daemon that ends by an error of its own."""
        for spawn in list(self._by_spawn):
            self.signal(spawn, "kill")
        for process in self._by_spawn.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(timeout=1.0)
