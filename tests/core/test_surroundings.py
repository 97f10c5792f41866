"""A daemon that clients can't find goes on for those that are connected, and ends when it serves none."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.api.surroundings import OUT_OF_REACH_MANAGED_S, OUT_OF_REACH_S, TAKEN_S
from glmtts.protocol import control, events

from ..support.core_world import MakeWorld, World

GONE = inputs.SurroundingsSeen({"runtime_folder": "/run/x is gone"}, out_of_reach=True)
TAKEN = inputs.SurroundingsSeen({"runtime_folder": "another daemon"}, out_of_reach=True, taken=True)
FINE = inputs.SurroundingsSeen({})


def stopping(world: World) -> bool:
    return world.machine.stopping


def alerts(world: World) -> list[tuple[str, str]]:
    return world.machine.state.alerts.names()


def test_each_thing_has_an_alert_until_it_is_back(world: World) -> None:
    world.step(inputs.SurroundingsSeen({"outputs": "gone", "voices": "gone"}))
    assert alerts(world) == [("surroundings", "outputs"), ("surroundings", "voices")]
    world.step(inputs.SurroundingsSeen({"voices": "gone"}))
    assert alerts(world) == [("surroundings", "voices")]
    world.step(FINE)
    assert alerts(world) == []


def test_a_daemon_out_of_reach_ends_in_the_end_with_an_error(world: World) -> None:
    world.step(GONE)
    world.pass_time(OUT_OF_REACH_S - 1)
    assert not stopping(world)
    world.pass_time(2)
    assert stopping(world)
    world.die(0)
    assert [exit.status for exit in world.effects(effects.Exit)] == [69]
    assert any("clients can't find it" in log.message for log in world.effects(effects.Log))


def test_a_daemon_that_is_found_again_in_time_goes_on(world: World) -> None:
    for _ in range(3):
        world.step(GONE)
        world.pass_time(OUT_OF_REACH_S - 1)
        world.step(FINE)
    world.pass_time(2 * OUT_OF_REACH_S)
    assert not stopping(world)


def test_connected_clients_are_served_to_the_end(make_world: MakeWorld) -> None:
    world = make_world(workers={"hang_timeout_s": 0.0})
    world.ready()
    first, second = world.request(), world.request()
    world.step(GONE)
    world.pass_time(3 * OUT_OF_REACH_S)
    assert not stopping(world)
    for id in (first, second):
        world.finish(world.job(id))
    world.pass_time(30.0)
    assert stopping(world) and isinstance(world.last(second), events.Done)


@pytest.mark.parametrize("why", ["paused", "disk"])
def test_jobs_that_nothing_can_start_don_t_keep_it(world: World, why: str) -> None:
    if why == "paused":
        world.operate(control.Pause)
        world.request()
    else:
        world.journal = "holds"
        world.request(durable=True)
    world.step(GONE)
    world.pass_time(OUT_OF_REACH_S + 1)
    assert stopping(world)


@pytest.mark.parametrize("managed", [True, False])
def test_it_does_not_wait_where_another_serves_or_will(managed: bool) -> None:
    world = World(managed=managed)
    world.ready()
    world.request()
    world.step(GONE if managed else TAKEN)
    limit = OUT_OF_REACH_MANAGED_S if managed else TAKEN_S
    # A daemon that is refused holds the folder for a moment.
    if not managed:
        world.step(FINE)
        world.step(TAKEN)
    world.pass_time(limit - 1)
    assert not stopping(world)
    world.pass_time(2)
    assert stopping(world)
