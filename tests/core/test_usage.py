"""What clients had spoken is counted once, kept over restarts, and can't be crowded out by others."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs.usage import MAX_ROWS, Usage
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from ..support.core_world import ALICE, BOB, MakeWorld, World

#: The day of the world's beginning (1.7e9 s), and the next.
TODAY, TOMORROW = "2023-11-14", "2023-11-15"
GATE = inputs.Client("uid:7", "gate")


def days(world: World, client: inputs.Client = ALICE, **keys: Any) -> list[tuple[Any, ...]]:
    found = world.last(world.request(requests.Usage(id="", v=1, **keys), client=client)).days
    return [(row.day, row.jobs, row.characters, row.audio_s) for row in found]


def test_a_job_counts_once_for_its_client_however_often_it_is_asked_for(world: World) -> None:
    id = world.request(key="k", text="hello")
    world.finish(world.job(id), b"RIFF", audio_s=2.5)
    world.request(key="k", text="hello")
    world.request(requests.Wait(id="", v=1, job=world.job(id)))
    assert days(world) == [(TODAY, 1, 5, 2.5)]
    assert days(world, BOB) == []
    everyone = world.last(world.operate(control.Usage)).days
    assert [(row.client, row.jobs) for row in everyone] == [("uid:1001", 1)]
    assert world.last(world.operate(control.Usage, client="uid:9")).days == []


def test_a_cancelled_job_counts_with_what_was_spoken_of_it(world: World) -> None:
    for spoken in (True, False):
        id = world.request(text="ten signs.")
        if spoken:
            world.say(wire.SegmentDone(job=world.job(id), segment=1, segments=4, audio_s=1.5))
        world.request(requests.Cancel(id="", v=1, job=world.job(id)))
        world.say(wire.Failed(job=world.job(id), code="cancelled", message="cancelled"))
    stream = world.request(text="ten signs.", stream=True)
    world.say(wire.AudioChunk(job=world.job(stream), seq=0, audio_s=0.25), b"aa")
    world.request(requests.Cancel(id="", v=1, job=world.job(stream)))
    assert days(world) == [(TODAY, 2, 5 + 10, 1.75)]


def test_a_gateway_sees_each_customer_and_a_customer_only_itself(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["gate"]})
    world.ready()
    for name in ("carol", "dave"):
        id = world.request(client=GATE, on_behalf_of=name)
        world.finish(world.job(id), b"RIFF", audio_s=1.0)
    rows = world.last(world.request(requests.Usage(id="", v=1), client=GATE)).days
    assert [row.on_behalf_of for row in rows] == ["carol", "dave"]
    assert days(world, GATE, on_behalf_of="dave") == [(TODAY, 1, 5, 1.0)]
    assert world.last(world.request(requests.Usage(id="", v=1, on_behalf_of="x"))).code == "forbidden"


def test_days_are_listed_from_the_newest_and_old_ones_are_not(make_world: MakeWorld) -> None:
    world = make_world(limits={"usage_days": 2})
    world.ready()
    for _ in range(3):
        world.finish(world.job(world.request()), b"RIFF", audio_s=1.0)
        world.pass_time(86_400.0)
    world.finish(world.job(world.request()), b"RIFF", audio_s=1.0)
    assert [row[0] for row in days(world)] == ["2023-11-17", "2023-11-16"]
    assert [row[0] for row in days(world, since="2023-11-17")] == ["2023-11-17"]
    assert [row[0] for row in days(world, since=1.7e9 + 3 * 86_400)] == ["2023-11-17"]
    assert world.last(world.request(requests.Usage(id="", v=1, since="yesterday"))).message.startswith("since: ")
    one = world.last(world.request(requests.Usage(id="", v=1, limit=1)))
    assert len(one.days) == 1 and one.more is True
    # The journal forgets them too, and nothing else.
    world.pass_time(3.0)
    assert world.effects(effects.KeepUsage)[-1].oldest == 19_677


def test_the_journal_gets_amounts_to_add_and_gives_them_back_once(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready()
    for _ in range(2):
        world.finish(world.job(world.request()), b"RIFF", audio_s=1.0)
    assert not world.effects(effects.KeepUsage)
    world.pass_time(2.5)
    (kept,) = world.effects(effects.KeepUsage)
    assert kept.rows == [inputs.UsageRow("uid:1001", 19_675, inputs.Spoken(2, 10, 2.0))]
    world.forget()
    world.pass_time(10.0)
    assert not world.effects(effects.KeepUsage)
    later = make_world()
    later.ready()
    restored = inputs.JournalChanged("", usage=list(kept.rows))
    for _ in range(2):
        later.step(restored)
    assert days(later) == [(TODAY, 2, 10, 2.0)]


def test_a_daemon_that_ends_hands_everything_to_the_journal_first(world: World) -> None:
    world.finish(world.job(world.request()), b"RIFF", audio_s=1.0)
    world.operate(control.Stop)
    world.die(0)
    kinds = [type(effect) for effect in world.done if isinstance(effect, effects.KeepUsage | effects.Exit)]
    assert kinds == [effects.KeepUsage, effects.Exit]


@pytest.mark.parametrize("keep_days", [1, 31, 366])
def test_a_crowd_of_invented_names_takes_no_row_of_others_and_no_memory_without_end(keep_days: int) -> None:
    usage, one = Usage(), inputs.Spoken(1, 1, 1.0)
    usage.count(ALICE, 0.0, one, keep_days)
    most = MAX_ROWS // keep_days
    for number in range(2 * most):
        usage.count(inputs.Client("uid:7", "gate", on_behalf_of=f"{number}/"), 0.0, one, keep_days)
    usage.count(BOB, 0.0, one, keep_days)
    rows = {row.client: row.spoken.jobs for row in usage.rows(0)}
    assert len(rows) == len(usage) <= 1.5 * most + 3
    assert (rows["uid:1001"], rows["uid:1002"]) == (1, 1)
    assert sum(rows.values()) == 2 * most + 2 and rows["uid:7/"] > 1
