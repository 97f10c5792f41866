"""An operator hears of trouble once when it begins and once when it is over, and can look it up in between."""

from __future__ import annotations

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control

from ..support.core_world import MakeWorld, World


def alerts(world: World) -> dict[str, str]:
    return {alert["name"]: alert["message"] for alert in world.last(world.operate(control.Status)).values["alerts"]}


def test_trouble_is_told_once_when_it_begins_and_once_when_it_ends(world: World) -> None:
    world.machine.watched = True
    for _ in range(3):
        world.sample(nvml="failing", detail="Unknown Error")
        world.pass_time(1.0)
    assert alerts(world) == {"nvml": "NVML is failing: Unknown Error"}
    world.sample()
    world.sample()
    told = [e for e in world.effects(effects.Publish) if e.topic == "alert.nvml"]
    assert [e.values["state"] for e in told] == ["raised", "cleared"]
    assert alerts(world) == {}


def test_an_alert_says_for_how_long_it_has_lasted_and_how_things_are_now(world: World) -> None:
    world.sample(nvml="failing", detail="first")
    world.pass_time(5.0)
    world.sample(nvml="blocked", detail="then")
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert alert == {"name": "nvml", "message": "NVML is blocked: then", "for_s": 5.0}


def test_a_machine_without_a_driver_is_no_trouble(world: World) -> None:
    world.sample(nvml="absent", detail="no libnvidia-ml.so.1")
    assert alerts(world) == {}


def test_an_open_breaker_and_nobody_to_speak_are_trouble(make_world: MakeWorld) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2}})
    for _ in range(2):
        world.die(3, last_words="ImportError: no torch")
    raised = alerts(world)
    assert set(raised) == {"breaker_open", "unavailable"}
    assert all("ImportError: no torch" in message for message in raised.values())
    while world.states() != ["starting"]:
        world.pass_time(0.1)
    world.ready()
    world.finish(world.job(world.request()))
    assert alerts(world) == {}


def test_a_process_that_nothing_ends_is_trouble_until_it_is_gone(world: World) -> None:
    world.operate(control.Recycle, worker="w0")
    incarnation, pid = world.incarnation(), world.pid()
    world.pass_time(60.0)
    raised = alerts(world)
    assert set(raised) == {"worker_stuck.w0"} and str(pid) in raised["worker_stuck.w0"]
    world.step(inputs.ProcessEnded(incarnation, -9))
    assert alerts(world) == {}
