"""Samples of GPUs, worker processes and host memory, taken in threads of their own.

One thread takes the samples. NVML has another, because any call of it may block for ever: samples then continue without
it, and say so. The loop only takes a lock that is never held for longer than a few assignments.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from ..core.inputs import GpuReading, NvmlReading, ProcessReading, Sampled
from .host_memory import HostMemory
from .nvml import NvmlReader
from .process_tree import descendants

#: The least time between two samples on request.
_APART_S = 0.02
#: A wait that ends this much too late, in seconds, was no wait: this process stood still.
_LATE_S = 0.2
#: How long close() waits for the sample in progress, which without NVML takes a millisecond.
_CLOSE_S = 1.0
#: Indexes behind the name in /proc/PID/stat, where proc(5) counts from 3.
_STARTED, _RSS = 22 - 3, 24 - 3
_PAGE_BYTES = resource.getpagesize()


class Sampler:
    """Owns the sampling thread and the newest sample, taken regularly and on request."""

    def __init__(
        self,
        wakeup_fd: int,
        clock: Callable[[], float],
        *,
        use_nvml: bool,
        interval_s: float = 1.0,
        slow_interval_s: float = 10.0,
        nvml_bound_s: float = 2.0,
        reader: Callable[[], NvmlReader] = NvmlReader,
    ) -> None:
        """
        Args:
            wakeup_fd: written to when there is a sample to collect.
            clock: monotonic seconds.
            interval_s: between samples while there are workers and NVML; ``slow_interval_s`` otherwise.
            nvml_bound_s: how long a sample waits for NVML.
        """
        self._wakeup_fd = wakeup_fd
        self._clock = clock
        self._interval_s, self._slow_interval_s = interval_s, slow_interval_s
        self._lock = threading.Condition(threading.Lock())
        self._closed = False
        self._thread: threading.Thread | None = None
        self._watched: dict[int, int] = {}
        self._asked = False
        self._latest: Sampled | None = None
        self._processes = _ProcessTable(with_descendants=use_nvml)
        self._host = HostMemory(clock)
        self._nvml = _NvmlThread(self._lock, clock, reader, nvml_bound_s, self._ask) if use_nvml else None

    # --- in the loop

    def watch(self, incarnation: int, pid: int) -> None:
        """Sample this process, one incarnation of a worker, from now on."""
        with self._lock:
            self._watched[incarnation] = pid
            self._wake()

    def unwatch(self, incarnation: int) -> None:
        """Stop sampling a process."""
        with self._lock:
            self._watched.pop(incarnation, None)

    def now(self) -> None:
        """Take a sample that begins after this call, as soon as possible."""
        with self._lock:
            self._ask()

    def collect(self) -> list[Sampled]:
        """The newest sample since the last call, or none; older ones are dropped."""
        with self._lock:
            latest, self._latest = self._latest, None
        return [] if latest is None else [latest]

    def close(self) -> None:
        """Stop the threads; one that is blocked in NVML is abandoned."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._nvml is not None:
            self._nvml.close()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    # --- in either, with the lock held

    def _ask(self) -> None:
        self._asked = True
        self._wake()

    def _wake(self) -> None:
        if self._thread is None and not self._closed:
            thread = threading.Thread(target=self._run, name="sampler", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be made now; the next call tries again
                thread.start()
                self._thread = thread
        self._lock.notify_all()

    # --- in the thread

    def _run(self) -> None:
        began = float("-inf")
        gpus: list[GpuReading] = []
        while (watched := self._wait(began)) is not None:
            began = self._clock()
            try:
                sampled = self._sample(began, watched)
            except Exception as error:
                # A bug: shown as NVML's state; the next sample may succeed.
                detail = f"the sampler met an error: {type(error).__name__}: {error}"
                nvml = NvmlReading(state="failing", detail=detail)
                sampled = Sampled(at=began, nvml=nvml, gpus=_failing(gpus, detail))
            gpus = sampled.gpus
            with self._lock:
                if self._closed:
                    return
                self._latest = sampled
                # A full pipe wakes the loop as well.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wakeup_fd, b"\0")

    def _wait(self, began: float) -> dict[int, int] | None:
        """Wait until a sample is due or requested; returns the processes to read, None at the end."""
        with self._lock:
            while not self._closed:
                due = began + (_APART_S if self._asked else self._pause_s())
                left_s = due - self._clock()
                if left_s <= 0:
                    self._asked = False
                    return dict(self._watched)
                self._lock.wait(left_s if left_s < threading.TIMEOUT_MAX else None)
            return None

    def _pause_s(self) -> float:
        if self._nvml is None:
            # Only the memory of workers changes between requests.
            return self._slow_interval_s if self._watched else float("inf")
        return self._interval_s if self._watched and not self._nvml.absent else self._slow_interval_s

    def _sample(self, began: float, watched: dict[int, int]) -> Sampled:
        nvml, gpus = NvmlReading(detail="not used"), list[GpuReading]()
        if self._nvml is not None:
            # First, because it may take long, and the figures of /proc are to be fresh.
            nvml, gpus = self._nvml.read(began)
        processes = self._processes.read(watched)
        total: int | None = None
        available: int | None = None
        with contextlib.suppress(OSError):  # no descriptor may be left
            total, available = self._host.read()
        return Sampled(at=began, gpus=gpus, processes=processes, nvml=nvml, host_total=total, host_available=available)


class _NvmlThread:
    """Owns the NVML reader and its single thread, however long that is blocked. Shares the sampler's lock."""

    def __init__(
        self,
        lock: threading.Condition,
        clock: Callable[[], float],
        reader: Callable[[], NvmlReader],
        bound_s: float,
        on_late: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._reader = reader()
        self._bound_s = bound_s
        #: Called with the lock held when a reading ends after its bound.
        self._on_late = on_late
        self._thread: threading.Thread | None = None
        self._closed = False
        self._began: float | None = None
        self._late = False
        self._known: tuple[NvmlReading, list[GpuReading]] = (NvmlReading(detail="not sampled yet"), [])

    @property
    def absent(self) -> bool:
        return self._known[0].state == "absent"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def read(self, now: float) -> tuple[NvmlReading, list[GpuReading]]:
        """A reading that began at ``now`` or later; after the bound, the last one, marked as blocked."""
        with self._lock:
            if self._began is None:
                if now < self._reader.quiet_until:
                    return self._known
                self._began, self._late = now, False
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="nvml", daemon=True)
                    with contextlib.suppress(RuntimeError):
                        thread.start()
                        self._thread = thread
                self._lock.notify_all()
                looked = False
                while self._began is not None and not self._closed:
                    left_s = now + self._bound_s - self._clock()
                    if left_s <= 0:
                        if looked or left_s > -_LATE_S:
                            break
                        # This process stood still, and NVML's thread with it, which has its answer in a moment.
                        looked, left_s = True, _LATE_S
                    self._lock.wait(left_s)
            if self._began is None:
                return self._known
            self._late = True
            return self._blocked(self._began)

    def _blocked(self, began: float) -> tuple[NvmlReading, list[GpuReading]]:
        nvml, gpus = self._known
        now = self._clock()
        call, since = self._reader.call or ("NVML", began)
        if now - since >= self._bound_s:
            detail = f"{call} has not returned for {now - since:.0f} s"
        else:
            detail = f"NVML is slow: in {call}, {now - began:.0f} s after the first call of this reading"
        detail += (
            ": a GPU or its driver hangs (see 'dmesg' for Xid messages), or starts slowly without persistence mode"
        )
        return structs.replace(nvml, state="blocked", detail=detail), _failing(gpus, f"not known now: {detail}")

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._began is None and not self._closed:
                    self._lock.wait()
                if self._closed:
                    break
            try:
                known = self._reader.read()
            except Exception as error:
                detail = f"reading NVML met an error: {type(error).__name__}: {error}"
                nvml, gpus = self._known
                known = structs.replace(nvml, state="failing", detail=detail), _failing(gpus, detail)
            with self._lock:
                self._known = known
                self._began = None
                if self._late and not self._closed:
                    self._on_late()
                self._lock.notify_all()
        self._reader.close()


def _failing(gpus: list[GpuReading], detail: str) -> list[GpuReading]:
    """The last readings of GPUs, marked as failing."""
    return [structs.replace(gpu, state="failing", detail=detail) if gpu.state == "ok" else gpu for gpu in gpus]


class _ProcessTable:
    """Reads worker processes from /proc, in a third of the time of psutil: an idle daemon does little else."""

    def __init__(self, *, with_descendants: bool) -> None:
        self._with_descendants = with_descendants
        #: The pid and start time of each incarnation, which tell it from a later process with the same pid.
        self._started: dict[int, tuple[int, bytes]] = {}

    def read(self, watched: dict[int, int]) -> list[ProcessReading]:
        """The living processes of ``watched``, which has the pid of each incarnation."""
        self._started = {n: known for n, known in self._started.items() if watched.get(n) == known[0]}
        found = []
        for incarnation, pid in watched.items():
            fields = _stat(f"/proc/{pid}/stat")
            if fields is None or self._started.setdefault(incarnation, (pid, fields[_STARTED]))[1] != fields[_STARTED]:
                continue
            state = _state_of_threads(pid) if fields[0] == b"Z" else fields[0].decode()
            rss = int(fields[_RSS]) * _PAGE_BYTES
            children = tuple(descendants(pid)) if self._with_descendants else ()
            found.append(ProcessReading(incarnation=incarnation, pid=pid, rss=rss, state=state, descendants=children))
        return found


def _stat(path: str) -> list[bytes] | None:
    """The fields behind the name in a ``stat`` of /proc, the state first; None if the process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096).rpartition(b") ")[2].split()
        finally:
            os.close(fd)
    except OSError:
        return None


def _state_of_threads(pid: int) -> str:
    """The state of a process whose first thread has ended: ``D`` if another one is stuck, as in a driver's call."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            fields = _stat(f"{thread}/stat")
            if fields is not None and fields[0] == b"D":
                return "D"
    return "Z"
