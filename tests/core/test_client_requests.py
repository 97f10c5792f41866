"""Who is let in, who is sent away and with what words, and what everybody may ask of their own jobs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.jobs.job import MAX_SUBSCRIBERS
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import OPERATOR, MakeWorld, World

BOB = inputs.Client("uid:1002", "bob")
DAVE = inputs.Client("uid:1003", "dave")
ROOT = inputs.Client("uid:0", "root", operator=True)


def refused(world: World, **keys: Any) -> Any:
    """The error of a request that is not accepted."""
    id = world.request(**keys)
    assert world.names(id) == ["error"]
    assert not isinstance(world.last(id).job, str)
    return world.last(id)


def test_a_job_that_starts_at_once_needs_no_room_in_the_queue(make_world: MakeWorld) -> None:
    world = make_world(queue={"max_waiting": 0})
    world.ready()
    assert world.names(world.request()) == ["accepted", "started"]
    assert refused(world).code == "queue_full"


def test_recordings_that_wait_are_bounded(make_world: MakeWorld) -> None:
    world = make_world(limits={"recordings_mib": 1})
    keys: dict[str, Any] = {"prompt": requests.Prompt(text="x"), "body": bytes(600 << 10)}
    id = world.request(**keys)
    assert refused(world, **keys).code == "queue_full"
    world.request(requests.Cancel(id="", v=1, job=world.job(id)))
    assert world.names(world.request(**keys)) == ["accepted"]


def test_a_request_that_is_refused_costs_nothing_of_the_rate(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "1/minute"}, audio={"default_format": "ogg"})
    assert refused(world, options={"nonsense": 1}).code == "bad_request"
    assert refused(world, sample_rate=44_100).code == "bad_request"
    assert world.names(world.request()) == ["accepted"]


@pytest.mark.parametrize(("output", "made"), [("a.mp3", "mp3"), ("chapter.1", "ogg")])
def test_the_name_of_an_output_says_its_format_before_the_default_does(
    make_world: MakeWorld, output: str, made: str
) -> None:
    world = make_world(audio={"default_format": "ogg"})
    id = world.request(output=output)
    assert next(iter(world.live.values())).format == made, id


def test_vip_is_for_those_who_are_named(world: World) -> None:
    assert refused(world, priority="vip").code == "forbidden"
    assert world.names(world.request(priority="vip", client=ROOT))[0] == "accepted"


def test_what_an_engine_does_not_take_is_named_with_its_key(world: World) -> None:
    assert refused(world, options={"seconds": "long"}).message.startswith("options.seconds: expected ")
    assert refused(world, options={"second": 1}).message == "options.second: unknown key"
    assert refused(world, options={"fault": "explode"}).message.startswith("options.fault: 'explode' is not one of ")


def test_a_voice_that_is_not_there_is_refused_with_those_that_are(world: World) -> None:
    assert "tone" in refused(world, voice="nobody").message
    assert world.names(world.request(voice="tone"))[0] == "accepted"


def test_an_engine_without_voices_of_its_own_says_at_once_that_it_needs_one(make_world: MakeWorld) -> None:
    world = make_world()
    world.ready(voices=())
    error = refused(world)
    assert (error.code, error.message) == (
        "bad_request",
        "voice: the engine fault needs the voice of a recording: name one, or send a prompt; "
        "none is registered yet (glmttsctl voice add)",
    )
    assert world.names(world.request(prompt=requests.Prompt(text="hello"), body=b"RIFF"))[0] == "accepted"


def test_a_default_voice_that_is_not_registered_is_named(make_world: MakeWorld) -> None:
    world = make_world(voices={"default": "anna"})
    world.ready()
    error = refused(world)
    assert (error.code, error.message) == (
        "voice_not_found",
        "voice: 'anna' ([voices] default) is unknown; there are tone",
    )


def test_two_jobs_do_not_write_one_file(world: World) -> None:
    id = world.request(output="a.wav")
    assert refused(world, output="a.wav").code == "output_exists"
    world.finish(world.job(id), None, path="/out/a.wav")
    assert world.last(id).path == "/out/a.wav"
    assert world.names(world.request(output="a.wav"))[0] == "accepted"


def test_a_gateway_speaks_for_its_users_and_nobody_else_does(make_world: MakeWorld) -> None:
    world = make_world(limits={"gateways": ["bob"]}, queue={"max_per_client": 1})
    assert refused(world, on_behalf_of="carol").code == "forbidden"
    id = world.request(client=BOB, on_behalf_of="carol")
    assert refused(world, client=BOB, on_behalf_of="carol").code == "queue_full"
    assert world.names(world.request(client=BOB, on_behalf_of="dave")) == ["accepted"]
    ask = world.request(requests.GetJob(id="", v=1, job=world.job(id)), client=BOB)
    assert isinstance(world.last(ask), events.JobAnswer)


def test_a_gateway_that_acts_for_a_customer_sees_and_cancels_the_jobs_of_that_customer_alone(
    make_world: MakeWorld,
) -> None:
    world = make_world(limits={"gateways": ["bob"]}, journal="none")
    job = world.job(world.request(client=BOB, on_behalf_of="carol"))

    def ask(kind: type[Any], client: inputs.Client = BOB, **keys: Any) -> Any:
        return world.last(world.request(kind(id="", v=1, **keys), client=client))

    for kind in (requests.GetJob, requests.Wait, requests.Cancel):
        assert ask(kind, job=job, on_behalf_of="dave").code == "job_not_found"
        assert ask(kind, client=DAVE, job=job, on_behalf_of="carol").code == "forbidden"
    assert ask(requests.ListJobs, on_behalf_of="dave").jobs == []
    assert ask(requests.ListJobs, client=DAVE, on_behalf_of="carol").code == "forbidden"
    # An operator may act for any customer, of its own.
    assert ask(requests.ListJobs, client=ROOT, on_behalf_of="carol").jobs == []
    for mine in cast("list[dict[str, Any]]", [{"on_behalf_of": "carol"}, {}]):
        assert [info.job for info in ask(requests.ListJobs, **mine).jobs] == [job]
        assert ask(requests.GetJob, job=job, **mine).state == "waiting"
    assert ask(requests.Cancel, job=job, on_behalf_of="carol").values["state"] == "cancelled"


def test_the_journal_that_is_not_there_is_not_promised(make_world: MakeWorld) -> None:
    world = make_world(journal="none")
    world.ready()
    for keys in ({"durable": True}, {"priority": "batch"}):
        error = refused(world, **keys)
        assert (error.code, error.retryable, error.retry_after_s) == ("unavailable", True, 5.0)
        assert '"durable": false' in error.message
    assert world.names(world.request(priority="batch", durable=False)) == ["accepted", "started"]


# --- keys


def test_the_same_key_joins_the_job_while_it_lives_and_gets_its_result_after(world: World) -> None:
    first = world.request(key="k")
    again = world.request(key="k", connection=2)
    assert world.job(first) == world.job(again)
    world.finish(world.job(first), b"RIFF")
    assert world.started() == ["hello"]
    assert world.bodies(first) == world.bodies(again) == [b"RIFF"]
    after = world.request(key="k")
    assert world.names(after) == ["accepted", "done"]
    assert world.bodies(after) == [b"RIFF"]


def test_the_same_key_is_never_spoken_twice_even_when_its_result_is_gone(world: World) -> None:
    world.finish(world.job(world.request(key="k")))
    world.pass_time(400.0)
    gone = world.last(world.request(key="k"))
    assert gone.code == "job_not_found"
    assert "its result is not kept any more" in gone.message
    assert "send the request with a new key" in gone.message
    world.pass_time(24 * 3_600.0)
    assert world.names(world.request(key="k")) == ["accepted", "started"]


def test_a_key_whose_job_failed_says_that_a_new_key_is_needed_to_try_again(world: World) -> None:
    first = world.request(key="k")
    for _ in range(2):
        world.die()
        world.come_back()
    failed = world.last(first)
    assert failed.retryable and "new key" not in failed.message
    again = world.last(world.request(key="k"))
    assert (again.code, again.job) == (failed.code, failed.job)
    assert (
        again.message
        == f"{failed.message} (this job has ended; send the request with a new key to have it spoken again)"
    )


def test_a_key_for_another_text_is_refused_and_a_key_of_another_client_is_another_key(world: World) -> None:
    world.request(key="k", text="one")
    error = refused(world, key="k", text="two")
    assert error.code == "bad_request"
    assert error.message.startswith("key: ")
    assert world.names(world.request(key="k", text="two", client=BOB)) == ["accepted"]


def test_a_job_that_ended_in_an_error_is_the_same_job_with_the_same_error(world: World) -> None:
    id = world.request(key="k")
    world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="its words"))
    assert world.last(world.request(key="k")).code == "synthesis_failed"


# --- waiting, looking, cancelling


def test_a_client_that_comes_back_hears_the_rest_and_the_end(world: World) -> None:
    id = world.request(stream=True)
    wait = world.request(requests.Wait(id="", v=1, job=world.job(id)), connection=2)
    world.audio(world.job(id), 0)
    world.finish(world.job(id), None, chunks=1)
    assert world.names(wait) == ["audio", "done"]


def test_a_client_that_comes_back_after_the_end_gets_the_result_while_it_is_kept(world: World) -> None:
    id = world.request()
    world.step(inputs.ConnectionClosed(1))
    world.finish(world.job(id), b"RIFF")
    job = world.job(id)
    assert world.bodies(world.request(requests.Wait(id="", v=1, job=job), connection=2)) == [b"RIFF"]
    world.pass_time(301.0)
    late = world.request(requests.Wait(id="", v=1, job=job), connection=2)
    assert world.last(late).code == "job_not_found"


@pytest.mark.parametrize("type_", [requests.Wait, requests.Cancel, requests.GetJob])
def test_a_job_of_another_client_is_no_job(world: World, type_: type[Any]) -> None:
    id = world.request()
    ask = world.request(type_(id="", v=1, job=world.job(id)), client=BOB, connection=2)
    assert world.last(ask).code == "job_not_found"
    assert world.last(ask).message == world.last(
        world.request(type_(id="", v=1, job=world.job(id) + "0"), client=BOB)
    ).message.replace(world.job(id) + "0", world.job(id))
    world.finish(world.job(id), b"RIFF")
    assert world.names(ask) == ["error"]


def test_one_job_is_not_told_to_thousands_of_requests(world: World) -> None:
    id = world.request(key="k")
    job = world.job(id)
    for _ in range(MAX_SUBSCRIBERS - 1):
        world.request(requests.Wait(id="", v=1, job=job))
    assert world.last(world.request(requests.Wait(id="", v=1, job=job))).code == "queue_full"
    assert world.last(world.request(key="k")).code == "queue_full"


def test_a_request_that_leaves_a_job_makes_room_for_another_and_hears_no_end(world: World) -> None:
    first = world.request()
    job = world.job(first)
    waits = [world.request(requests.Wait(id="", v=1, job=job), connection=2) for _ in range(MAX_SUBSCRIBERS - 1)]
    of_another = world.request(requests.Leave(id="", v=1, job=job, request=waits[0]), connection=3)
    assert world.last(of_another).values == {"job": job, "left": False}
    left = world.request(requests.Leave(id="", v=1, job=job, request=waits[0]), connection=2)
    assert world.last(left).values == {"job": job, "left": True}
    late = world.request(requests.Wait(id="", v=1, job=job), connection=3)
    world.finish(job)
    assert world.names(late) == world.names(waits[1]) == ["done"] and not world.names(waits[0])
    assert world.last(world.request(requests.Leave(id="", v=1, job="no-1", request="x"))).values["left"] is False


def test_a_stream_ends_when_the_last_request_leaves_it_unless_it_is_durable(world: World) -> None:
    first = world.request(stream=True, key="k")
    again = world.request(stream=True, key="k", connection=2)
    job = world.job(first)
    world.request(requests.Leave(id="", v=1, job=job, request=first))
    world.audio(job, 0)
    assert world.names(again)[-1] == "audio" and "audio" not in world.names(first)
    world.request(requests.Leave(id="", v=1, job=job, request=again), connection=2)
    assert world.last(world.request(requests.GetJob(id="", v=1, job=job))).state == "cancelled"
    kept = world.request(stream=True, durable=True)
    world.request(requests.Leave(id="", v=1, job=world.job(kept), request=kept))
    assert world.last(world.request(requests.GetJob(id="", v=1, job=world.job(kept)))).state == "waiting"


def test_a_stream_is_not_joined_by_its_key_after_its_beginning(world: World) -> None:
    first = world.request(stream=True, key="k")
    early = world.request(stream=True, key="k", connection=2)
    world.audio(world.job(first), 0)
    assert refused(world, stream=True, key="k", connection=3).message.startswith("key: ")
    assert world.names(early) == ["accepted", "audio"]


def test_clients_list_their_own_jobs_alone(world: World) -> None:
    mine, _ = world.request(), world.request(client=BOB)
    ask = world.request(requests.ListJobs(id="", v=1))
    assert [job.job for job in world.last(ask).jobs] == [world.job(mine)]
    ask = world.request(requests.ListJobs(id="", v=1, state="done"))
    assert world.last(ask).jobs == []


def test_a_label_is_seen_in_every_list_and_event_and_in_no_log_above_debug(make_world: MakeWorld) -> None:
    world = make_world(daemon={"log_level": "info"})
    world.ready()
    world.machine.watched = True
    first = world.request(label="Chapter 1")
    waiting = world.request(label="Chapter 2")
    lists = [world.last(world.request(requests.ListJobs(id="", v=1))), world.last(world.operate(requests.ListJobs))]
    assert [sorted(job.label for job in answer.jobs) for answer in lists] == [["Chapter 1", "Chapter 2"]] * 2
    assert world.last(world.request(requests.GetJob(id="", v=1, job=world.job(waiting)))).label == "Chapter 2"
    assert [job["label"] for job in world.last(world.operate(control.Queue)).values["jobs"]] == ["Chapter 2"]
    workers = world.last(world.operate(control.Workers)).values["workers"]
    assert workers[0]["labels"] == {world.job(first): "Chapter 1"}
    world.finish(world.job(first), b"RIFF")
    told = [effect for effect in world.effects(effects.Publish) if effect.values.get("job") == world.job(first)]
    assert [(effect.topic, effect.values["label"]) for effect in told] == [
        (f"job.{state}", "Chapter 1") for state in ("waiting", "running", "done")
    ]
    assert not [log for log in world.effects(effects.Log) if "Chapter" in str(log)]


def test_a_speed_reaches_the_worker_and_is_refused_in_words_where_workers_have_none(make_world: MakeWorld) -> None:
    world, without = make_world(), make_world()
    world.ready()
    without.ready(speeds=False)
    world.request(speed=1.5)
    assert world.messages(wire.SpeakJob)[-1].speed == 1.5
    assert "speed" in world.last(world.request(requests.Info(id="", v=1))).features
    assert "speed" not in without.last(without.request(requests.Info(id="", v=1))).features
    error = refused(without, speed=1.5)
    assert error.code == "bad_request" and error.message.startswith("speed: ") and "libsonic" in error.message
    assert without.names(without.request(speed=1.0)) == ["accepted", "started"]


def test_a_key_is_the_same_job_under_another_label(world: World) -> None:
    first = world.request(key="k", label="a")
    assert world.job(world.request(key="k", label="b")) == world.job(first)


def test_a_long_queue_is_announced(world: World) -> None:
    told = [world.told(world.request())[0] for _ in range(7)]
    assert [isinstance(event.warning, str) for event in told] == [False] * 5 + [True] * 2
    assert "the queue is long" in told[-1].warning


# --- voices that go while jobs wait


def stored(name: str, text: str = "what is said") -> inputs.StoredVoice:
    return inputs.StoredVoice(name=name, path=f"/voices/{text}", text=text, seconds=2.0)


def voice(world: World, name: str, text: str | None) -> None:
    """An operator adds or replaces a voice, or with None removes it."""
    found = None if text is None else stored(name, text)
    world.step(inputs.VoiceStored(OPERATOR, "v", name, voice=found))


def test_a_job_whose_voice_was_removed_while_it_waited_fails_with_words_about_the_voice(world: World) -> None:
    voice(world, "carol", "a")
    first = world.request()
    waiting = [world.request(voice="carol"), world.request()]
    voice(world, "carol", None)
    world.finish(world.job(first))
    error = world.last(waiting[0])
    assert (error.code, error.retryable) == ("voice_not_found", False)
    assert error.message == "voice: 'carol' was removed while the job waited; there are tone"
    assert world.names(waiting[1])[-1] == "started"


def test_a_job_speaks_with_its_voice_as_it_is_when_the_job_starts(world: World) -> None:
    voice(world, "carol", "a")
    first = world.request()
    world.request(voice="carol")
    voice(world, "carol", "b")
    world.finish(world.job(first))
    message = world.messages(wire.SpeakJob)[-1]
    assert (message.recording, message.prompt_text) == ("/voices/b", "b")
