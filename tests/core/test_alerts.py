"""Each alert is raised once when its trouble happens, is over when the trouble is, and not at each turn of a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control
from glmtts.protocol import worker as wire

from ..support.core_world import MakeSettings, MakeWorld, World

#: Half a minute and a check, and the window of five minutes.
FOR_S, WINDOW_S = 36.0, 310.0


def alerts(world: World) -> dict[str, str]:
    return {alert["name"]: alert["message"] for alert in world.last(world.operate(control.Status)).values["alerts"]}


def told(world: World, name: str) -> list[str]:
    """The events of an alert."""
    return [e.values["state"] for e in world.effects(effects.Publish) if e.topic == f"alert.{name}"]


def speak(world: World, after_s: float = 0.1, times: int = 1, **keys: Any) -> None:
    for _ in range(times):
        id = world.request()
        world.pass_time(after_s)
        world.finish(world.job(id), **keys)


def sample_for(world: World, seconds: float, used_mib: int) -> None:
    """Let GPU 0 be sampled like this for some time."""
    for _ in range(round(seconds)):
        world.sample(world.gpu(used_mib=used_mib))
        world.pass_time(1.0)


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A watched World whose one worker is ready and may be silent for long."""
    world = make_world(workers={"hang_timeout_s": 1e4, "recycle": {"leak_horizon_jobs": 0}})
    world.ready()
    world.machine.watched = True
    return world


def slow_responses(world: World) -> None:
    speak(world, 70.0, times=3, synthesis_s=0.5)


def failures(world: World) -> None:
    for _ in range(3):
        id = world.request()
        world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="no", fatal=False))
    speak(world, times=17)


def slow_speech(world: World) -> None:
    speak(world, times=3, synthesis_s=1.5)


def crashes(world: World) -> None:
    for _ in range(3):
        speak(world)
        world.die()
        world.come_back()


def xids(world: World) -> None:
    for of_programs, of_gpu, last in ((0, 0, 0), (1, 0, 31)):
        world.sample(replace(world.gpu(), xids=inputs.Xids(of_programs, of_gpu, last)))
    world.pass_time(6.0)
    assert alerts(world) == {}, "a program's own fault"
    world.sample(replace(world.gpu(), xids=inputs.Xids(1, 1, 79, 79)))


def nothing(world: World) -> None:
    """Only time passes."""


@pytest.mark.parametrize(
    ("trouble", "name", "message", "relief"),
    [
        (slow_responses, "responses_slow", "70.0 s on average", nothing),
        (failures, "errors_many", "3 of 20 jobs failed (15%)", lambda world: speak(world, times=20)),
        (
            slow_speech,
            "slower_than_real_time",
            "1.50 s to make",
            lambda world: speak(world, times=20, synthesis_s=0.4),
        ),
        (crashes, "crash_loop", "3 worker processes", nothing),
        (xids, "gpu_xid.0", "Xid 79", nothing),
    ],
    ids=["slow responses", "failures", "slow speech", "crashes", "Xids"],
)
def test_trouble_of_the_last_minutes_is_told_at_once_and_forgotten_with_them(
    world: World, trouble: Callable[[World], None], name: str, message: str, relief: Callable[[World], None]
) -> None:
    trouble(world)
    world.pass_time(6.0)
    assert message in alerts(world)[name]
    relief(world)
    world.pass_time(WINDOW_S if relief is nothing else 6.0)
    assert alerts(world) == {} and told(world, name) == ["raised", "cleared"]


def batch_jobs(world: World) -> None:
    for _ in range(3):
        id = world.request(priority="batch")
        world.pass_time(90.0)
        world.finish(world.job(id), body=None, result="/results/x")


def faults_of_clients(world: World) -> None:
    for _ in range(20):
        world.request(voice="nobody")
        id = world.request()
        world.operate(control.Cancel, job=world.job(id))
        world.say(wire.Failed(job=world.job(id), code="cancelled", message="cancelled", fatal=False))


def recycles(world: World) -> None:
    for _ in range(5):
        world.operate(control.Recycle, worker="w0")
        world.step(inputs.ProcessEnded(world.incarnation(), 0))
        world.ready()


def no_driver(world: World) -> None:
    world.sample(nvml="absent", detail="no libnvidia-ml.so.1")


@pytest.mark.parametrize("harmless", [batch_jobs, faults_of_clients, recycles, no_driver])
def test_ordinary_life_is_no_trouble(world: World, harmless: Callable[[World], None]) -> None:
    harmless(world)
    world.pass_time(6.0)
    assert alerts(world) == {}


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


def test_memory_trend(world: World) -> None:
    world.sample(host_mib=640_000)

    def grow(jobs: range) -> None:
        for job in jobs:
            speak(world, 5.0, memory=wire.Memory(rss=(100 + 10 * job) << 20))

    grow(range(40))
    assert alerts(world) == {}, "it may be filling a cache"
    grow(range(40, 100))
    assert "w0 grows by 10 MiB per job" in alerts(world)["memory_trend.w0"]
    world.die()
    world.come_back()
    world.pass_time(WINDOW_S + 10)
    assert alerts(world) == {} and told(world, "memory_trend.w0") == ["raised", "cleared"]


def test_an_alert_is_told_once_and_shows_for_how_long_it_lasts_and_how_things_are_now(world: World) -> None:
    world.sample(nvml="failing", detail="first")
    world.pass_time(5.0)
    world.sample(nvml="blocked", detail="then")
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert alert == {"name": "nvml", "message": "NVML is blocked: then", "for_s": 5.0}
    for _ in range(2):
        world.sample()
    assert alerts(world) == {} and told(world, "nvml") == ["raised", "cleared"]


def test_an_open_breaker_is_told_with_its_reason_until_a_job_is_spoken(make_world: MakeWorld) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2}})
    for _ in range(2):
        world.die(3, last_words="ImportError: no torch")
    raised = alerts(world)
    assert set(raised) == {"breaker_open", "unavailable"}
    assert all("ImportError: no torch" in message for message in raised.values())
    while world.states() != ["starting"]:
        world.pass_time(0.1)
    world.ready()
    speak(world)
    assert alerts(world) == {}


def test_an_idle_daemon_in_good_health_is_left_asleep(world: World) -> None:
    speak(world)
    world.pass_time(2 * WINDOW_S)
    steps, now = 0, world.now
    while (due := world.machine.next_due) is not None and due < now + WINDOW_S:
        world.pass_time(due - world.now)
        steps += 1
    assert steps < 3, "it is not judged every five seconds"


def test_new_thresholds_hold_after_a_reload(world: World, make_settings: MakeSettings) -> None:
    slow_responses(world)
    world.pass_time(6.0)
    assert "responses_slow" in alerts(world)
    world.step(inputs.SettingsRead(make_settings(alerts={"response_s": 600.0}), []))
    world.pass_time(6.0)
    assert "responses_slow" not in alerts(world)
