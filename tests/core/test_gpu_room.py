"""A worker is started where the memory that it needs was seen free, and blindly only where nobody can see."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control

from ..support.core_world import MakeWorld, World


def spawned(world: World) -> list[tuple[str, int | None]]:
    return [(incarnation.name, incarnation.gpu) for incarnation in world.effects(effects.Spawn)]


@pytest.fixture
def on_gpu(make_world: MakeWorld) -> World:
    """One GPU with 24,000 MiB, on which one worker is ready and holds 8,000; two may be there."""
    world = make_world(workers={"gpus": [0], "per_gpu": 2, "max": 2, "min": 1})
    world.sample(world.gpu())
    world.ready()
    # Without the host's figures no spare is loaded.
    world.sample(world.gpu(used_mib=8_000, w0=8_000), host_mib=None)
    world.forget()
    return world


def test_the_first_worker_waits_for_the_first_look_at_the_gpus(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": "all", "max": 0})
    assert world.effects(effects.Sample) and not spawned(world)
    world.sample(world.gpu(0), world.gpu(1))
    assert spawned(world) == [("w0", 0), ("w1", 1)]
    assert [incarnation.device for incarnation in world.effects(effects.Spawn)] == ["GPU-0", "GPU-1"]


def test_named_gpus_are_used_unseen_when_nvml_does_not_answer(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [1], "max": 0})
    world.pass_time(10.0)
    assert spawned(world) == [("w0", 1)]
    assert world.effects(effects.Spawn)[0].device == "1"


def test_a_second_worker_is_not_started_before_it_is_known_what_the_first_one_takes(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "per_gpu": 2, "max": 2})
    world.sample(world.gpu())
    assert world.states() == ["starting", "waiting"]
    assert "is measured" in world.worker("w1").reason
    world.ready()
    world.sample(world.gpu(used_mib=8_000, w0=8_000))
    assert world.states() == ["ready", "starting"]


def test_what_a_half_loaded_process_holds_is_not_what_a_worker_needs(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "per_gpu": 2, "max": 2})
    world.sample(world.gpu(total_mib=15_000))
    world.pass_time(1.0)
    before = world.now
    world.pass_time(0.5)
    world.ready()
    # It was begun before the worker was ready, and comes after.
    world.sample(world.gpu(used_mib=4_000, total_mib=15_000, w0=4_000), at=before)
    assert world.states() == ["ready", "waiting"]
    world.sample(world.gpu(used_mib=8_000, total_mib=15_000, w0=8_000))
    assert world.states() == ["ready", "waiting"]
    assert "has 7,000 MiB free, and a worker needs 8,000 MiB" in world.worker("w1").reason


def test_a_sample_without_a_reading_of_the_gpu_measures_no_worker(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "per_gpu": 2, "max": 2})
    world.sample(world.gpu(total_mib=15_000))
    world.step(inputs.Spawned(world.incarnation(), world.pid()))
    world.sample(world.gpu(used_mib=4_000, total_mib=15_000, w0=4_000))
    world.pass_time(0.5)
    world.ready()
    # NVML is silent: the last figure of the process is from before it had loaded its model.
    world.sample(nvml="blocked")
    assert world.states() == ["ready", "waiting"]
    world.sample(world.gpu(used_mib=8_000, total_mib=15_000, w0=8_000))
    assert world.states() == ["ready", "waiting"]
    assert "has 7,000 MiB free, and a worker needs 8,000 MiB" in world.worker("w1").reason


def test_a_process_that_is_dead_before_its_end_is_known_measures_no_worker(make_world: MakeWorld) -> None:
    world = make_world(1, workers={"gpus": [0]})
    world.sample(world.gpu(used_mib=4_600))
    world.ready()
    world.sample(world.gpu(used_mib=9_000, w0=4_400))
    need = world.machine.state.gpus.need
    world.sample(world.gpu(used_mib=4_637))
    assert world.machine.state.gpus.need == need == 4_400 << 20


def test_a_worker_waits_until_the_memory_of_the_last_process_is_seen_free(on_gpu: World) -> None:
    on_gpu.operate(control.Recycle, worker="w0")
    on_gpu.die(0)
    assert on_gpu.states() == ["waiting"] and on_gpu.effects(effects.Sample)
    on_gpu.forget()
    # The driver has not got round to it yet.
    on_gpu.pass_time(0.01)
    on_gpu.sample(on_gpu.gpu(used_mib=20_000))
    assert not spawned(on_gpu)
    assert "4,000 MiB free, and a worker needs 8,000" in on_gpu.worker().reason
    on_gpu.sample(on_gpu.gpu(used_mib=200))
    assert spawned(on_gpu) == [("w0", 0)]


def test_a_waiting_worker_looks_again_soon_and_then_less_and_less_often(on_gpu: World) -> None:
    on_gpu.operate(control.Recycle, worker="w0")
    on_gpu.die(0)
    on_gpu.forget()
    until, looks = on_gpu.now + 20.0, 0
    while on_gpu.now < until:
        on_gpu.pass_time(0.01)
        asked = len(on_gpu.effects(effects.Sample))
        if asked > looks:
            looks = asked
            on_gpu.sample(on_gpu.gpu(used_mib=20_000))
    # A sample makes it look, but not ask for the next one: that would never end.
    assert 10 <= looks <= 25


def test_memory_that_nobody_can_see_is_no_obstacle(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "max": 1})
    world.sample(world.gpu())
    world.ready()
    world.operate(control.Recycle, worker="w0")
    world.pass_time(11.0)
    world.die(0)
    assert world.states() == ["starting"]


def test_nothing_is_started_on_a_gpu_that_is_lost(on_gpu: World) -> None:
    lost = inputs.GpuReading(index=0, uuid="GPU-0", state="lost", detail="GPU is lost")
    on_gpu.sample(lost)
    on_gpu.die(72)
    assert on_gpu.states() == ["waiting"]
    id = on_gpu.request()
    on_gpu.pass_time(60.0)
    on_gpu.sample(lost)
    assert not spawned(on_gpu)
    assert on_gpu.last(id).code == "unavailable" and "GPU is lost" in on_gpu.last(id).message
    on_gpu.sample(on_gpu.gpu())
    assert spawned(on_gpu) == [("w0", 0)]


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [3], "max": 0})
    world.sample(world.gpu(0), world.gpu(1))
    assert world.states() == ["waiting"]
    assert world.worker().reason == "there is no GPU 3 here ([workers] gpus); NVML shows 0, 1"


def test_a_worker_that_has_just_loaded_has_memory_that_the_last_sample_did_not_show(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0], "per_gpu": 3, "max": 3})
    world.sample(world.gpu(total_mib=6_000))
    world.ready("w0")
    world.sample(world.gpu(used_mib=2_300, total_mib=6_000, w0=2_300))
    assert world.states() == ["ready", "starting", "waiting"]
    world.pass_time(1.0)
    world.ready("w1")
    assert world.states() == ["ready", "ready", "waiting"]
    assert "1,400 MiB free, and a worker needs 2,300" in world.worker("w2").reason


def test_what_is_free_counts_only_while_it_is_fresh(on_gpu: World) -> None:
    on_gpu.sample(on_gpu.gpu(used_mib=23_000, w0=8_000))
    (gpu,) = on_gpu.last(on_gpu.operate(control.Gpus)).values["gpus"]
    assert (gpu["room"], gpu["need"], gpu["others"]) == (0, 8_000 << 20, 15_000 << 20)
    on_gpu.pass_time(11.0)
    (gpu,) = on_gpu.last(on_gpu.operate(control.Gpus)).values["gpus"]
    assert (gpu["room"], gpu["sampled_ago_s"]) == (None, 11.0)
