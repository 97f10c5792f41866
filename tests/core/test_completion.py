"""An end is told once to each who waits for it, with its audio or with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World
from ..support.stage import MakeStage


def test_each_who_waits_hears_the_end_once_under_his_own_id(world: World) -> None:
    first = world.request(key="k")
    others = [world.request(key="k", events="final", connection=2), world.request(key="k", connection=-1)]
    wait = world.request(requests.Wait(id="", v=1, job=world.job(first)), connection=4)
    world.finish(world.job(first), b"RIFF")
    for id in (first, *others, wait):
        assert [type(event) for event in world.told(id) if event.final] == [events.Done]
        assert world.bodies(id) == [b"RIFF"]


def test_a_result_on_disk_is_read_for_each_who_waits_and_not_kept_in_memory(world: World) -> None:
    first = world.request(priority="batch", key="k")
    again = world.request(priority="batch", key="k", connection=2)
    (sent,) = world.messages(wire.SpeakJob)
    assert sent.result == f"/results/{sent.job}"
    message = wire.Finished(
        job=sent.job, sample_rate=24_000, audio_s=1.0, synthesis_s=0.5, first_audio_s=0.1, voice="tone",
        sha256="0" * 64, chunks=0, bytes=9, path=None, result=sent.result, memory=wire.Memory(rss=1),
    )  # fmt: skip
    world.say(message)
    stored = world.effects(effects.SendStored)
    assert [(s.event.id, s.path, s.to.connection) for s in stored] == [
        (first, sent.result, 1),
        (again, sent.result, 2),
    ]
    assert world.machine.state.job_table.result_bytes == 0
    late = world.request(requests.Wait(id="", v=1, job=sent.job), connection=3)
    assert [s.path for s in world.effects(effects.SendStored) if s.event.id == late] == [sent.result]


@pytest.mark.parametrize("keys", [{"output": "a.wav"}, {"durable": False}])
def test_a_result_that_goes_elsewhere_is_not_kept_on_disk(world: World, keys: dict[str, Any]) -> None:
    world.request(priority="batch", **keys)
    assert world.messages(wire.SpeakJob)[0].result is None


def test_a_durable_stream_is_kept_whole_for_whoever_has_not_heard_it(world: World) -> None:
    id = world.request(stream=True, durable=True)
    job = world.job(id)
    (asked,) = world.messages(wire.SpeakJob)
    world.audio(job, 0)
    late = world.request(requests.Wait(id="", v=1, job=job), connection=2)
    world.audio(job, 1)
    world.finish(job, None, chunks=2, result=asked.result)
    assert world.names(id) == ["accepted", "started", "audio", "audio", "done"] and world.last(id).chunks == 2
    # Who came in the middle hears no half of it, and is sent the file.
    assert world.names(late) == ["done"]
    (sent,) = world.effects(effects.SendStored)
    assert isinstance(sent.event, events.Done)
    assert (sent.event.id, sent.path, sent.event.chunks) == (late, asked.result, UNSET)


def test_a_job_is_followed_from_its_beginning_and_its_client_gets_it_whole(world: World) -> None:
    id = world.request(follow=True, durable=True)
    job = world.job(id)
    (asked,) = world.messages(wire.SpeakJob)
    assert asked.stream and asked.whole
    early = world.request(requests.Wait(id="", v=1, job=job, follow=True), connection=2)
    world.audio(job, 0)
    world.audio(job, 1)
    late = world.request(requests.Wait(id="", v=1, job=job, follow=True), connection=3)
    plain = world.request(requests.Wait(id="", v=1, job=job), connection=4)
    world.audio(job, 2)
    world.finish(job, None, chunks=3, result=asked.result)
    for follower in (early, late):
        assert world.names(follower) == ["audio", "audio", "audio", "done"]
        assert world.bodies(follower) == [f"{job}#{seq}".encode() for seq in range(3)]
        assert world.last(follower).chunks == 3
    assert world.names(id) == ["accepted", "started", "done"] and world.names(plain) == ["done"]
    assert {sent.event.id for sent in world.effects(effects.SendStored)} == {id, plain}


@pytest.mark.parametrize("keys", [{"follow": True}, {"stream": True}])
def test_a_stream_that_a_worker_did_not_keep_is_not_done(world: World, keys: dict[str, Any]) -> None:
    """A later request would be sent an end without the audio."""
    id = world.request(durable=True, **keys)
    world.audio(world.job(id), 0)
    world.finish(world.job(id), None, chunks=1)
    assert "done" not in world.names(id)
    world.die()
    assert "was not kept" in world.death().detail


def test_a_worker_that_dies_ends_those_who_follow_and_not_the_job(world: World) -> None:
    id = world.request(follow=True, durable=True)
    job = world.job(id)
    follower = world.request(requests.Wait(id="", v=1, job=job, follow=True), connection=2)
    world.audio(job, 0)
    world.die(-9)
    assert (world.last(follower).code, world.last(follower).retryable) == ("worker_crashed", True)
    world.come_back()
    again = world.request(requests.Wait(id="", v=1, job=job, follow=True), connection=2)
    world.audio(job, 0)
    world.finish(job, None, chunks=1, result=world.messages(wire.SpeakJob)[-1].result)
    assert world.names(again) == ["audio", "done"] and world.last(id).job == job
    assert world.names(follower) == ["audio", "error"]


def test_pieces_that_are_too_many_are_not_kept_and_who_follows_late_gets_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtts.daemon.core.jobs.job.MAX_MADE_BYTES", 3)
    id = world.request(follow=True, durable=True)
    job = world.job(id)
    for seq in range(3):
        world.say(wire.AudioChunk(job=job, seq=seq), b"aa")
    late = world.request(requests.Wait(id="", v=1, job=job, follow=True), connection=2)
    world.finish(job, None, chunks=3, result=world.messages(wire.SpeakJob)[0].result)
    assert world.names(late) == ["done"]
    assert world.effects(effects.SendStored)[-1].event.id == late


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"durable": False}, "durable"),
        ({"durable": True, "stream": True}, "stream"),
        ({"durable": True, "output": "a.wav"}, "output"),
        ({"more": True}, "more"),
    ],
)
def test_what_can_t_be_followed_is_refused(world: World, keys: dict[str, Any], named: str) -> None:
    error = world.last(world.request(follow=True, **keys))
    assert error.code == "bad_request" and error.message.startswith("follow: ") and named in error.message


def test_a_result_of_a_followed_job_that_can_t_be_kept_is_made_once_more_and_sent(world: World) -> None:
    id = world.request(follow=True, durable=True)
    world.audio(world.job(id), 0)
    world.finish(world.job(id), None, chunks=1, problem="No space left on device (/results)")
    assert world.names(id) == ["accepted", "started"]
    world.pass_time(30.0)
    world.finish(world.job(id), b"RIFF", problem="No space left on device (/results)")
    assert world.bodies(id) == [b"RIFF"]


def test_a_result_that_can_t_be_kept_is_an_alert_and_no_more_are_taken_for_a_while(world: World) -> None:
    id = world.request(priority="batch")
    world.finish(world.job(id), b"RIFF", problem="No space left on device (/results)")
    assert world.bodies(id) == [b"RIFF"]
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert alert["name"] == "results" and "No space left" in alert["message"]
    refused = world.last(world.request(priority="batch", text="x"))
    assert refused.code == "unavailable" and "No space left" in refused.message
    assert world.names(world.request(text="y"))[-1] == "started"
    world.finish(world.pool.workers["w0"].jobs[0], b"RIFF")
    world.pass_time(30.0)
    again = world.request(priority="batch", text="x")
    assert world.names(again)[-1] == "started"
    world.finish(world.job(again), None, result="/results/x")
    assert world.last(world.operate(control.Status)).values["alerts"] == []


def test_without_a_folder_for_results_they_are_sent(make_world: MakeWorld) -> None:
    world = make_world(results_folder="")
    world.ready()
    id = world.request(priority="batch")
    assert world.messages(wire.SpeakJob)[0].result is None
    world.finish(world.job(id), b"RIFF")
    assert world.bodies(id) == [b"RIFF"]


def test_a_job_ends_once_however_many_reasons_there_are(world: World) -> None:
    id = world.request(priority="batch", deadline_s=5.0)
    job = world.job(id)
    world.journal = "holds"
    world.request(requests.Cancel(id="", v=1, job=job))
    world.request(requests.Cancel(id="", v=1, job=job))
    world.step(inputs.ConnectionOverrun(1, job))
    world.operate(control.Cancel, client="alice")
    world.pass_time(10.0)
    world.say(wire.Failed(job=job, code="cancelled", message="cancelled"))
    assert [type(e) for e in world.told(id)] == [events.Accepted, events.Started]
    world.write()
    world.step(inputs.JournalEnded(job))
    assert [event.code for event in world.told(id) if event.final] == ["cancelled"]
    assert len(world.effects(effects.JournalEnd)) == 1
    assert world.machine.scheduler.completion.outcomes == {"cancelled": 1}


@pytest.mark.parametrize(("end", "wanted"), [("done", True), ("failed", False), ("cancelled", False)])
def test_a_file_of_a_job_that_did_not_end_well_is_not_left_behind(world: World, end: str, wanted: bool) -> None:
    id = world.request(output="a.wav")
    if end == "done":
        world.finish(world.job(id), None, path="/out/a.wav")
    elif end == "failed":
        world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="x"))
    else:
        world.request(requests.Cancel(id="", v=1, job=world.job(id)))
    assert [(s.path, s.wanted) for s in world.effects(effects.SettleOutput)] == [("/out/a.wav", wanted)]


def test_a_file_that_was_never_begun_is_nobody_s_business(world: World) -> None:
    world.request()
    id = world.request(output="a.wav")
    world.request(requests.Cancel(id="", v=1, job=world.job(id)))
    assert not world.effects(effects.SettleOutput)


def test_a_job_that_failed_shows_its_error_to_who_asks_later(world: World) -> None:
    id = world.request(priority="batch")
    world.say(wire.Failed(job=world.job(id), code="synthesis_failed", message="its words"))
    answer = world.last(world.request(requests.GetJob(id="", v=1, job=world.job(id))))
    assert (answer.state, answer.code, answer.message) == ("failed", "synthesis_failed", "its words")
    assert answer.position is UNSET


@pytest.mark.parametrize("thought", [0.1, 10.0])
@pytest.mark.usefixtures("no_head_start")
def test_a_class_is_charged_for_the_time_that_its_jobs_really_took(make_stage: MakeStage, thought: float) -> None:
    stage = make_stage(segment_s=1_000.0, queue={"max_waiting": 1_000, "max_share": 1.0, "preempt": False})
    world = stage.world
    # Batch jobs have an option by which they are told apart, and are thought to take another time than they do.
    options = {"seconds": 1.0}
    job = world.request(text="b" * 10, priority="batch", options=options, durable=False)
    for _ in range(8):
        world.machine.state.estimator.learn(world.live[world.job(job)], thought)
    for number in range(120):
        world.request(text=f"b{number:9}", priority="batch", options=options, durable=False)
        world.request(text=f"i{number:9}")
    stage.run(100.0)
    batch = sum(seconds for text, seconds in stage.spoken.items() if text[0] == "b")
    assert batch == pytest.approx(20.0, abs=3.0)
