"""Readings through the real nvidia-ml-py: of GPUs of a fake library, and of this machine as it is."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from glmtts.daemon.core.inputs import GpuReading, NvmlReading, Xids
from glmtts.daemon.gpu.nvml import NvmlReader

from ..fake_gpu.fake_gpu import FakeGpus, Listing

MIB = 1 << 20
Open = Callable[..., "Reader"]
MakeGpus = Callable[..., FakeGpus]

#: Reads at the time of each line of its input. A process of its own, because the loader finds a library once.
_READER = """
import json, sys, msgspec
from glmtts.daemon.gpu.nvml import NvmlReader
now = 0.0
reader = NvmlReader(lambda: now, **json.loads(sys.argv[1]))
for line in sys.stdin:
    now = float(line)
    print(msgspec.json.encode(reader.read()).decode(), flush=True)
reader.close()
"""


class Reader:
    """An NvmlReader in a process that sees the fake GPUs, with a clock of its own."""

    def __init__(self, environment: dict[str, str], **options: Any) -> None:
        # The fake library's pids are those of this process, wherever these tests run.
        options = {"host_pids": True, **options}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER, json.dumps(options)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.now = 0.0

    def read(self, later_s: float = 1.0) -> tuple[NvmlReading, list[GpuReading]]:
        """The reading after this time."""
        self.now += later_s
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{self.now}\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=tuple[NvmlReading, list[GpuReading]])

    def gpus(self, later_s: float = 1.0) -> list[GpuReading]:
        return self.read(later_s)[1]

    def close(self) -> None:
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


@pytest.fixture
def open_reader() -> Iterator[Open]:
    opened: list[Reader] = []

    def open_it(gpus: FakeGpus, **options: Any) -> Reader:
        opened.append(Reader(gpus.environment(), **options))
        return opened[-1]

    yield open_it
    for reader in opened:
        reader.close()


def test_gpus_are_shown_with_their_figures(make_fake_gpus: MakeGpus, open_reader: Open) -> None:
    gpus = make_fake_gpus(24_576, 81_920)
    gpus.versions(driver="580.1", nvml="13.580.1")
    gpus.set(1, utilization=37, temperature=66)
    gpus.take(1, 1_000, pid=4_000_001)
    nvml, (first, second) = open_reader(gpus).read()
    assert nvml == NvmlReading(state="ok", driver="580.1", version="13.580.1")
    assert (first.index, first.uuid, first.state, first.total, first.used) == (0, gpus.uuid(0), "ok", 24_576 * MIB, 0)
    assert second == GpuReading(
        index=1,
        uuid=gpus.uuid(1),
        name="Fake GPU",
        total=81_920 * MIB,
        used=1_000 * MIB,
        free=80_920 * MIB,
        utilization=37,
        temperature=66,
        processes={4_000_001: 1_000 * MIB},
    )


@pytest.mark.parametrize(("listing", "memory"), [("none", None), ("zero", None), ("twice", 500 * MIB)])
def test_memory_of_a_process_is_unknown_or_counted_once_however_nvml_lists_it(
    fake_gpus: FakeGpus, open_reader: Open, listing: Listing, memory: int | None
) -> None:
    fake_gpus.take(0, 500, pid=4_000_001)
    fake_gpus.list_as(listing)
    (gpu,) = open_reader(fake_gpus).gpus()
    assert gpu.processes == {4_000_001: memory} and gpu.used == 500 * MIB and gpu.state == "ok"


def test_a_process_that_draws_is_found_as_well(fake_gpus: FakeGpus, open_reader: Open) -> None:
    reader = open_reader(fake_gpus)
    assert reader.gpus()[0].processes == {}
    fake_gpus.take(0, 300, pid=4_000_002, graphics=True)
    assert reader.gpus(10.0)[0].processes == {4_000_002: 300 * MIB}


def test_pids_from_outside_of_a_container_are_not_mistaken_for_those_of_workers(
    fake_gpus: FakeGpus, open_reader: Open
) -> None:
    reader = open_reader(fake_gpus, host_pids=False)
    fake_gpus.take(0, 500, pid=os.getpid())
    assert reader.gpus()[0].processes == {os.getpid(): 500 * MIB}
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    fake_gpus.take(0, 300, pid=nobody)
    nvml, (gpu,) = reader.read()
    assert gpu.processes == {} and gpu.used == 800 * MIB
    assert nvml.state == "ok" and "outside of this container" in nvml.detail


def test_mig_instances_are_devices_of_their_own_numbered_in_a_row(make_fake_gpus: MakeGpus, open_reader: Open) -> None:
    gpus = make_fake_gpus()
    gpus.add(81_920, name="H100", mig=[20_480, 40_960])
    gpus.add(24_576)
    gpus.set(0, temperature=55, utilization=90)
    gpus.take(0, 1_000, pid=4_000_001, instance=1)
    reader = open_reader(gpus)
    first, second, third = reader.gpus()
    assert [first.uuid, second.uuid, third.uuid] == [gpus.uuid(0, 0), gpus.uuid(0, 1), gpus.uuid(1)]
    assert [gpu.index for gpu in (first, second, third)] == [0, 1, 2]
    assert second.uuid.startswith("MIG-") and second.mig and not third.mig
    assert (first.total, first.used, first.processes) == (20_480 * MIB, 0, {})
    assert (second.total, second.used) == (40_960 * MIB, 1_000 * MIB)
    assert second.processes == {4_000_001: 1_000 * MIB}
    # The temperature is the GPU's; NVML does not report the utilization of an instance.
    assert (second.temperature, second.utilization) == (55, None)
    gpus.xid(0, 48)
    assert [gpu.xids.last for gpu in reader.gpus()] == [48, 48, 0], "an error of a GPU is one of all its instances"


def test_a_gpu_in_mig_mode_without_instances_is_reported(make_fake_gpus: MakeGpus, open_reader: Open) -> None:
    gpus = make_fake_gpus()
    gpus.add(81_920, mig=[])
    nvml, devices = open_reader(gpus).read()
    assert devices == [] and nvml.state == "ok" and gpus.uuid(0) in nvml.detail and "nvidia-smi mig" in nvml.detail


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilization"),
        ("nvmlDeviceGetTemperature*", "temperature"),
        ("nvmlDeviceGetMemoryInfo", "used"),
    ],
)
@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "NO_PERMISSION"])
def test_one_unsupported_figure_costs_no_other(
    fake_gpus: FakeGpus, open_reader: Open, call: str, field: str, code: str
) -> None:
    fake_gpus.take(0, 500, pid=4_000_001)
    with fake_gpus.fail(call, code) as fault:
        reader = open_reader(fake_gpus)
        nvml, (gpu,) = reader.read()
        assert gpu.state == "ok" and getattr(gpu, field) is None and gpu.processes == {4_000_001: 500 * MIB}
        assert ("permission" in nvml.detail.lower()) == (code == "NO_PERMISSION")
        asked = fault.hits
        reader.read()
        assert fault.hits == asked, "asked again, though it never answers"


def test_without_permission_for_processes_the_other_figures_are_shown(fake_gpus: FakeGpus, open_reader: Open) -> None:
    fake_gpus.take(0, 500, pid=4_000_001)
    with fake_gpus.fail("nvmlDeviceGetComputeRunningProcesses", "NO_PERMISSION"):
        nvml, (gpu,) = open_reader(fake_gpus).read()
    assert gpu.processes == {} and gpu.used == 500 * MIB and gpu.state == "ok" and "/dev/nvidia" in nvml.detail


@pytest.mark.parametrize(
    ("code", "state", "hint"),
    [
        ("GPU_IS_LOST", "lost", "fell off the bus"),
        ("RESET_REQUIRED", "lost", "--gpu-reset"),
        ("UNKNOWN", "lost", "systemctl daemon-reload"),
        ("TIMEOUT", "failing", "dmesg"),
    ],
)
def test_one_broken_gpu_leaves_the_others_working_and_recovers(
    make_fake_gpus: MakeGpus, open_reader: Open, code: str, state: str, hint: str
) -> None:
    gpus = make_fake_gpus(24_576, 24_576, 24_576)
    reader = open_reader(gpus)
    gpus.take(1, 700, pid=4_000_001)
    reader.read()
    fault = gpus.lose(1, code)
    for later_s in (1.0, 1.0, 15.0, 30.0):
        # NVML is restarted in between, and finds it broken again.
        nvml, (first, broken, third) = reader.read(later_s)
        assert nvml.state == "ok" and (first.state, broken.state, third.state) == ("ok", state, "ok")
        assert (broken.index, broken.uuid, broken.used) == (1, gpus.uuid(1), 700 * MIB)
        assert "GPU 1" in broken.detail and hint in broken.detail
        assert (first.uuid, third.uuid) == (gpus.uuid(0), gpus.uuid(2))
    fault.clear()
    assert [gpu.state for gpu in reader.gpus(120.0)] == ["ok"] * 3
    assert reader.gpus()[1].detail == ""


def test_a_gpu_that_was_broken_from_the_start_keeps_its_number_until_it_works(
    make_fake_gpus: MakeGpus, open_reader: Open
) -> None:
    gpus = make_fake_gpus(24_576, 24_576)
    fault = gpus.lose(0)
    reader = open_reader(gpus)
    broken, well = reader.gpus()
    assert (broken.index, broken.uuid, broken.state) == (0, "", "lost")
    assert (well.index, well.uuid, well.state) == (1, gpus.uuid(1), "ok")
    fault.clear()
    assert [(gpu.index, gpu.uuid, gpu.state) for gpu in reader.gpus(12.0)] == [
        (0, gpus.uuid(0), "ok"),
        (1, gpus.uuid(1), "ok"),
    ]


def test_numbers_of_gpus_stay_when_one_is_no_longer_listed(make_fake_gpus: MakeGpus, open_reader: Open) -> None:
    gpus = make_fake_gpus()
    gpus.add(81_920, mig=[20_480])
    gpus.add(24_576)
    reader = open_reader(gpus)
    reader.read()
    # The instance is destroyed.
    with gpus.fail("nvmlDeviceGetMigDeviceHandleByIndex", "NOT_FOUND"):
        nvml, (gone, other) = reader.read(61.0)
    assert (gone.index, gone.state) == (0, "lost") and "no longer listed" in gone.detail
    assert (other.index, other.uuid, other.state) == (1, gpus.uuid(1), "ok")
    assert nvml.state == "ok"


@pytest.mark.parametrize(
    ("code", "state", "hint"),
    [
        ("DRIVER_NOT_LOADED", "absent", "modprobe nvidia"),
        ("LIB_RM_VERSION_MISMATCH", "failing", "updated under the running system"),
        ("UNKNOWN", "failing", "systemctl daemon-reload"),
    ],
)
def test_a_driver_that_does_not_start_is_tried_again_with_growing_pauses(
    fake_gpus: FakeGpus, open_reader: Open, code: str, state: str, hint: str
) -> None:
    reader = open_reader(fake_gpus)
    with fake_gpus.fail("nvmlInit", code) as fault:
        for _ in range(600):
            nvml, devices = reader.read()
            assert (nvml.state, devices) == (state, []) and hint in nvml.detail
        # Each minute without a driver, else after 10, 20, 40, 80, 160, 300 s.
        assert fault.hits == (10 if state == "absent" else 6)
    assert reader.read(300.0)[0].state == "ok"


def test_a_gpu_that_times_out_is_read_less_often(fake_gpus: FakeGpus, open_reader: Open) -> None:
    reader = open_reader(fake_gpus)
    reader.read()
    with fake_gpus.fail("nvmlDeviceGetMemoryInfo", "TIMEOUT") as fault:
        for _ in range(8):
            assert reader.gpus()[0].state == "failing"
        assert fault.hits <= 4
    assert [reader.gpus(8.0)[0].state] == ["ok"]


def test_when_all_gpus_are_gone_nvml_is_failing_and_their_last_figures_stay(
    make_fake_gpus: MakeGpus, open_reader: Open
) -> None:
    gpus = make_fake_gpus(24_576, 24_576)
    reader = open_reader(gpus)
    reader.read()
    fault = gpus.fail("nvmlDevice*", "UNKNOWN")
    nvml, devices = reader.read()
    assert nvml.state == "failing" and "container" in nvml.detail and nvml.driver
    assert [(gpu.state, gpu.total) for gpu in devices] == [("lost", 24_576 * MIB)] * 2
    # After a restart, even counting them fails.
    nvml, devices = reader.read(11.0)
    assert nvml.state == "failing" and len(devices) == 2
    fault.clear()
    nvml, devices = reader.read(200.0)
    assert nvml.state == "ok" and [gpu.state for gpu in devices] == ["ok", "ok"]


def test_a_machine_without_a_driver_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    # Another test's torch may have imported it.
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    now = 0.0
    reader = NvmlReader(lambda: now)
    nvml, devices = reader.read()
    assert (nvml.state, devices) == ("absent", []) and "libnvidia-ml.so.1" in nvml.detail
    assert reader.quiet_until == 60.0
    assert "pynvml" not in sys.modules, "4 MiB of bindings for nothing"
    reader.close()


# --- errors that GPUs report


def test_errors_of_a_gpu_are_counted_apart_from_those_of_programs(make_fake_gpus: MakeGpus, open_reader: Open) -> None:
    gpus = make_fake_gpus(24_576, 24_576)
    reader = open_reader(gpus)
    assert [gpu.xids for gpu in reader.gpus()] == [Xids(), Xids()]
    for number in (31, 79, 13):
        gpus.xid(1, number)
    assert [gpu.xids for gpu in reader.gpus()] == [Xids(), Xids(2, 1, 13, 79)]
    assert reader.gpus()[1].xids == Xids(2, 1, 13, 79), "none is counted twice"
    gpus.xid(0, 79)
    gpus.lose(0)
    lost = reader.gpus()[0]
    assert (lost.state, lost.xids.last_of_gpu) == ("lost", 79), "counted though the GPU is lost by it"


@pytest.mark.parametrize("call", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait"])
@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "UNKNOWN"])
def test_without_events_everything_else_works(fake_gpus: FakeGpus, open_reader: Open, call: str, error: str) -> None:
    with fake_gpus.fail(call, error):
        reader = open_reader(fake_gpus)
        for _ in range(2):
            fake_gpus.xid(0, 79)
            nvml, (gpu,) = reader.read()
            assert (nvml.state, gpu.state, gpu.total, gpu.xids) == ("ok", "ok", 24_576 * MIB, Xids())


def test_a_storm_of_errors_does_not_delay_the_reader(fake_gpus: FakeGpus, open_reader: Open) -> None:
    reader = open_reader(fake_gpus)
    reader.read()
    for _ in range(60):
        fake_gpus.xid(0, 94)
    counted = [reader.gpus()[0].xids.of_gpu for _ in range(2)]
    assert counted == [60, 60]
