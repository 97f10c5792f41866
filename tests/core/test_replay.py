"""A stream whose worker died goes on where it broke, if its bytes are known to come out the same; else it ends."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from glmtts.protocol import events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World

PIECES = [b"one", b"two", b"three"]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One ready worker with two slots, which makes the same bytes again."""
    world = make_world()
    world.ready(slots=2, repeats=True)
    return world


def speak(world: World, job: str, first: int, last: int, **keys: Any) -> None:
    """The worker sends these pieces of the stream."""
    for seq in range(first, last):
        digest = hashlib.sha256(b"".join(PIECES[: seq + 1])).digest()
        chunk = wire.AudioChunk(job=job, seq=seq, audio_s=float(seq + 1), digest=digest)
        world.say(chunk if not keys else wire.AudioChunk(job=job, seq=seq, **keys), PIECES[seq])


def stream(world: World, **keys: Any) -> tuple[str, str]:
    """A stream of which two pieces were sent; its request and its job."""
    id = world.request(stream=True, **keys)
    job = world.job(id)
    speak(world, job, 0, 2)
    return id, job


def test_a_stream_goes_on_after_what_was_sent_of_it(world: World) -> None:
    id, job = stream(world)
    world.say(wire.SegmentDone(job=job, segment=1, segments=2, audio_s=2.0))
    world.die()
    assert world.names(id)[-1] == "progress", "no error"
    world.come_back(slots=2, repeats=True)
    sent = world.messages(wire.SpeakJob)[-1]
    assert sent.replay == wire.Replay(6, hashlib.sha256(b"onetwo").digest(), 2)
    world.forget()
    world.say(wire.SegmentDone(job=job, segment=1, segments=2, audio_s=2.0))
    assert not world.told(id), "it was told of this segment before"
    speak(world, job, 2, 3)
    world.say(wire.SegmentDone(job=job, segment=2, segments=2, audio_s=3.0))
    world.finish(job, None, chunks=3)
    assert world.bodies(id) == [b"three"]
    assert world.names(id) == ["audio", "progress", "done"]
    assert world.last(id).attempts == 2


def test_a_stream_that_breaks_while_it_is_replayed_goes_on_after_the_same_part_until_its_attempts_are_used_up(
    make_world: MakeWorld,
) -> None:
    world = make_world(workers={"restart": {"max_attempts": 3, "quarantine_after": 0}})
    world.ready(slots=2, repeats=True)
    id, job = stream(world)
    for _ in range(2):
        world.die()
        world.come_back(slots=2, repeats=True)
        assert world.messages(wire.SpeakJob)[-1].replay == wire.Replay(6, hashlib.sha256(b"onetwo").digest(), 2)
    speak(world, job, 2, 3)
    world.die()
    assert isinstance(world.last(id), events.Error)
    assert world.bodies(id) == PIECES


@pytest.mark.parametrize(
    "next_one",
    [{"repeats": False}, {"repeats": True, "engine_version": "2"}],
    ids=["does not repeat", "another version"],
)
def test_another_engine_does_not_take_a_stream_on(world: World, next_one: dict[str, Any]) -> None:
    id, _ = stream(world)
    world.die()
    world.come_back(slots=2, **next_one)
    assert world.last(id).code == "worker_crashed" and "part of it had been sent" in world.last(id).message
    assert len(world.messages(wire.SpeakJob)) == 1 and not world.worker().jobs


def test_a_stream_goes_on_with_fewer_slots(world: World) -> None:
    """A worker that ran out of memory comes back with half of them."""
    id, job = stream(world)
    world.die()
    world.come_back(slots=1, repeats=True)
    speak(world, job, 2, 3)
    assert world.bodies(id) == PIECES


@pytest.mark.parametrize("repeats", [False, True])
def test_an_engine_that_does_not_repeat_or_gives_no_digest_ends_its_streams(
    make_world: MakeWorld, *, repeats: bool
) -> None:
    world = make_world()
    world.ready(slots=2, repeats=repeats)
    id = world.request(stream=True)
    speak(world, world.job(id), 0, 2, **({"digest": b""} if repeats else {"digest": bytes(32)}))
    world.die()
    assert world.last(id).code == "worker_crashed" and "not retried" in world.last(id).message


def test_a_worker_that_makes_other_bytes_ends_the_stream(world: World) -> None:
    id, job = stream(world)
    world.die()
    world.come_back(slots=2, repeats=True)
    world.say(wire.Failed(job=job, code="worker_crashed", message="other bytes"))
    assert (world.last(id).code, world.last(id).message) == ("worker_crashed", "other bytes")


def test_nothing_joins_a_stream_that_waits_to_go_on(world: World) -> None:
    _, _ = stream(world, key="k")
    world.die()
    again = world.request(stream=True, key="k")
    assert world.last(again).code == "bad_request"


def texts_of(world: World) -> list[str]:
    """The texts that workers were given."""
    given = [message.text for message in world.messages(wire.SpeakJob)]
    return given + [message.text for message in world.messages(wire.AddText)]


def test_a_text_in_pieces_is_given_in_the_same_pieces_again(world: World) -> None:
    id = world.request(text="One is here. And", stream=True, more=True)
    job = world.job(id)
    world.request(requests.Text(id="", v=1, job=job, text=" two is. So"))
    speak(world, job, 0, 2)
    given = texts_of(world)
    world.die()
    world.request(requests.Text(id="", v=1, job=job, text=" is three.", last=True))
    world.forget()
    world.come_back(slots=2, repeats=True)
    assert world.messages(wire.SpeakJob)[0].replay is not None
    assert texts_of(world) == [*given, "So is three.", ""]
    assert len(given) == 2 and "".join(given) == "One is here. And two is. "
    assert world.messages(wire.AddText)[-1].last and world.live[job].attempt.texts == 3


def test_those_who_follow_a_job_hear_no_gap(world: World) -> None:
    id = world.request(durable=True, follow=True)
    job = world.job(id)
    early = world.request(requests.Wait(id="", v=1, job=job, follow=True))
    speak(world, job, 0, 2)
    world.die()
    world.come_back(slots=2, repeats=True)
    late = world.request(requests.Wait(id="", v=1, job=job, follow=True))
    speak(world, job, 2, 3)
    world.finish(job, None, chunks=3, result="/results/x")
    for follower in (early, late):
        assert b"".join(world.bodies(follower)) == b"onetwothree"
        assert world.names(follower)[-1] == "done"


def test_a_followed_job_begins_anew_where_it_can_not_go_on(world: World) -> None:
    id = world.request(durable=True, follow=True)
    job = world.job(id)
    early = world.request(requests.Wait(id="", v=1, job=job, follow=True))
    speak(world, job, 0, 2)
    world.die()
    world.come_back(slots=2, repeats=True)
    world.say(wire.Failed(job=job, code="worker_crashed", message="other bytes"))
    assert world.last(early).code == "worker_crashed"
    assert world.messages(wire.SpeakJob)[-1].replay is None
    speak(world, job, 0, 3)
    world.finish(job, None, chunks=3, result="/results/x")
    assert world.names(id)[-1] == "done"
