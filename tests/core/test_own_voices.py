"""Voices that clients keep for themselves: whose they are, what they may take, and the jobs that speak with them."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.settings import ClientLimits
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import ALICE, BOB, OPERATOR, MakeWorld, World

KIB = 1 << 10
GATE = inputs.Client("uid:7", "gate")
CAROL: dict[str, Any] = {"client": GATE, "on_behalf_of": "carol"}
DAVE: dict[str, Any] = {"client": GATE, "on_behalf_of": "dave"}


def ask(world: World, kind: type[Any], *, client: inputs.Client = ALICE, body: Any = None, **keys: Any) -> str:
    return world.request(kind(id="", v=1, **keys), client=client, body=body)


def add(world: World, name: str = "me", *, client: inputs.Client = ALICE, size: int = KIB, **keys: Any) -> str:
    keys.setdefault("text", "words")
    return ask(world, requests.VoiceAdd, client=client, body=bytes(size), name=name, consent=True, **keys)


def asked(world: World) -> list[effects.StoreVoice]:
    return world.effects(effects.StoreVoice)


def stored(world: World, **keys: Any) -> None:
    """The change that was asked for last has been made."""
    effect = asked(world)[-1]
    request: Any = effect.request
    owner, name = effect.owner, request.name
    voice = None
    if effect.recording is not None and "error" not in keys:
        path = f"/own/{owner}/{name}/recording-{request.text}.wav"
        size = len(effect.recording)
        voice = inputs.StoredVoice(name, path, request.text, seconds=2.0, owner=owner, bytes=size, added=5.0)
    world.step(inputs.VoiceStored(effect.to, request.id, name, voice, owner=owner, **keys))


def kept(world: World, name: str = "me", **keys: Any) -> None:
    id = add(world, name, **keys)
    stored(world)
    assert world.last(id).values["name"] == name


def names(world: World, **keys: Any) -> dict[str, str]:
    """The voices that a client can name, and whose they are."""
    return {voice.name: voice.owner for voice in world.last(ask(world, requests.Voices, **keys)).voices}


def code(world: World, id: str) -> str:
    return str(world.last(id).code)


def spoken(world: World) -> list[tuple[str | None, str | None]]:
    return [(message.recording, message.prompt_text) for message in world.messages(wire.SpeakJob)]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    world = make_world(2, limits={"gateways": ["gate"], "own_voices": 3, "own_voices_mib": 1})
    world.ready("w0")
    world.ready("w1")
    return world


def test_a_voice_is_its_owners_alone(world: World) -> None:
    id = add(world)
    assert world.told(id) == []
    stored(world)
    assert world.last(id).values == {"name": "me", "seconds": 2.0, "owner": "own", "created": 5.0}
    assert names(world) == {"tone": "shared", "me": "own"}
    assert names(world, client=BOB) == {"tone": "shared"}
    assert code(world, world.request(voice="me", client=BOB)) == "voice_not_found"
    for kind in (requests.VoiceRemove, requests.VoiceSample):
        assert code(world, ask(world, kind, name="me", client=BOB)) == "voice_not_found"
    assert world.names(world.request(voice="me"))[0] == "accepted"


def test_two_customers_voices_of_one_name_never_mix(world: World) -> None:
    kept(world, **CAROL, text="carol")
    kept(world, **DAVE, text="dave")
    kept(world, client=GATE, text="gate")
    world.forget()
    world.request(voice="me", **CAROL)
    world.request(voice="me", **DAVE)
    assert spoken(world) == [(f"/own/uid:7/{name}/me/recording-{name}.wav", name) for name in ("carol", "dave")]
    world.forget()
    for who in (CAROL, DAVE, {"client": GATE}):
        ask(world, requests.VoiceSample, name="me", **who)
    assert [effect.event.text for effect in world.effects(effects.SendStored)] == ["carol", "dave", "gate"]  # type: ignore[union-attr]
    ask(world, requests.VoiceRemove, name="me", **CAROL)
    stored(world)
    assert (names(world, **CAROL), names(world, **DAVE)["me"]) == ({"tone": "shared"}, "own")


def test_a_content_that_kills_workers_with_one_customers_voice_is_not_refused_to_another(world: World) -> None:
    kept(world, **CAROL)
    kept(world, **DAVE)
    for _ in range(2):
        world.request(voice="me", **CAROL)
        worker = next(worker.name for worker in world.pool if worker.jobs)
        world.die(worker=worker)
        world.come_back(worker)
    for name in [worker.name for worker in world.pool if worker.jobs]:
        world.die(worker=name)
        world.come_back(name)
    assert code(world, world.request(voice="me", **CAROL)) == "quarantined"
    assert world.names(world.request(voice="me", **DAVE))[0] == "accepted"


def test_a_job_whose_own_voice_is_removed_speaks_with_no_other_of_that_name(world: World) -> None:
    kept(world)
    world.request(), world.request()
    id = world.request(voice="me")
    world.step(inputs.VoiceStored(OPERATOR, "v", "me", inputs.StoredVoice("me", "/voices/me", "for all")))
    assert names(world)["me"] == "own"
    ask(world, requests.VoiceRemove, name="me")
    stored(world)
    assert names(world)["me"] == "shared"
    world.finish(next(iter(world.live)))
    assert world.last(id).code == "voice_not_found"
    assert world.last(id).message.startswith("voice: 'me' was removed while the job waited; there are tone, me")


def test_names_that_are_for_all_are_refused_and_own_ones_replaced_when_asked(world: World) -> None:
    assert "for all clients" in world.last(add(world, "tone")).message
    kept(world)
    assert "send replace" in world.last(add(world)).message
    kept(world, replace=True, text="anew")
    world.request(voice="me")
    assert spoken(world)[-1][1] == "anew"
    # One that is not there yet is there for the next request.
    add(world, "other")
    assert "send replace" in world.last(add(world, "other")).message


def test_a_client_has_so_many_voices_and_so_much_of_the_disk(world: World) -> None:
    add(world, "a")
    add(world, "b")
    add(world, "c")
    error = world.last(add(world, "d"))
    assert (error.code, "own_voices" in error.message) == ("forbidden", True)
    for _ in range(3):
        stored(world)
    error = world.last(add(world, "d"))
    assert (error.code, "a, b, c; remove one of them" in error.message) == ("forbidden", True)
    ask(world, requests.VoiceRemove, name="a")
    stored(world)
    kept(world, "d")
    limits = world.last(world.operate(control.GetLimits, client="alice")).values
    row = limits["clients"][0]
    assert (row["voices"], row["max_voices"], row["held"]["own_voices"]) == (3, 3, 3 * 64 * KIB)
    assert limits["tables"]["own_voices"]["most"] == 1 << 20


def test_however_much_some_customers_keep_the_next_client_finds_room(world: World) -> None:
    for number in range(40):
        customer = f"c{number}"
        for voice in range(3):
            id = add(world, f"v{voice}", client=GATE, on_behalf_of=customer, size=200 * KIB)
            if world.told(id) == []:
                stored(world)
    shares = world.machine.state.voices.own.shares
    assert shares.total <= 0.8 * (1 << 20)
    assert len({client for client in map("uid:7/c{}".format, range(40)) if shares.of(client)}) > 1
    kept(world, client=BOB, size=100 * KIB)


def test_a_voice_that_is_refused_leaves_nothing_behind(world: World) -> None:
    id = add(world, size=300 * KIB)
    stored(world, error=("bad_audio", "the recording is silent"))
    assert code(world, id) == "bad_audio"
    assert world.machine.state.voices.own.shares.total == world.machine.state.job_table.recording_bytes == 0
    kept(world)
    assert world.machine.describe()["voice_changes"] == 0


def test_changes_wait_in_turns_and_within_bounds(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["gate"], "own_voices": 100, "rate": "100/minute"})
    ids = [add(world, f"v{number}") for number in range(6)]
    assert [code(world, id) for id in ids[4:]] == ["queue_full"] * 2
    bob = add(world, client=BOB)
    assert [effect.owner for effect in asked(world)] == ["uid:1001"]
    for _ in range(3):
        stored(world)
    assert world.names(bob) == ["result"]
    customers = [add(world, f"v{n}", client=GATE, on_behalf_of=f"c{n // 4}") for n in range(200)]
    assert sum(bool(world.told(id)) for id in customers) == 200 - 48
    assert world.told(add(world, "more", client=BOB)) == []


def test_voices_take_of_the_rate_and_of_the_memory_for_recordings(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "2/minute", "recordings_mib": 1})
    assert code(world, add(world, size=2 << 20)) == "queue_full"
    kept(world, "a")
    kept(world, "b")
    assert code(world, add(world, "c")) == "rate_limited"
    assert world.told(ask(world, requests.VoiceRemove, name="a")) == []


def test_a_daemon_may_keep_none_or_those_of_some(make_world: MakeWorld) -> None:
    world = make_world(limits={"own_voices": 0})
    assert code(world, add(world)) == "forbidden"
    assert world.last(ask(world, requests.Info)).limits["own_voices"] == 0
    world = make_world(limits={"own_voices": 0, "clients": {"alice": ClientLimits(own_voices=1)}})
    assert code(world, add(world, client=BOB)) == "forbidden"
    kept(world)


def test_only_a_gateway_adds_for_others(world: World) -> None:
    assert code(world, add(world, on_behalf_of="carol")) == "forbidden"
    assert code(world, ask(world, requests.Voices, on_behalf_of="carol")) == "forbidden"


def test_an_operator_removes_a_clients_voice(world: World) -> None:
    kept(world, **CAROL)
    id = world.operate(control.VoiceRemove, name="me", client="uid:7/carol")
    stored(world)
    assert world.last(id).values == {"name": "me", "removed": True}
    assert names(world, **CAROL) == {"tone": "shared"}
    assert world.last(world.operate(control.VoiceRemove, name="me", client="uid:7/carol")).code == "voice_not_found"


def test_a_change_that_a_bug_cut_short_holds_up_no_other(world: World) -> None:
    first, second = add(world, "a"), add(world, "b")
    world.step(inputs.EffectFailed(asked(world)[0], "RuntimeError: a bug"))
    assert code(world, first) == "unavailable"
    stored(world)
    assert world.last(second).values["name"] == "b"
    assert world.machine.state.voices.own.count("uid:1001") == 1


def test_the_sample_of_a_voice_that_has_gone_says_so(world: World) -> None:
    kept(world)
    id = ask(world, requests.VoiceSample, name="me")
    answer = world.last(id)
    assert isinstance(answer, events.VoiceSampleAnswer)
    assert (answer.owner, answer.format, answer.text) == ("own", "wav", "words")
    world.step(inputs.StoredLost(inputs.ReplyTo(1), id, "", "gone"))
    assert code(world, id) == "voice_not_found"
    assert "no recording" in world.last(ask(world, requests.VoiceSample, name="tone")).message


def test_own_voices_and_their_durable_jobs_are_there_after_a_restart(world: World) -> None:
    kept(world)
    world.request(), world.request()
    world.request(voice="me", durable=True)
    row = next(iter(world.rows.values()))
    voices = world.machine.state.voices.own.of("uid:1001")
    after = World(limits={"own_voices": 3})
    after.machine = Machine(
        after.machine.settings, after.machine.state.installation, now=100.0, wall=1.7e9, seed=1, voices=voices
    )
    after.done = after.machine.open()
    after.step(inputs.JournalChanged("", [row]))
    after.ready()
    assert spoken(after) == [("/own/uid:1001/me/recording-words.wav", "words")]
    assert after.machine.state.voices.own.shares.of("uid:1001") == 64 * KIB


def test_a_voice_counts_from_the_smallest_that_its_turn_may_find(world: World) -> None:
    kept(world, size=200 * KIB)
    # The removal waits: once it is made, the next voice takes all of its own.
    ask(world, requests.VoiceRemove, name="me")
    add(world, size=300 * KIB, replace=True)
    limits = world.last(world.operate(control.GetLimits, client="alice")).values
    assert limits["clients"][0]["held"]["own_voices"] == 500 * KIB
