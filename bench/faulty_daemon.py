"""A daemon for the measurements of faults: several workers, restarted at once, whose processes can be told apart."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import zmq
from daemon_under_test import Daemon
from load import TIMEOUT_MS, call
from processes import Child, memory_mib

HANG_TIMEOUT_S = 1.0


def config(state: Path, workers: int, max_attempts: int, gpus: str) -> str:
    """Restarts at once, however many there are, and no limit that this load meets."""
    return f"""
[daemon]
state_dir = "{state}"

[engine]
name = "fault"

[workers]
{gpus or 'gpus = "none"'}
min = {workers}
max = {workers}
hang_timeout_s = {HANG_TIMEOUT_S}

[workers.restart]
backoff_initial_s = 0.01
backoff_max_s = 0.01
breaker_failures = 1000000
max_attempts = {max_attempts}

[limits]
rate = ""
"""


class FaultyDaemon(Daemon):
    """A daemon with ``workers`` workers. ``gpus`` are the keys that place them on GPUs, ``environment`` shows these."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        name: str,
        *,
        workers: int,
        max_attempts: int = 1,
        gpus: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glmtts-bench-")))
        file = runtime / "bench.toml"
        file.write_text(config(runtime / "state", workers, max_attempts, gpus), encoding="utf-8")
        self.workers = workers
        self.requests = f"ipc://{runtime}/glmtts.sock"
        self.control = f"ipc://{runtime}/control.sock"
        self.events = f"ipc://{runtime}/events.sock"
        self._context = zmq.Context()
        stack.callback(self._context.destroy, linger=0)
        argv = [sys.executable, "-m", "glmtts.daemon.supervisor", "--config", str(file)]
        self.child = Child(name, argv, folder, {"GLMTTS_RUNTIME_DIR": str(runtime)} | (environment or {}))
        stack.callback(self.child.stop)
        self.child.wait_until((runtime / "control.sock").exists, "the control socket")
        self._operator = self.operator()

    def pids(self) -> dict[str, int]:
        """The processes of all workers by name, as soon as all of them are READY."""
        deadline = time.perf_counter() + TIMEOUT_MS / 1000
        while time.perf_counter() < deadline:
            workers = call(self._operator, {"op": "workers", "id": "pids"})["workers"]
            if [worker["state"] for worker in workers] == ["ready"] * self.workers:
                return {worker["name"]: worker["pid"] for worker in workers}
            time.sleep(0.005)
        raise self.child.failed(f"{self.workers} workers are not READY within {TIMEOUT_MS / 1000:g} s: {workers}")

    def watch(self, topic: str) -> zmq.Socket[bytes]:
        """A subscriber of the events socket that is known to be heard."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(self.events)
        socket.subscribe(topic)
        return socket


def holds(pid: int) -> dict[str, float]:
    """What a process has: RSS in MiB, descriptors, threads, zombies."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children]
    return {
        "rss_mib": memory_mib(pid)["rss"],
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "zombies": states.count("Z"),
    }
