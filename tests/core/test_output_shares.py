"""Output files: a client has its share of the disk and a limit, and others always find room."""

from __future__ import annotations

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import events
from glmtts.protocol import worker as wire

from ..support.core_world import ALICE, BOB, MakeWorld, World

MIB = 1 << 20


def measured(world: World, free_mib: int | None, **held_mib: int) -> None:
    by_client = {f"uid:{client}": size * MIB for client, size in held_mib.items()}
    world.step(inputs.OutputsMeasured(by_client, None if free_mib is None else free_mib * MIB))


def outcome(world: World, id: str) -> str:
    """The code of the error that answered a request, or ``"accepted"``."""
    sent = [effect.event for effect in world.effects(effects.Send) if (effect.id or effect.event.id) == id]
    return next((event.code for event in sent if isinstance(event, events.Error)), "accepted")


@pytest.fixture
def limited(make_world: MakeWorld) -> World:
    world = make_world(limits={"outputs_mib": 100})
    world.ready()
    return world


def test_a_client_at_its_limit_is_refused_with_what_to_do_and_others_are_not(limited: World) -> None:
    measured(limited, 10_000, **{"1001": 100, "1002": 5})
    assert outcome(limited, limited.request(output="a.wav")) == "output_failed"
    assert [alert["name"] for alert in limited.machine.state.alerts.describe()] == ["outputs"]
    assert "uid:1001" in limited.machine.state.alerts.messages[0]
    # The files may be gone meanwhile.
    assert limited.effects(effects.MeasureOutputs)
    assert outcome(limited, limited.request(client=BOB, output="b.wav")) == "accepted"
    assert outcome(limited, limited.request()) == "accepted"
    measured(limited, 10_000, **{"1001": 90})
    assert outcome(limited, limited.request(output="a.wav")) == "accepted"
    assert not limited.machine.state.alerts.describe()


def test_however_much_one_client_writes_the_next_finds_room(make_world: MakeWorld) -> None:
    world = make_world(limits={"outputs_mib": 0})
    world.ready()
    measured(world, 20, **{"1001": 80})
    assert outcome(world, world.request(output="a.wav")) == "output_failed"
    assert outcome(world, world.request(client=BOB, output="b.wav")) == "accepted"
    [job] = [tell.message for tell in world.effects(effects.Tell) if isinstance(tell.message, wire.SpeakJob)]
    assert job.output_room == 16 * MIB and job.keep_free == 256 * MIB


def test_a_gateways_customers_share_its_room(make_world: MakeWorld) -> None:
    world = make_world(limits={"outputs_mib": 100, "gateways": ["alice"]})
    world.ready()
    measured(world, 10_000, **{"1001/carol": 80, "1001/dave": 2})
    for customer, expected in (("carol", "output_failed"), ("dave", "accepted")):
        id = world.request(client=ALICE, output=f"{customer}.wav", on_behalf_of=customer)
        assert outcome(world, id) == expected
    measured(world, 10_000, **{"1001/carol": 80, "1001/dave": 20})
    assert outcome(world, world.request(client=ALICE, output="d.wav", on_behalf_of="dave")) == "output_failed"
    assert outcome(world, world.request(client=BOB, output="b.wav")) == "accepted"


def test_jobs_that_wait_are_refused_when_their_turn_comes_and_the_room_is_gone(limited: World) -> None:
    measured(limited, 10_000, **{"1001": 99})
    ids = [limited.request(output=f"{n}.wav", events="final") for n in range(3)]
    [running] = [job for job in limited.live.values() if job.state == "running"]
    limited.finish(running.id, None, path="/out/0.wav", bytes=MIB)
    assert [outcome(limited, id) for id in ids] == ["accepted", "output_failed", "output_failed"]
    assert limited.effects(effects.MeasureOutputs) == []  # nothing was refused at the door


def test_too_little_free_space_stops_outputs_and_nothing_else(limited: World) -> None:
    measured(limited, -1)
    assert outcome(limited, limited.request(output="a.wav")) == "output_failed"
    assert outcome(limited, limited.request()) == "accepted"
    assert "disk_reserve_mib" in limited.machine.state.alerts.messages[0]


def test_a_disk_that_can_not_be_measured_refuses_nothing(limited: World) -> None:
    measured(limited, None, **{"1001": 1_000})
    assert outcome(limited, limited.request(output="a.wav")) == "accepted"
