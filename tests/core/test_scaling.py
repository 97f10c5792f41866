"""There are as many workers as are needed, between the bounds, evenly on the GPUs, and never more than may be."""

from __future__ import annotations

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control

from ..support.core_world import MakeSettings, MakeWorld, World


def spawned(world: World) -> int:
    return len(world.effects(effects.Spawn))


def bounds(world: World) -> dict[str, int]:
    values: dict[str, int] = world.last(world.operate(control.Workers)).values["bounds"]
    return values


def test_without_a_number_all_that_may_be_are_there_from_the_beginning(make_world: MakeWorld) -> None:
    assert make_world(3).states() == ["starting"] * 3


def test_one_more_is_loaded_when_a_job_has_waited_for_long_and_not_before(make_world: MakeWorld) -> None:
    world = make_world(3, workers={"min": 1, "scale_up_wait_s": 5.0})
    world.ready()
    assert world.states() == ["ready"]
    for _ in range(3):
        world.request()
    world.pass_time(4.9)
    assert world.states() == ["busy"]
    world.pass_time(0.2)
    assert world.states() == ["busy", "starting"]
    # While that one is loaded it may be enough.
    world.pass_time(20.0)
    assert world.states() == ["busy", "starting"]


def test_idle_workers_give_their_memory_back_and_one_comes_with_the_next_job(make_world: MakeWorld) -> None:
    world = make_world(2, workers={"min": 0, "idle_unload_s": 10.0})
    world.ready()
    world.finish(world.job(world.request()))
    world.pass_time(9.9)
    assert world.states() == ["ready"]
    world.pass_time(0.2)
    assert world.states() == ["stopping"]
    world.die(0)
    assert world.states() == []
    world.forget()
    id = world.request()
    assert world.states() == ["starting"]
    world.ready()
    assert world.names(id) == ["accepted", "started"]


def test_a_worker_that_has_work_now_and_then_is_kept(make_world: MakeWorld) -> None:
    world = make_world(1, workers={"min": 0, "idle_unload_s": 10.0})
    world.ready()
    for _ in range(5):
        world.pass_time(9.0)
        world.finish(world.job(world.request()))
    assert world.states() == ["ready"] and spawned(world) == 1


def test_min_workers_are_never_unloaded(make_world: MakeWorld) -> None:
    world = make_world(3, workers={"min": 2, "idle_unload_s": 10.0})
    world.ready("w0")
    world.ready("w1")
    world.pass_time(100.0)
    assert world.states() == ["ready", "ready"]


def test_an_operator_says_how_many_and_they_come_and_go(world: World) -> None:
    assert world.last(world.operate(control.Scale, min=2, max=3)).values == {"min": 2, "max": 3, "workers": 2}
    world.ready("w1")
    job = world.job(world.request())
    assert world.states() == ["busy", "ready"]
    world.operate(control.Scale, min=1, max=1)
    # The idle one goes, the one at work stays.
    assert world.states() == ["busy", "stopping"]
    world.die(0, worker="w1")
    world.finish(job)
    assert world.states() == ["ready"]


def test_one_that_still_finishes_its_job_holds_its_place(make_world: MakeWorld) -> None:
    world = make_world(2)
    for name in ("w0", "w1"):
        world.ready(name)
        world.request()
    world.operate(control.Scale, max=1)
    assert sorted(world.states()) == ["busy", "draining"]
    retiring = next(w.name for w in world.pool if w.retiring)
    world.operate(control.Scale, min=2, max=2)
    world.forget()
    # Two processes are there, and two may be: the third comes when the one that goes is gone.
    world.sample()
    assert spawned(world) == 0
    world.die(0, worker=retiring)
    assert spawned(world) == 1
    assert sorted(world.states()) == ["busy", "starting"]


def test_bounds_that_make_no_sense_are_refused(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0, 1], "max": 0})
    world.sample(world.gpu(0), world.gpu(1))
    for keys, word in (({"max": 3}, "places"), ({"min": 2, "max": 1}, "min: 2 is more than max = 1")):
        error = world.last(world.operate(control.Scale, **keys))
        assert error.code == "bad_request" and word in error.message
    assert bounds(world) == {"min": 2, "max": 2, "wanted": 2}


def test_new_bounds_in_the_file_hold_whatever_an_operator_had_said(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world(2)
    world.operate(control.Scale, min=1, max=1)
    world.step(inputs.SettingsRead(make_settings(workers={"max": 2, "hang_timeout_s": 9.0}), []))
    assert bounds(world)["max"] == 1
    world.step(inputs.SettingsRead(make_settings(workers={"max": 3}), []))
    assert bounds(world)["max"] == 3


def test_a_worker_leaves_the_gpu_that_has_the_most(make_world: MakeWorld) -> None:
    world = make_world(workers={"gpus": [0, 1], "per_gpu": 2, "max": 3, "vram_mib": 1_000})
    world.sample(world.gpu(0), world.gpu(1))
    for name in ("w0", "w1", "w2"):
        world.ready(name)
    assert [world.worker(name).gpu for name in ("w0", "w1", "w2")] == [0, 1, 0]
    world.operate(control.Scale, min=2, max=2)
    assert world.worker("w1").state.value == "ready"
    assert sorted(world.states()) == ["ready", "ready", "stopping"]


def test_a_process_that_nothing_ends_is_told_of_and_another_takes_its_place(world: World) -> None:
    def alerts() -> list[str]:
        return [alert["name"] for alert in world.last(world.operate(control.Status)).values["alerts"]]

    world.operate(control.Recycle, worker="w0")
    world.pass_time(60.0)
    assert alerts() == ["worker_stuck.w0"]
    assert world.last(world.operate(control.Workers)).values["workers"][0]["reason"] == "killed, and does not end"
    assert world.states() == ["stopping", "starting"]
    world.ready("w1")
    id = world.request()
    assert world.names(id) == ["accepted", "started"]
    # When it is gone at last, it is not started again.
    world.die(-9)
    assert world.states() == ["busy"] and alerts() == []
