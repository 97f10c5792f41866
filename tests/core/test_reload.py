"""Every key of the configuration is applied, applied by fresh processes, or held back; and no job is lost by it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core import reload as module
from glmtts.daemon.core.reload import WAYS, merged, plan
from glmtts.daemon.core.settings import ClientLimits, Settings, flat
from glmtts.protocol import control

from ..support.core_world import MakeSettings, MakeWorld, World


def read_again(world: World, new: Settings) -> dict[str, Any]:
    """What an operator is told who asks for this configuration."""
    id = world.operate(control.Reload)
    read = world.effects(effects.ReadSettings)[-1]
    world.step(inputs.SettingsRead(new, [], read.to, read.id))
    values: dict[str, Any] = world.last(id).values
    return values


def test_no_key_is_forgotten_and_none_stands_there_twice() -> None:
    listed = [*module._LIVE, *module._WORKERS, *module._RESTART]
    assert sorted(listed) == sorted(flat(Settings()))
    assert set(WAYS) == set(listed)


#: engine.server.api has one value.
@pytest.mark.parametrize("key", sorted(WAYS.keys() - {"engine.server.api"}))
def test_a_key_that_is_held_back_keeps_its_value_and_any_other_gets_the_new_one(key: str) -> None:
    old = Settings()
    *sections, name = key.split(".")
    values: dict[str, Any] = {}
    innermost = values
    for section in sections:
        innermost = innermost.setdefault(section, {})
    innermost[name] = msgspec.to_builtins(other := _other(key, flat(old)[key]))
    new = msgspec.convert(values, Settings)
    found = plan(old, new)
    assert [*found.live, *found.workers, *found.restart] == [key]
    assert flat(found.settings)[key] == (flat(old)[key] if found.restart else other)


def _other(key: str, value: Any) -> Any:
    """Another value that the key may have."""
    others: dict[Any, Any] = {
        "espeak": "fault", "info": "debug", "text": "json", "normal": "slow", "ras": "topk", "fp32": "bf16",
        "all": "none", "wav": "flac", "0660": "0600", "off": "on", "clause": "segment",
    }  # fmt: skip
    if isinstance(value, bool):
        return not value
    if key == "engine.glmtts.flow_precision":
        return "tf32"
    if key == "engine.server.extra":
        return {"loud": True}
    if isinstance(value, str):
        return others.get(value, f"{value}x")
    if isinstance(value, list):
        return ["alice"]
    if isinstance(value, dict):
        return {"alice": ClientLimits(rate="1/hour")}
    if isinstance(value, float):
        return value / 2 or 0.5
    return value + 1


def test_the_settings_of_an_engine_wait_with_its_name_and_those_of_another_end_no_process(
    make_settings: MakeSettings,
) -> None:
    old = make_settings()
    both = make_settings(engine={"name": "espeak", "warmup_text": "b"})
    assert plan(old, both).restart == ["engine.name", "engine.warmup_text"]
    elsewhere = make_settings(engine={"glmtts": {"root": "/there"}})
    assert (plan(old, elsewhere).live, plan(old, elsewhere).workers) == (["engine.glmtts.root"], [])


def test_a_merged_configuration_keeps_what_needs_a_restart(make_settings: MakeSettings) -> None:
    old = make_settings(audio={"sample_rate": 16_000})
    new = make_settings(audio={"sample_rate": 8_000, "default_format": "flac"})
    audio = merged(old, new, ["audio.sample_rate"]).audio
    assert (audio.sample_rate, audio.default_format) == (16_000, "flac")


def test_workers_are_replaced_one_after_the_other_and_the_jobs_that_they_speak_come_to_their_end(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world(2)
    world.ready("w0")
    world.ready("w1")
    world.sample()  # there is room for a spare
    first, second = world.request(text="first"), world.request(text="second")
    waiting = world.request(text="waiting")
    answer = read_again(world, make_settings(workers={"max": 2}, engine={"warmup_text": "b"}))
    assert (answer["rolling"], answer["workers"]) == (["engine.warmup_text"], ["w0", "w1"])
    assert world.states() == ["busy", "busy", "starting"]  # a spare is loaded first, for one of the two
    world.ready("w2")
    assert world.states() == ["draining", "busy", "busy"]
    world.finish(world.job(first))
    world.die(0)
    assert world.states() == ["busy", "busy", "starting"]  # and now for the other, under the name that is free
    world.finish(world.job(second), worker="w1")
    world.ready("w0")
    world.die(0, "w1")
    world.finish(world.job(waiting), worker="w2")
    assert [world.names(id)[-1] for id in (first, second, waiting)] == ["done"] * 3
    assert world.states() == ["ready", "ready"]
    assert [worker.process.generation for worker in world.pool] == [1, 1]


def test_fewer_workers_and_fresh_ones_at_once_are_never_more_than_one_too_many(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world(2)
    world.ready("w1")
    world.sample()
    read_again(world, make_settings(workers={"max": 1}, engine={"warmup_text": "b"}))
    assert world.states() == [
        "stopping",
        "ready",
    ]  # the one that still loaded goes, and no spare comes before it is gone
    world.die(-9)
    assert world.states() == ["ready", "starting"]


def test_one_that_still_loads_by_the_old_settings_is_started_again_at_once(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world()
    incarnation = world.incarnation()
    assert read_again(world, make_settings(engine={"warmup_text": "b"}))["workers"] == ["w0"]
    assert effects.Signal(incarnation, "kill") in world.effects(effects.Signal)
    world.die(-9)
    assert (world.states(), world.incarnation()) == (["starting"], incarnation + 1)


def test_what_can_t_be_started_by_the_old_settings_is_tried_at_once_by_the_new_ones(
    make_world: MakeWorld, make_settings: MakeSettings
) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2, "backoff_initial_s": 20.0, "backoff_max_s": 30.0}})
    for _ in range(3):
        world.die(1)
        while world.states() == ["backoff"] and world.pool.circuit_breaker.state.value == "closed":
            world.pass_time(1.0)
    assert world.states() != ["starting"]
    id = world.request()
    assert world.last(id).code == "unavailable"
    read_again(
        world,
        make_settings(
            engine={"python": "/usr/bin/python3"},
            workers={"restart": {"breaker_failures": 2, "backoff_initial_s": 20.0, "backoff_max_s": 30.0}},
        ),
    )
    assert world.states() == ["starting"]
    world.ready()
    assert world.names(world.request())[-1] == "started"


def test_new_processes_are_started_by_the_new_settings(world: World, make_settings: MakeSettings) -> None:
    world.sample()
    read_again(world, make_settings(engine={"warmup_text": "b"}))
    used = world.effects(effects.UseSettings)[-1].settings
    assert used.engine.warmup_text == "b"
    order = [type(effect) for effect in world.done]
    assert order.index(effects.UseSettings) < order.index(effects.Spawn)


def test_a_process_that_ends_by_the_new_settings_leaves_the_old_one_at_work(
    world: World, make_settings: MakeSettings
) -> None:
    world.sample()
    read_again(world, make_settings(engine={"python": "/usr/bin/false"}))
    world.die(1, "w1")
    assert world.states()[0] == "ready"
    assert world.names(world.request())[-1] == "started"


def test_fewer_workers_on_each_gpu_leave_one_on_each(make_world: MakeWorld, make_settings: MakeSettings) -> None:
    two = {"gpus": [0, 1], "max": 0, "per_gpu": 2}
    world = make_world(workers=two)
    world.sample(world.gpu(0), world.gpu(1))
    for name in ("w0", "w1", "w2", "w3"):
        world.ready(name)
        world.sample(world.gpu(0), world.gpu(1))
    assert Counter(worker.gpu for worker in world.pool) == {0: 2, 1: 2}
    assert read_again(world, make_settings(workers=two | {"per_gpu": 1}))["applied"] == ["workers.per_gpu"]
    assert Counter(worker.gpu for worker in world.pool if not worker.retiring) == {0: 1, 1: 1}


def world_gpu(world: World, index: int) -> Any:
    return world.gpu(index)


def test_a_configuration_that_is_wrong_is_an_alert_until_one_is_right(
    world: World, make_settings: MakeSettings
) -> None:
    world.operate(control.Reload)
    read = world.effects(effects.ReadSettings)[-1]
    world.step(inputs.SettingsRead(None, ["queue.max_waiting: expected a number"], read.to, read.id))
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert alert["name"] == "configuration" and "queue.max_waiting: expected a number" in alert["message"]
    read_again(world, make_settings())
    assert world.last(world.operate(control.Status)).values["alerts"] == []


def test_what_is_held_back_is_remembered_until_the_file_says_otherwise(
    world: World, make_settings: MakeSettings
) -> None:
    assert read_again(world, make_settings(limits={"text_chars": 10}))["restart_needed"] == ["limits.text_chars"]
    assert world.last(world.operate(control.GetConfig)).values["restart_needed"] == ["limits.text_chars"]
    assert read_again(world, make_settings())["restart_needed"] == []
    assert world.last(world.operate(control.GetConfig)).values["restart_needed"] == []
