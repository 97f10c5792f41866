"""Each alert that goes by figures is raised when its trouble happens, and is over when the trouble is."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.workers.memory_watch import MIB
from glmtts.protocol import control
from glmtts.protocol import worker as wire

from ..support.core_world import MakeSettings, MakeWorld, World

#: Half a minute and a check, and the window of five minutes.
FOR_S, WINDOW_S = 36.0, 310.0


def alerts(world: World) -> dict[str, str]:
    return {alert["name"]: alert["message"] for alert in world.last(world.operate(control.Status)).values["alerts"]}


def told(world: World, name: str) -> list[str]:
    """What the events socket has heard of an alert."""
    return [e.values["state"] for e in world.effects(effects.Publish) if e.topic == f"alert.{name}"]


def speak(world: World, after_s: float = 0.1, **keys: Any) -> None:
    id = world.request()
    world.pass_time(after_s)
    world.finish(world.job(id), **keys)


def sample_for(world: World, seconds: float, **used: Any) -> None:
    """Let GPU 0 be seen like this for so long."""
    for _ in range(round(seconds)):
        world.sample(world.gpu(**used))
        world.pass_time(1.0)


@pytest.fixture
def world(make_world: MakeWorld) -> Any:
    """A World whose one worker is ready and may be silent for long, and that somebody watches."""
    world = make_world(workers={"hang_timeout_s": 1e4, "recycle": {"leak_horizon_jobs": 0}})
    world.ready()
    world.machine.watched = True
    return world


def test_gpu_memory_high(world: World) -> None:
    sample_for(world, 20, used_mib=22_000)
    assert alerts(world) == {}, "a long text may need that for a moment"
    sample_for(world, FOR_S, used_mib=22_000)
    assert "22,000 of 24,000 MiB" in alerts(world)["gpu_memory_high.0"]
    sample_for(world, FOR_S, used_mib=12_000)
    assert alerts(world) == {} and told(world, "gpu_memory_high.0") == ["raised", "cleared"]


def test_queue_long(world: World) -> None:
    ids = [world.request() for _ in range(5)]
    for _ in range(9):
        world.request(priority="batch")
    world.pass_time(FOR_S)
    assert alerts(world)["queue_long"].startswith("4 vip and interactive jobs wait")
    world.operate(control.Cancel, job=world.job(ids[-1]))
    world.pass_time(20.0)
    assert "queue_long" in alerts(world), "one more may come at once"
    world.pass_time(FOR_S)
    assert "queue_long" not in alerts(world) and told(world, "queue_long") == ["raised", "cleared"]


def test_responses_slow(world: World) -> None:
    for _ in range(3):
        speak(world, 70.0, synthesis_s=0.5)
    world.pass_time(6.0)
    assert "70.0 s on average" in alerts(world)["responses_slow"]
    world.pass_time(WINDOW_S)
    assert alerts(world) == {} and told(world, "responses_slow") == ["raised", "cleared"]


def test_batch_jobs_may_take_their_time(world: World) -> None:
    for _ in range(3):
        id = world.request(priority="batch")
        world.pass_time(90.0)
        world.finish(world.job(id), body=None, result="/results/x")
    world.pass_time(6.0)
    assert alerts(world) == {}


def test_errors_many(world: World) -> None:
    for number in range(20):
        id = world.request()
        if number < 3:
            world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="no", fatal=False))
        else:
            world.finish(world.job(id))
    world.pass_time(6.0)
    assert "3 of 20 jobs failed (15%)" in alerts(world)["errors_many"]
    for _ in range(20):
        speak(world)
    world.pass_time(6.0)
    assert alerts(world) == {} and told(world, "errors_many") == ["raised", "cleared"]


def test_what_clients_do_wrong_or_give_up_is_no_failure_of_the_service(world: World) -> None:
    for _ in range(20):
        world.request(voice="nobody")
        id = world.request()
        world.operate(control.Cancel, job=world.job(id))
        world.say(wire.Failed(job=world.job(id), code="cancelled", message="cancelled", fatal=False))
    world.pass_time(6.0)
    assert alerts(world) == {}


def test_crash_loop_though_each_crash_is_mended_and_jobs_are_spoken_between(world: World) -> None:
    for _ in range(3):
        speak(world)
        world.die()
        world.come_back()
    world.pass_time(6.0)
    assert "3 worker processes" in alerts(world)["crash_loop"]
    world.pass_time(WINDOW_S)
    assert alerts(world) == {} and told(world, "crash_loop") == ["raised", "cleared"]


def test_workers_that_operators_replace_are_no_crash_loop(world: World) -> None:
    for _ in range(5):
        world.operate(control.Recycle, worker="w0")
        world.step(inputs.ProcessEnded(world.incarnation(), 0))
        world.ready()
    world.pass_time(6.0)
    assert alerts(world) == {}


def test_no_worker_ready(make_world: MakeWorld) -> None:
    world = make_world()
    world.machine.watched = True
    world.pass_time(50.0)
    assert alerts(world) == {}, "a model takes its time to load"
    world.pass_time(20.0)
    assert set(alerts(world)) == {"no_worker_ready"}
    world.ready()
    world.pass_time(6.0)
    assert alerts(world) == {} and told(world, "no_worker_ready") == ["raised", "cleared"]


def test_slower_than_real_time(world: World) -> None:
    for _ in range(3):
        speak(world, synthesis_s=1.5)
    world.pass_time(6.0)
    assert "1.50 s to make" in alerts(world)["slower_than_real_time"]
    for _ in range(20):
        speak(world, synthesis_s=0.4)
    world.pass_time(6.0)
    assert alerts(world) == {} and told(world, "slower_than_real_time") == ["raised", "cleared"]


def grow(world: World, jobs: int, by_mib: int) -> None:
    """Jobs of which each leaves so much behind in the worker."""
    rss = world.worker().process.memory.rss
    for _ in range(jobs):
        rss += by_mib * MIB
        speak(world, 5.0, memory=wire.Memory(rss=rss))


def test_memory_trend(world: World) -> None:
    world.sample(host_mib=640_000)
    grow(world, 40, 10)
    assert alerts(world) == {}, "it may be filling a cache"
    grow(world, 60, 10)
    assert "w0 grows by 10 MiB per job" in alerts(world)["memory_trend.w0"]
    world.die()
    world.come_back()
    world.pass_time(WINDOW_S + 10)
    assert alerts(world) == {} and told(world, "memory_trend.w0") == ["raised", "cleared"]


def with_xids(world: World, of_programs: int = 0, of_gpu: int = 0, last: int = 0) -> Any:
    from msgspec.structs import replace

    return replace(world.gpu(), xids=inputs.Xids(of_programs, of_gpu, last, last if of_gpu else 0))


def test_gpu_xid(world: World) -> None:
    world.sample(with_xids(world))
    world.sample(with_xids(world, of_programs=1, last=31))
    world.pass_time(6.0)
    assert alerts(world) == {}, "a program's own fault"
    world.sample(with_xids(world, of_programs=1, of_gpu=1, last=79))
    world.pass_time(6.0)
    assert "Xid 79" in alerts(world)["gpu_xid.0"]
    logged = [e.fields["xid"] for e in world.effects(effects.Log) if "xid" in e.fields]
    assert logged == [31, 79]
    world.pass_time(WINDOW_S)
    assert alerts(world) == {} and told(world, "gpu_xid.0") == ["raised", "cleared"]


def test_an_idle_daemon_in_good_health_is_left_asleep(world: World) -> None:
    speak(world)
    world.pass_time(2 * WINDOW_S)
    world.forget()
    assert ("judge", "") not in world.machine.state.context.timers


def test_new_thresholds_hold_after_a_reload(world: World, make_settings: MakeSettings) -> None:
    for _ in range(3):
        speak(world, 70.0)
    world.pass_time(6.0)
    assert "responses_slow" in alerts(world)
    world.step(inputs.SettingsRead(make_settings(alerts={"response_s": 600.0}), []))
    world.pass_time(6.0)
    assert "responses_slow" not in alerts(world)
