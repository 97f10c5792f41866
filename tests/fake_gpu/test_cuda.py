"""tests/fake_gpu/cuda.c: what belongs to the driver and not to those who call it (they: engines/test_fault_gpu.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from .fake_gpu import MIB, FakeGpus
from .probe import Probe, ProbeError


@pytest.mark.parametrize(
    ("wanted", "total"),
    [(None, 1_000), ("1", 2_000), ("2,0", 3_000), ("uuid 1", 2_000), ("uuid 2, cut", 3_000), ("0,nonsense,1", 1_000)],
)
def test_a_process_sees_the_gpus_that_it_is_told_to_see(
    make_fake_gpus: Callable[..., FakeGpus], wanted: str | None, total: int
) -> None:
    gpus = make_fake_gpus(1_000, 2_000, 3_000)
    environment = gpus.environment()
    if wanted is not None:
        if wanted.startswith("uuid"):
            uuid = gpus.uuid(int(wanted[5]))
            wanted = uuid[:12] if wanted.endswith("cut") else uuid
        environment["CUDA_VISIBLE_DEVICES"] = wanted
    with Probe(environment) as probe:
        assert probe("FaultGpu().total") == total * MIB


@pytest.mark.parametrize("wanted", ["", "7", "-1", "GPU-nonesuch"])
def test_a_process_that_may_see_no_gpu_has_none(fake_gpus: FakeGpus, wanted: str) -> None:
    with Probe(fake_gpus.environment(CUDA_VISIBLE_DEVICES=wanted)) as probe, pytest.raises(ProbeError, match="no GPU"):
        probe("FaultGpu()")
    assert fake_gpus.used(0) == 0


def test_processes_compete_for_the_same_memory(fake_gpus: FakeGpus) -> None:
    with Probe(fake_gpus.environment()) as one, Probe(fake_gpus.environment()) as two:
        one("gpu = FaultGpu(); gpu.take(20_000 * MIB)")
        two("gpu = FaultGpu()")
        with pytest.raises(ProbeError, match="out of memory") as raised:
            two("gpu.take(5_000 * MIB)")
        assert raised.value.code == 2
        one.kill()
        two("gpu.take(20_000 * MIB)")
        assert fake_gpus.used(0) == 20_300 * MIB


def test_a_context_costs_and_is_given_back(fake_gpus: FakeGpus) -> None:
    fake_gpus.context_mib = 450
    with Probe(fake_gpus.environment()) as probe:
        probe("gpu = FaultGpu(); gpu.take(100 * MIB)")
        assert fake_gpus.held_by(probe.pid) == 550 * MIB
        assert probe("gpu._cuda.cuDevicePrimaryCtxRelease_v2(0)") == 0
        assert fake_gpus.used(0) == 0
        assert probe("gpu._cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 1)") == 201


def _has_begun(gpus: FakeGpus, probe: Probe) -> bool:
    return gpus.held_by(probe.pid) > 0


def test_a_process_killed_in_the_middle_of_anything_blocks_nobody(fake_gpus: FakeGpus) -> None:
    loop = "g = FaultGpu()\nwhile True: g.release(g.take(2 * MIB)); g.trim()"
    with Probe(fake_gpus.environment()) as witness:
        witness("gpu = FaultGpu()")
        for _ in range(5):
            with Probe(fake_gpus.environment()) as busy:
                busy.send(loop)
                fake_gpus.until(partial(_has_begun, fake_gpus, busy), "it has begun")
                os.kill(busy.pid, signal.SIGKILL)
            witness("gpu.release(gpu.take(2 * MIB)); gpu.trim()")
        assert fake_gpus.used(0) == 300 * MIB
