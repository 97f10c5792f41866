"""The processes under test: started in groups of their own, measured through /proc, and ended for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil

MIB = 1024 * 1024


class NotMeasured(Exception):
    """A part of the benchmark could not be measured; the message says why."""


class Child:
    """A process under test. Its output goes to ``folder/NAME.log``, of which errors show the end."""

    def __init__(self, name: str, argv: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.exec_at = time.perf_counter()
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | (env or {}),
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def failed(self, what: str) -> NotMeasured:
        """The error for a part that this process spoilt, with the last lines that it wrote."""
        code = self.process.poll()
        state = "is running" if code is None else f"ended with status {code}"
        tail = self.log.read_text(errors="replace").strip().splitlines()[-6:]
        return NotMeasured("\n    ".join([f"{what}; {self.name} {state}", *tail]))

    def wait_until(self, true: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        """Look every millisecond until ``true()``. Raises NotMeasured after ``timeout_s``, or when the process ends."""
        deadline = time.perf_counter() + timeout_s
        while not true():
            if self.process.poll() is not None or time.perf_counter() > deadline:
                raise self.failed(f"{what}: not seen within {timeout_s:g} s")
            time.sleep(0.001)

    def descendants(self) -> list[psutil.Process]:
        """Its children and theirs, as far as they are still there."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self, grace_s: float = 5.0) -> None:
        """End it: asked first, killed after ``grace_s``, and whatever it leaves behind with it."""
        # Workers have sessions of their own, so the group of the parent alone does not reach them.
        family = self.descendants()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in family:
            try:
                process.kill()  # psutil compares start times: a recycled pid is not hit
            except psutil.NoSuchProcess:
                continue
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time that the live threads of ``pids`` have used, in seconds.

    From the scheduler's own nanoseconds (proc_pid_schedstat): the ticks of /proc/PID/stat are 10 ms long, which is as
    much as a hundred jobs.
    """
    total = 0
    for pid in pids:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue
    return total / 1e9


def memory_mib(pid: int) -> dict[str, float]:
    """RSS, PSS and what is the process's own alone, in MiB."""
    sums = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        if key in sums:
            sums[key] += int(value.split()[0]) * 1024
    private = sums["Private_Clean"] + sums["Private_Dirty"]
    return {"rss": sums["Rss"] / MIB, "pss": sums["Pss"] / MIB, "private": private / MIB}
