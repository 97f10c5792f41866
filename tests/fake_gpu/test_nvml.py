"""tests/fake_gpu/nvml.c with the real pynvml: what the sampler is tested on has to behave as a driver does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from .fake_gpu import MIB, FakeGpus
from .probe import Probe, ProbeError

FIRST = "n.nvmlDeviceGetHandleByIndex(0)"
PROCESSES = f"[(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses({FIRST})]"


@pytest.fixture
def probe(fake_gpus: FakeGpus) -> Iterator[Probe]:
    with Probe(fake_gpus.environment()) as probe:
        probe("n.nvmlInit()")
        yield probe


def test_a_machine_looks_as_nvml_would_show_it(make_fake_gpus: Callable[..., FakeGpus]) -> None:
    gpus = make_fake_gpus(24_576)
    gpus.add(81_920, name="NVIDIA H100 80GB HBM3", uuid="GPU-1234", reserved_mib=500)
    gpus.versions(driver="535.54.03", nvml="12.535.54.03")
    gpus.set(1, utilization=87, temperature=66, power_mw=350_000)
    with Probe(gpus.environment()) as probe:
        probe("n.nvmlInit()")
        assert probe("[n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetNVMLVersion()]") == ["535.54.03", "12.535.54.03"]
        assert probe("n.nvmlSystemGetCudaDriverVersion_v2()") == 13_000
        assert probe("n.nvmlDeviceGetCount()") == 2
        assert probe(f"n.nvmlDeviceGetUUID({FIRST})") == gpus.uuid(0)
        probe("h = n.nvmlDeviceGetHandleByUUID('GPU-1234')")
        assert probe("[n.nvmlDeviceGetIndex(h), n.nvmlDeviceGetName(h)]") == [1, "NVIDIA H100 80GB HBM3"]
        assert probe("n.nvmlDeviceGetUtilizationRates(h).gpu") == 87
        assert probe("[n.nvmlDeviceGetTemperature(h, 0), n.nvmlDeviceGetTemperatureV(h, 0)]") == [66, 66]
        assert probe("n.nvmlDeviceGetPowerUsage(h)") == 350_000
        assert probe("n.nvmlDeviceGetPciInfo(h).busId") == "00000000:02:00.0"
        assert probe("n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(b'00000000:02:00.0'))") == 1
        assert probe("[n.nvmlDeviceGetPersistenceMode(h), n.nvmlDeviceGetComputeMode(h)]") == [1, 0]
        first = probe("(lambda m: [m.total, m.used, m.free])(n.nvmlDeviceGetMemoryInfo(h))")
        second = probe(
            "(lambda m: [m.total, m.reserved, m.used, m.free])(n.nvmlDeviceGetMemoryInfo(h, n.nvmlMemory_v2))"
        )
        assert first == [81_920 * MIB, 500 * MIB, 81_420 * MIB]
        assert second == [81_920 * MIB, 500 * MIB, 0, 81_420 * MIB]


def test_a_process_s_memory_is_seen_while_it_lives_and_for_a_while_after(fake_gpus: FakeGpus, probe: Probe) -> None:
    fake_gpus.take(0, 1_000, pid=4711)
    fake_gpus.take(0, 10)
    with Probe(fake_gpus.environment()) as other:
        other("gpu = FaultGpu(); gpu.take(500 * MIB)")
        assert sorted(probe(PROCESSES)) == sorted([[other.pid, 800 * MIB], [4711, 1_000 * MIB]])
        assert fake_gpus.holders() == {other.pid: 800 * MIB} and fake_gpus.held_by(other.pid) == 800 * MIB
        assert probe(f"n.nvmlDeviceGetMemoryInfo({FIRST}).used") == fake_gpus.used(0) == 1_810 * MIB
        fake_gpus.release_delay_s = 0.3
        other.kill()
        assert fake_gpus.used(0) == 1_810 * MIB and fake_gpus.holders() == {}
        died = time.monotonic()
    assert probe(PROCESSES) == [[4711, 1_000 * MIB]]
    fake_gpus.until(lambda: probe(f"n.nvmlDeviceGetMemoryInfo({FIRST}).used") == 1_010 * MIB, "it is released")
    assert 0.29 < time.monotonic() - died < 2.0 and fake_gpus.used(0) == 1_010 * MIB


@pytest.mark.parametrize(
    ("listing", "shown"), [("none", [[7, None]]), ("zero", [[7, 0]]), ("unlisted", []), ("twice", [[7, 64 * MIB]] * 2)]
)
def test_containers_and_drivers_that_lie_about_processes(
    fake_gpus: FakeGpus, probe: Probe, listing: str, shown: list[object]
) -> None:
    fake_gpus.take(0, 64, pid=7)
    fake_gpus.list_as(listing)  # type: ignore[arg-type]
    assert probe(PROCESSES) == shown
    assert probe(f"n.nvmlDeviceGetMemoryInfo({FIRST}).used") == 64 * MIB
    fake_gpus.list_as("true")
    assert probe(PROCESSES) == [[7, 64 * MIB]]


def test_an_error_can_end_by_itself_and_concern_one_gpu(make_fake_gpus: Callable[..., FakeGpus]) -> None:
    gpus = make_fake_gpus(1_000, 1_000)
    second = FIRST.replace("0", "1")
    with Probe(gpus.environment()) as probe:
        probe("n.nvmlInit()")
        gpus.fail("nvmlDeviceGetMemoryInfo", "TIMEOUT", gpu=1, times=2)
        for _ in range(2):
            with pytest.raises(ProbeError, match="Timeout"):
                probe(f"n.nvmlDeviceGetMemoryInfo({second})")
            probe(f"n.nvmlDeviceGetMemoryInfo({FIRST})")
        probe(f"n.nvmlDeviceGetMemoryInfo({second})")
        lost = gpus.lose(1)
        for call in (second, f"FaultGpu() and {second}"):
            with pytest.raises(ProbeError, match="lost"):
                probe(call)
        assert lost.hits == 2
        probe(f"n.nvmlDeviceGetMemoryInfo({FIRST})")
        lost.clear()
        probe(f"n.nvmlDeviceGetMemoryInfo({second})")


def test_a_call_that_hangs_lets_other_threads_run_and_can_be_freed(fake_gpus: FakeGpus, probe: Probe) -> None:
    with fake_gpus.delay("nvmlDeviceGetMemoryInfo", 30.0) as hang:
        probe.send(f"n.nvmlDeviceGetMemoryInfo({FIRST}).used")
        hang.until_hit()
        assert hang.inside == 1
        # Neither the driver nor other processes wait for it.
        with Probe(fake_gpus.environment()) as other:
            other("gpu = FaultGpu(); gpu.take(2 * MIB)")
            other("n.nvmlInit()")
            assert other(f"n.nvmlDeviceGetName({FIRST})") == "Fake GPU"
    assert probe.answer(5.0) == 0
    fake_gpus.delay("nvmlDeviceGet*", 0.1, times=1)
    begun = time.monotonic()
    probe(f"n.nvmlDeviceGetName({FIRST})")
    assert 0.09 < time.monotonic() - begun < 2.0


def test_mig_instances_have_handles_memory_and_processes_of_their_own(make_fake_gpus: Callable[..., FakeGpus]) -> None:
    gpus = make_fake_gpus()
    gpus.add(40_960, mig=[20_480, 10_240])
    gpus.add(24_576)
    with Probe(gpus.environment(CUDA_VISIBLE_DEVICES=gpus.uuid(0, 1))) as probe:
        probe("n.nvmlInit()")
        probe(f"g = {FIRST}; m = [n.nvmlDeviceGetMigDeviceHandleByIndex(g, i) for i in (0, 1)]")
        assert probe("[n.nvmlDeviceGetMigMode(g), n.nvmlDeviceGetMaxMigDeviceCount(g)]") == [[1, 1], 7]
        with pytest.raises(ProbeError, match="Not Found"):
            probe("n.nvmlDeviceGetMigDeviceHandleByIndex(g, 2)")
        with pytest.raises(ProbeError, match="Not Supported"):
            probe("n.nvmlDeviceGetMigMode(n.nvmlDeviceGetHandleByIndex(1))")
        assert probe("[n.nvmlDeviceGetUUID(h) for h in m]") == [gpus.uuid(0, 0), gpus.uuid(0, 1)]
        assert gpus.uuid(0, 1).startswith("MIG-") and probe("n.nvmlDeviceIsMigDeviceHandle(m[0]).value") == 1
        assert probe("n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(m[1]))") == 0
        probe("gpu = FaultGpu(); gpu.take(700 * MIB)")
        gpus.take(0, 64, pid=7, instance=0)
        assert probe("gpu.total") == 10_240 * MIB
        assert probe("[n.nvmlDeviceGetMemoryInfo(h).used for h in (m[0], m[1], g)]") == [
            64 * MIB, 1_000 * MIB, 1_064 * MIB,
        ]  # fmt: skip
        listed = "[(p.pid, p.gpuInstanceId) for p in n.nvmlDeviceGetComputeRunningProcesses(%s)]"
        assert probe(listed % "m[1]") == [[probe.pid, 2]]
        assert sorted(probe(listed % "g")) == sorted([[7, 1], [probe.pid, 2]])
        for handle in ("g", "m[0]"):
            with pytest.raises(ProbeError, match="Not Supported"):
                probe(f"n.nvmlDeviceGetUtilizationRates({handle})")
        assert gpus.used(0, 1) == 1_000 * MIB and gpus.used(0) == 1_064 * MIB
