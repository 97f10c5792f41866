"""daemon/engines/fault/gpu.py and the faults of fault.py that use it, with the CUDA driver: the fake one, and the real.

Every test runs in processes of their own: a driver stays in the process that has loaded it. ``[real]`` marks those on
the machine's own GPU, which are skipped where there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest

from ..fake_gpu.fake_gpu import MIB, FakeGpus
from ..fake_gpu.probe import Probe, ProbeError

Start = Callable[[str], Probe]
FIGURES = "[engine.memory().torch_allocated // MIB, engine.memory().torch_reserved // MIB]"


def _no_real_gpu() -> str:
    """Why the tests can't run on a real GPU, or ""."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "this machine has a CUDA driver and no GPU"
    return ""


@pytest.fixture(params=["fake", "real"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts processes that see a GPU, with an engine of these settings."""
    if request.param == "fake":
        environment = request.getfixturevalue("fake_gpus").environment()
    elif reason := _no_real_gpu():
        pytest.skip(reason)
    else:
        environment = {}
    probes: list[Probe] = []

    def begin(settings: str = "{}") -> Probe:
        probes.append(Probe(environment))
        probes[-1](f"engine = load('fault', {settings}, send_raw=print)")
        return probes[-1]

    yield begin
    for probe in probes:
        probe.__exit__()


@pytest.fixture
def probe(start: Start) -> Probe:
    return start("{}")


def free_mib(probe: Probe) -> int:
    """What the driver has left, asked in a process of its own."""
    probe("f = ctypes.c_size_t(); engine._on_gpu()._cuda.cuMemGetInfo_v2(ctypes.byref(f), ctypes.byref(f.__class__()))")
    return int(probe("f.value // MIB"))


# --- the allocator


def test_memory_that_is_released_is_used_again_and_given_back_by_a_trim(probe: Probe) -> None:
    probe("gpu = FaultGpu(); a, b = gpu.take(100 * MIB), gpu.take(50 * MIB)")
    probe("gpu.release(a); c = gpu.take(30 * MIB)")
    assert probe("[c is a, gpu.allocated // MIB, gpu.reserved // MIB]") == [True, 80, 150]
    probe("gpu.release(b); gpu.trim()")
    assert probe("[gpu.allocated // MIB, gpu.reserved // MIB]") == [30, 100]


def test_the_cache_goes_before_memory_runs_out(probe: Probe) -> None:
    probe("gpu = FaultGpu(); half = gpu.total // 2")
    probe("gpu.release(gpu.take(half)); block = gpu.take(gpu.total * 6 // 10)")
    assert probe("gpu.reserved == block.size")


def test_a_share_of_the_gpu_is_not_exceeded_and_the_error_says_so(probe: Probe) -> None:
    probe("gpu = FaultGpu(0.1); gpu.release(gpu.take(gpu.total // 20))")
    probe("block = gpu.take(gpu.total // 11)")
    with pytest.raises(ProbeError, match=r"CUDA out of memory: .* this worker may use \d+ MiB of it") as raised:
        probe("gpu.take(gpu.total // 50)")
    assert raised.value.kind == "OutOfMemoryError" and probe("gpu.reserved <= gpu.total // 10")


# --- the faults


def test_a_leak_grows_live_memory_and_a_trim_does_not_help(probe: Probe) -> None:
    assert probe("engine.memory().torch_allocated") is None
    for jobs in (1, 2, 3):
        assert probe("speak(engine, fault='leak_vram', mib=50, seconds=0.1)") == 2_400
        assert probe(FIGURES) == [50 * jobs, 50 * jobs]
    probe("engine.trim()")
    assert probe(FIGURES) == [150, 150]


def test_fragmentation_grows_the_cache_and_a_trim_ends_it(probe: Probe) -> None:
    for jobs in (1, 2, 3):
        probe("speak(engine, fault='cache_vram', mib=50, seconds=0.1)")
        assert probe(FIGURES) == [0, 50 * jobs]
    before = free_mib(probe)
    probe("engine.trim()")
    assert probe(FIGURES) == [0, 0] and free_mib(probe) >= before + 140


def test_a_leak_outside_the_allocator_shows_in_the_driver_s_figures_alone(probe: Probe) -> None:
    probe("speak(engine, fault='use_vram', mib=10, seconds=0.1)")
    before = free_mib(probe)
    probe("speak(engine, fault='leak_outside', mib=200, seconds=0.1); engine.trim()")
    assert probe(FIGURES) == [0, 0] and before - free_mib(probe) >= 150


def test_a_healthy_job_holds_memory_while_it_runs_and_leaves_cache_of_the_largest(probe: Probe) -> None:
    for mib, reserved in ((100, 100), (40, 100), (300, 400), (250, 400), (100, 400)):
        probe(f"speak(engine, fault='use_vram', mib={mib}, seconds=0.1)")
        assert probe(FIGURES) == [0, reserved]


def test_running_out_of_memory_is_the_driver_s_own_and_ends_the_worker(start: Start) -> None:
    greedy, other = start("{}"), start("{}")
    before = free_mib(other)
    with pytest.raises(ProbeError, match=r"CUDA out of memory: .* MiB are free") as raised:
        greedy("speak(engine, fault='oom_vram')")
    assert raised.value.code == "out_of_memory" and raised.value.fatal
    assert before > 1_000 and free_mib(other) < 256
    greedy.kill()
    assert free_mib(other) > before - 256


def test_an_illegal_access_breaks_every_call_after_it_and_no_other_process(start: Start) -> None:
    broken, other = start("{}"), start("{}")
    broken("speak(engine, fault='use_vram', seconds=0.1)")
    with pytest.raises(ProbeError, match="illegal memory access was encountered") as raised:
        broken("speak(engine, fault='illegal_access')")
    assert raised.value.code == "cuda_context" and raised.value.fatal
    for fault in ("leak_vram", "leak_outside", "illegal_access"):
        with pytest.raises(ProbeError, match="illegal memory access") as raised:
            broken(f"speak(engine, fault='{fault}', mib=600)")
        assert raised.value.code == "cuda_context"
    other("speak(engine, fault='use_vram', seconds=0.1)")


# --- what only a fake GPU can show


def test_what_the_engine_says_is_what_the_driver_gave(fake_gpus: FakeGpus) -> None:
    with Probe(fake_gpus.environment()) as probe:
        probe("engine = load('fault', {'vram_mib': 100}, send_raw=print)")
        probe("speak(engine, fault='leak_vram', mib=50); speak(engine, fault='leak_outside', mib=20)")
        probe("speak(engine, fault='cache_vram', mib=30)")
        assert probe(FIGURES) == [150, 180]
        assert fake_gpus.held_by(probe.pid) == (300 + 180 + 20) * MIB
    assert fake_gpus.used(0) == 0


def test_a_lost_gpu_is_neither_out_of_memory_nor_a_broken_context(fake_gpus: FakeGpus) -> None:
    with Probe(fake_gpus.environment()) as probe:
        probe("engine = load('fault', {'vram_mib': 100}, send_raw=print)")
        with (
            fake_gpus.lose(0),
            pytest.raises(ProbeError, match=r"CUDA error: unknown error \(.* returned 999\)") as raised,
        ):
            probe("speak(engine, fault='leak_vram')")
        assert raised.value.kind == "CudaError" and not raised.value.fatal
