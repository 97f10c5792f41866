"""What is compared: the two limits, the daemon with all events and with the final one alone, and the peer."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
from daemon_under_test import Daemon
from load import Load, Throughput, ZmqLoad
from load_http import HttpConnection, HttpLoad, encode
from processes import Child, NotMeasured, cpu_s

HERE = Path(__file__).parent
TEXT = "今天天气不错，我们去公园走走。"


@dataclass(slots=True)
class Subject:
    """One row of the table: whom to load and whose processor time to count. Rounds are gathered in the lists."""

    name: str
    load: Load
    broker_pids: Sequence[int]
    worker_pids: Sequence[int]
    trips_s: list[float] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)
    #: Processor time of broker, worker and load while jobs came one by one, and while many were outstanding.
    sequential_cpu_s: list[tuple[float, float, float]] = field(default_factory=list)
    outstanding_cpu_s: list[tuple[float, float, float]] = field(default_factory=list)
    failure: str = ""

    def sequential_round(self, jobs: int) -> None:
        """One round of jobs one by one."""
        before = self._cpu()
        self.trips_s += self.load.sequential(jobs)
        self.sequential_cpu_s.append(_since(before, self._cpu()))

    def outstanding_round(self, seconds: float, each: int) -> None:
        """One round of many jobs at once."""
        before = self._cpu()
        self.throughputs.append(self.load.outstanding(seconds, each))
        self.outstanding_cpu_s.append(_since(before, self._cpu()))

    def _cpu(self) -> tuple[float, float, float]:
        return cpu_s(self.broker_pids), cpu_s(self.worker_pids), cpu_s([os.getpid()])


def _since(before: tuple[float, float, float], after: tuple[float, float, float]) -> tuple[float, float, float]:
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def limit(stack: ExitStack, name: str, program: str, folder: Path, audio_bytes: int) -> Subject:
    """A limit: ``program`` between clients and the echo worker."""
    stem = Path(program).stem
    front, back = (f"ipc://{folder}/{stem}-{side}.sock" for side in ("front", "back"))
    broker = stack.enter_context(Child(stem, [sys.executable, str(HERE / program), front, back], folder))
    worker_argv = [sys.executable, str(HERE / "echo_worker.py"), back, str(audio_bytes)]
    worker = stack.enter_context(Child(f"{stem}-worker", worker_argv, folder))
    load = ZmqLoad(front, {"op": "synthesize", "text": TEXT, "format": "pcm_s16le"})
    stack.callback(load.close)
    load.sequential(50)
    return Subject(name, load, [broker.pid], [worker.pid])


def synthesize(audio_bytes: int, **more: Any) -> dict[str, Any]:
    """The request for the daemon: ``audio_bytes`` of 16-bit tone at the fault engine's own rate, made at once."""
    options = {"fault": "audio", "seconds": audio_bytes / 2 / 24_000}
    return {"op": "synthesize", "text": TEXT, "format": "pcm_s16le", "options": options, **more}


def daemon_subject(stack: ExitStack, name: str, daemon: Daemon, request: dict[str, Any]) -> Subject:
    """The daemon, asked for ``request``."""
    load = ZmqLoad(daemon.requests, request)
    stack.callback(load.close)
    load.sequential(50)
    return Subject(name, load, [daemon.child.pid], daemon.worker_pids())


class Mosec:
    """A mosec service with one worker, on a free port of the loopback interface (it offers no other transport)."""

    def __init__(self, stack: ExitStack, folder: Path, audio_bytes: int) -> None:
        if importlib.util.find_spec("mosec") is None:
            raise NotMeasured("mosec is not installed (pip install 'glmtts-supervisor[bench]')")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        argv = [sys.executable, str(HERE / "mosec_peer.py"), "--address", "127.0.0.1", "--port", str(self.port)]
        env = {"BENCH_AUDIO_BYTES": str(audio_bytes)}
        self.child = Child("mosec", [*argv, "--log-level", "warning"], folder, env)
        stack.callback(self.child.stop)
        answer: dict[str, Any] = {}

        def answered() -> bool:
            try:
                connection = HttpConnection(self.port)
                status, body = connection.call(encode({"pid": True}))
            except OSError:
                return False
            connection.close()
            if status == 200:
                answer.update(msgpack.unpackb(body))
            return status == 200

        self.child.wait_until(answered, "the first answer")
        self.ready_s = time.perf_counter() - self.child.exec_at
        self.worker_pid: int = answer["pid"]

    def broker_pids(self) -> list[int]:
        """Every process of the service but its worker."""
        pids = [self.child.pid, *(process.pid for process in self.child.descendants())]
        return [pid for pid in pids if pid != self.worker_pid]


def mosec_subject(stack: ExitStack, name: str, folder: Path, audio_bytes: int) -> tuple[Subject, Mosec]:
    """The peer, asked over 64 connections."""
    service = Mosec(stack, folder, audio_bytes)
    load = HttpLoad(service.port, {"op": "synthesize", "text": TEXT, "format": "pcm_s16le"}, audio_bytes)
    stack.callback(load.close)
    load.sequential(50)
    return Subject(name, load, service.broker_pids(), [service.worker_pid]), service


def mosec_kill_s(folder: Path, audio_bytes: int) -> float:
    """Seconds from the SIGKILL of a mosec worker in mid-job until its client hears of it."""
    with ExitStack() as stack:
        service = Mosec(stack, folder, audio_bytes)
        connection = HttpConnection(service.port)
        stack.callback(connection.close)
        connection.socket.sendall(encode({"sleep_s": 30}))
        time.sleep(0.2)  # nothing tells from outside that the worker has begun
        begin = time.perf_counter()
        os.kill(service.worker_pid, 9)
        try:
            while connection.receive() is None:
                pass
        except ConnectionError:
            pass  # hearing that the connection is gone is an answer as well
        return time.perf_counter() - begin
