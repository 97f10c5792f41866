"""Sampling: figures stay fresh and the loop is not delayed, whatever NVML does."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glmtts.daemon.core.inputs import GpuReading, NvmlReading, Sampled
from glmtts.daemon.gpu.nvml import NvmlReader
from glmtts.daemon.gpu.sampler import Sampler

from ..fake_gpu.fake_gpu import FakeGpus

MIB = 1 << 20
PATIENCE_S = 20.0
Open = Callable[..., "Loop"]

#: A loop like the supervisor's: commands come on stdin, and every collected sample is a line of stdout.
_LOOP = """
import json, os, select, sys, threading, time, msgspec
from glmtts.daemon.gpu.sampler import Sampler

read_end, write_end = os.pipe()
os.set_blocking(read_end, False)
os.set_blocking(write_end, False)
sampler = Sampler(write_end, time.monotonic, use_nvml=True, **json.loads(sys.argv[1]))
longest = 0.0

def timed(call, *arguments):
    global longest
    began = time.perf_counter()
    result = call(*arguments)
    longest = max(longest, time.perf_counter() - began)
    return result

while True:
    ready = select.select([0, read_end], [], [])[0]
    if read_end in ready:
        os.read(read_end, 512)
        for sampled in timed(sampler.collect):
            print(msgspec.json.encode(sampled).decode(), flush=True)
    if 0 in ready:
        command, *arguments = os.read(0, 1 << 16).decode().split() or ["close"]
        if command == "facts":
            facts = {"longest": longest, "threads": sorted(thread.name for thread in threading.enumerate())}
            print(json.dumps(facts | {"cpu": time.process_time()}), flush=True)
        elif command == "close":
            timed(sampler.close)
            print(json.dumps({"longest": longest}), flush=True)
            break
        else:
            timed(getattr(sampler, command), *map(int, arguments))
            print("{}", flush=True)
"""


class Loop:
    """A sampler in a process that sees the fake GPUs."""

    def __init__(self, gpus: FakeGpus, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, json.dumps(options)],
            env=os.environ | gpus.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._buffer = b""
        self._samples: list[Sampled] = []
        self.pid = self._process.pid

    def tell(self, *command: object) -> dict[str, Any]:
        """Give a command, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, command)).encode())
        while b'"at"' in (line := self._line()):
            self._samples.append(msgspec.json.decode(line, type=Sampled))
        return dict(json.loads(line))

    def sample(self) -> Sampled:
        """The next sample that is collected."""
        if self._samples:
            return self._samples.pop(0)
        return msgspec.json.decode(self._line(), type=Sampled)

    def until(self, condition: Callable[[Sampled], bool], what: str) -> Sampled:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            sampled = self.sample()
            if condition(sampled):
                return sampled
        raise AssertionError(f"not within {PATIENCE_S} s: {what}; last: {sampled}")

    def close(self) -> dict[str, Any]:
        """End it, within a second; returns its facts."""
        if self._process.poll() is not None:
            return {}
        facts = self.tell("close")
        assert self._process.wait(timeout=2.0) == 0
        return facts

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no answer within {PATIENCE_S} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            assert chunk, "the loop ended"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


@pytest.fixture
def open_loop() -> Iterator[Open]:
    opened: list[Loop] = []

    def open_it(gpus: FakeGpus, **options: Any) -> Loop:
        opened.append(Loop(gpus, **options))
        return opened[-1]

    yield open_it
    for loop in opened:
        loop.kill()


class Here:
    """A sampler in this process, without GPUs."""

    def __init__(self, **options: Any) -> None:
        self.read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self.sampler = Sampler(self._write_end, time.monotonic, **{"use_nvml": False, **options})

    def sample(self, patience_s: float = PATIENCE_S) -> Sampled:
        """The next sample."""
        deadline = time.monotonic() + patience_s
        while select.select([self.read_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.read(self.read_end, 512)
            if found := self.sampler.collect():
                return found[0]
        raise AssertionError(f"no sample within {patience_s} s")

    def until(self, condition: Callable[[Sampled], bool]) -> Sampled:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.sampler.now()
            if condition(sampled := self.sample()):
                return sampled
            assert time.monotonic() < deadline, sampled

    def close(self) -> None:
        self.sampler.close()
        os.close(self.read_end)
        os.close(self._write_end)


@pytest.fixture
def here() -> Iterator[Here]:
    made = Here()
    yield made
    made.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


# --- processes and the host


def test_a_worker_s_memory_and_state_are_shown_until_it_is_gone(here: Here, child: subprocess.Popen[bytes]) -> None:
    here.sampler.watch(7, child.pid)
    here.sampler.now()
    (process,) = here.sample().processes
    assert (process.incarnation, process.pid) == (7, child.pid) and (process.rss or 0) > 100_000
    child.send_signal(signal.SIGSTOP)
    here.until(lambda sampled: sampled.processes[0].state == "T")
    child.kill()
    # Not reaped yet: a zombie.
    here.until(lambda sampled: sampled.processes[0].state == "Z")
    child.wait()
    here.until(lambda sampled: sampled.processes == [])
    here.sampler.unwatch(7)


def test_another_process_of_the_same_incarnation_is_told_apart(here: Here, child: subprocess.Popen[bytes]) -> None:
    here.sampler.watch(7, os.getpid())
    here.sampler.now()
    assert here.sample().processes[0].pid == os.getpid()
    here.sampler.watch(7, child.pid)
    here.until(lambda sampled: sampled.processes[0].pid == child.pid)


#: Stuck in the kernel as in a driver's call: a vfork whose child waits for a pipe's other end. With an argument, the
#: process's first thread ends while another is stuck.
_STUCK = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)

def stick():
    actions = ctypes.create_string_buffer(512)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 0, sys.argv[1].encode(), os.O_RDONLY, 0)
    nothing = (ctypes.c_char_p * 1)(None)
    print("stuck", flush=True)
    libc.posix_spawn(ctypes.byref(ctypes.c_int()), b"/bin/true", actions, None, nothing, nothing)

if sys.argv[2]:
    threading.Thread(target=stick).start()
    libc.syscall(int(sys.argv[2]), 0)
else:
    stick()
"""
_SYS_EXIT = {"x86_64": "60", "aarch64": "93"}.get(platform.machine(), "")


@pytest.mark.parametrize("first_thread_ends", [False, True])
def test_a_process_that_can_not_be_killed_now_is_shown_as_stuck(
    here: Here, tmp_path: Path, first_thread_ends: bool
) -> None:
    if first_thread_ends and not _SYS_EXIT:
        pytest.skip("the number of exit(2) on this machine is not known to this test")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", _STUCK, str(pipe), _SYS_EXIT if first_thread_ends else ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"stuck\n"
        here.sampler.watch(1, process.pid)
        here.until(lambda sampled: sampled.processes[0].state == "D")
    finally:
        process.kill()
        # Its child waits for this end, which stays open until the child is gone.
        end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        try:
            process.communicate()
        finally:
            os.close(end)


# --- pace


def test_a_requested_sample_begins_after_the_request(here: Here) -> None:
    for _ in range(20):
        asked = time.monotonic()
        here.sampler.now()
        while here.sample().at < asked:
            pass
        assert time.monotonic() - asked < 5.0


def test_a_thousand_requests_are_few_samples(here: Here) -> None:
    began = time.monotonic()
    samples = 0
    for _ in range(1_000):
        here.sampler.now()
        samples += len(here.sampler.collect())
        time.sleep(0.0002)
    assert samples <= (time.monotonic() - began) / 0.02 + 2


def test_without_workers_and_gpus_nothing_is_sampled(child: subprocess.Popen[bytes]) -> None:
    here = Here(slow_interval_s=0.03)
    try:
        before = threading.active_count()
        assert not select.select([here.read_end], [], [], 0.1)[0] and before == threading.active_count()
        here.sampler.watch(1, child.pid)
        first, second = here.sample(), here.sample()
        assert second.at - first.at >= 0.03
        here.sampler.unwatch(1)
        with pytest.raises(AssertionError, match="no sample"):
            for _ in range(3):
                here.sample(0.3)
    finally:
        here.close()


def test_samples_that_are_not_collected_do_not_pile_up(here: Here) -> None:
    here.sampler.now()
    os.read(here.read_end, 1)
    asked = time.monotonic()
    here.sampler.now()
    os.read(here.read_end, 1)
    (newest,) = here.sampler.collect()
    assert newest.at >= asked and here.sampler.collect() == []


def test_no_thread_is_left_after_close(child: subprocess.Popen[bytes]) -> None:
    before = threading.active_count()
    here = Here()
    here.sampler.watch(1, child.pid)
    here.sampler.now()
    here.sample()
    here.close()
    assert threading.active_count() == before
    here.sampler.now()
    here.sampler.watch(2, child.pid)
    assert threading.active_count() == before


# --- NVML


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_has_its_processes_sampled_slowly(child: subprocess.Popen[bytes]) -> None:
    here = Here(use_nvml=True, interval_s=0.01, slow_interval_s=0.2)
    try:
        here.sampler.watch(1, child.pid)
        first, second = here.sample(), here.sample()
        assert first.nvml.state == second.nvml.state == "absent" and "libnvidia-ml.so.1" in first.nvml.detail
        assert first.gpus == [] and [process.pid for process in second.processes] == [child.pid]
        assert second.at - first.at >= 0.2
    finally:
        here.close()


class _Broken(NvmlReader):
    def read(self) -> tuple[NvmlReading, list[GpuReading]]:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_reading_nvml_is_reported_and_costs_the_gpus_figures_only(child: subprocess.Popen[bytes]) -> None:
    here = Here(use_nvml=True, interval_s=0.01, reader=_Broken)
    try:
        here.sampler.watch(1, child.pid)
        for sampled in (here.sample(), here.sample()):
            assert sampled.nvml.state == "failing" and "ZeroDivisionError: a bug" in sampled.nvml.detail
            assert sampled.processes[0].rss and sampled.host_total
    finally:
        here.close()


def test_gpus_and_workers_are_sampled_every_interval(
    fake_gpus: FakeGpus, open_loop: Open, child: subprocess.Popen[bytes]
) -> None:
    fake_gpus.take(0, 500, pid=child.pid)
    loop = open_loop(fake_gpus, interval_s=0.05, slow_interval_s=60.0)
    loop.tell("watch", 1, child.pid)
    first, second = loop.sample(), loop.sample()
    assert second.at - first.at >= 0.05
    assert first.nvml.state == "ok" and first.gpus[0].used == 500 * MIB
    assert first.gpus[0].processes == {child.pid: 500 * MIB} and first.processes[0].rss
    loop.close()


def test_a_hanging_nvml_is_reported_while_workers_are_still_sampled(
    fake_gpus: FakeGpus, open_loop: Open, child: subprocess.Popen[bytes]
) -> None:
    fake_gpus.take(0, 500, pid=child.pid)
    loop = open_loop(fake_gpus, interval_s=0.05, nvml_bound_s=0.2)
    loop.tell("watch", 1, child.pid)
    loop.until(lambda sampled: sampled.nvml.state == "ok", "NVML is well")
    with fake_gpus.delay("nvmlDeviceGetMemoryInfo", 60.0) as fault:
        fault.until_hit()
        sampled = loop.until(lambda sampled: sampled.nvml.state == "blocked", "NVML is blocked")
        assert "nvmlDeviceGetMemoryInfo (GPU 0)" in sampled.nvml.detail and sampled.nvml.driver
        (gpu,) = sampled.gpus
        assert (gpu.state, gpu.used) == ("failing", 500 * MIB) and "nvmlDeviceGetMemoryInfo" in gpu.detail
        # The figures of /proc are as fresh and as frequent as before.
        child.send_signal(signal.SIGSTOP)
        loop.until(lambda sampled: sampled.processes[0].state == "T", "the worker is stopped")
        samples = [loop.sample() for _ in range(10)]
        assert all(0.03 < later.at - earlier.at < 1.0 for earlier, later in pairwise(samples))
        # No second call is made meanwhile.
        for _ in range(5):
            loop.tell("now")
        facts = loop.tell("facts")
        assert facts["threads"] == ["MainThread", "nvml", "sampler"] and fault.inside == 1
        assert facts["longest"] < 0.1, "the loop was stalled"
    sampled = loop.until(lambda sampled: sampled.nvml.state == "ok", "NVML is well again")
    assert (sampled.gpus[0].state, sampled.gpus[0].detail, sampled.nvml.detail) == ("ok", "", "")
    loop.close()


def test_the_return_of_nvml_is_seen_at_once(fake_gpus: FakeGpus, open_loop: Open) -> None:
    # Long enough for the bindings to be loaded, which comes before the call that hangs.
    loop = open_loop(fake_gpus, interval_s=60.0, slow_interval_s=60.0, nvml_bound_s=1.5)
    with fake_gpus.delay("nvmlInit", 60.0) as fault:
        loop.tell("now")
        fault.until_hit()
        sampled = loop.sample()
        assert (sampled.nvml.state, sampled.gpus) == ("blocked", []) and "nvmlInit" in sampled.nvml.detail
    assert loop.sample().nvml.state == "ok"
    loop.close()


def test_close_does_not_wait_for_a_hanging_nvml(fake_gpus: FakeGpus, open_loop: Open) -> None:
    loop = open_loop(fake_gpus, nvml_bound_s=60.0)
    with fake_gpus.delay("nvmlDeviceGetMemoryInfo", 60.0) as fault:
        loop.tell("now")
        fault.until_hit()
        assert loop.close()["longest"] < 5.0


def test_a_slow_reading_is_not_shown_as_fresh(fake_gpus: FakeGpus, open_loop: Open) -> None:
    loop = open_loop(fake_gpus, interval_s=0.05, slow_interval_s=0.05, nvml_bound_s=0.15)
    with fake_gpus.delay("nvmlDeviceGet*", 0.1):
        loop.tell("now")
        loop.until(lambda sampled: bool(sampled.gpus), "the first reading has ended")
        fake_gpus.take(0, 700, pid=1)
        sampled = loop.until(lambda sampled: sampled.gpus[0].used == 700 * MIB, "what is known is renewed")
        assert sampled.nvml.state == "blocked" and "slow" in sampled.nvml.detail and sampled.gpus[0].state == "failing"
    loop.until(lambda sampled: sampled.nvml.state == "ok" and sampled.gpus[0].state == "ok", "it is fast again")
    loop.close()


def test_eight_gpus_and_sixteen_workers_cost_less_than_a_hundredth_of_a_core(
    make_fake_gpus: Callable[..., FakeGpus], open_loop: Open
) -> None:
    gpus = make_fake_gpus(*[81_920] * 8)
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(16)]
    try:
        loop = open_loop(gpus, interval_s=0.1)
        for number, child in enumerate(children):
            gpus.take(number // 2, 8_000, pid=child.pid)
            loop.tell("watch", number, child.pid)
        loop.until(lambda sampled: len(sampled.processes) == 16, "all are sampled")
        before = loop.tell("facts")["cpu"]
        samples = 0
        while samples < 15:
            loop.sample()
            samples += 1
        cost_s = (loop.tell("facts")["cpu"] - before) / samples
        # There is one sample a second. This loop's own printing of it is in the figure too.
        assert cost_s < 0.01
        loop.close()
    finally:
        for child in children:
            child.kill()
            child.wait()
