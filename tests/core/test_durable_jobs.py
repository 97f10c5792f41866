"""A durable job is accepted when it is on disk and not before, and goes on with the next daemon."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld, World

BOB = inputs.Client("uid:1002", "bob")


@pytest.fixture
def holding(make_world: MakeWorld) -> Any:
    """A World whose one worker is ready, and whose journal answers when it is told to."""
    world = make_world(journal="holds")
    world.ready()
    return world


def nothing_is_left(world: World) -> bool:
    purposes = {purpose for purpose, _ in world.machine.state.context.timers}
    return not any(world.machine.describe().values()) and "deadline" not in purposes


# --- results that can't be kept

FULL = "No space left on device (/results)"


def unheard(world: World, count: int) -> list[str]:
    """Accepted durable jobs whose client is gone."""
    ids = [world.request(priority="batch", text=f"chapter {number}") for number in range(count)]
    jobs = [world.job(id) for id in ids]
    world.step(inputs.ConnectionClosed(1))
    return jobs


def test_speech_that_nobody_would_have_is_not_done_but_made_again_when_there_is_room(world: World) -> None:
    first, second, third = unheard(world, 3)
    world.finish(first, b"RIFF", problem=FULL)
    assert not world.effects(effects.JournalEnd)
    # The others are not spoken for nothing, and somebody who is there is not held up.
    here = world.request(text="here", connection=2)
    assert world.names(here)[-1] == "started"
    world.finish(world.job(here))
    assert world.worker().state.value == "ready"
    wait = world.request(requests.Wait(id="", v=1, job=first), connection=3)
    # One tries whether there is room.
    world.pass_time(30.0)
    assert world.started()[-1] == "chapter 1"
    world.finish(second, b"RIFF", problem=FULL)
    assert world.worker().state.value == "ready"
    world.pass_time(30.0)
    assert world.started()[-1] == "chapter 2"
    # There is: so the rest go on, with the attempts that they had.
    world.finish(third, None, result="/results/third")
    for job in (first, second):
        world.finish(job, None, result=f"/results/{job}")
    assert world.names(wait)[-1] == "done" and nothing_is_left_but_results(world)
    ends = [end.event for end in world.effects(effects.JournalEnd)]
    assert [end.attempts for end in ends if isinstance(end, events.Done)] == [1, 2, 2]


def nothing_is_left_but_results(world: World) -> bool:
    counts = world.machine.describe()
    return not (counts["waiting"] or counts["live"] or counts["disk"])


@pytest.mark.parametrize("when", ["waits", "tried"])
def test_the_end_of_the_daemon_leaves_what_waits_for_the_disk_to_the_next_one(world: World, when: str) -> None:
    first, second = unheard(world, 2)
    world.finish(first, b"RIFF", problem=FULL)
    if when == "tried":
        world.pass_time(30.0)
    world.step(inputs.StopAsked("SIGTERM"))
    if when == "tried":
        world.finish(second, b"RIFF", problem=FULL)
    assert world.machine.scheduler.completion.left == 2 and not world.effects(effects.JournalEnd)
    assert nothing_is_left_but_results(world)


def test_what_waits_for_the_disk_can_be_cancelled(world: World) -> None:
    first, second = unheard(world, 2)
    world.finish(first, b"RIFF", problem=FULL)
    for job in (first, second):
        world.request(requests.Cancel(id="", v=1, job=job), connection=2)
    assert [effect.state for effect in world.effects(effects.JournalEnd)] == ["cancelled", "cancelled"]
    world.pass_time(30.0)
    assert nothing_is_left_but_results(world)


def test_a_stream_that_has_no_listener_any_more_is_made_whole_when_there_is_room(world: World) -> None:
    id = world.request(stream=True, durable=True)
    job = world.job(id)
    world.audio(job, 0)
    world.step(inputs.ConnectionClosed(1))
    world.finish(job, None, chunks=1, problem=FULL)
    world.pass_time(30.0)
    assert not world.messages(wire.SpeakJob)[-1].stream
    world.finish(job, None, result="/results/whole")
    assert nothing_is_left_but_results(world)


# --- accepted when it is on disk


@pytest.mark.parametrize("keys", [{"priority": "batch"}, {"durable": True}, {"durable": True, "stream": True}])
def test_a_durable_job_is_neither_accepted_nor_started_before_it_is_on_disk(holding: World, keys: Any) -> None:
    id = holding.request(**keys)
    other = holding.request(client=BOB, text="not durable")
    assert (holding.names(id), holding.names(other)) == ([], ["accepted", "started"])
    holding.finish(holding.job(other))
    assert holding.started() == ["not durable"]
    holding.write()
    assert holding.names(id) == ["accepted", "started"]


def test_a_batch_job_that_need_not_survive_is_not_written_down(holding: World) -> None:
    id = holding.request(priority="batch", durable=False)
    assert holding.names(id) == ["accepted", "started"]
    assert not holding.effects(effects.JournalAdd)


def test_what_is_written_down_is_all_that_the_next_daemon_needs(holding: World) -> None:
    prompt = requests.Prompt(text="said in it")
    holding.request(text="speak", priority="batch", deadline_s=60.0, key="k", prompt=prompt, body=b"recording")
    (add,) = holding.effects(effects.JournalAdd)
    row = add.row
    assert (row.client, row.user, row.request.text, row.request.key) == ("uid:1001", "alice", "speak", "k")
    assert (row.recording, row.format, row.state, row.attempts) == (b"recording", "wav", "waiting", 0)
    assert row.deadline_in_s == pytest.approx(60.0)
    assert row.content
    holding.write()
    assert [(e.job, e.attempts) for e in holding.effects(effects.JournalStart)] == [(row.job, 1)]


@pytest.mark.parametrize(
    "keys", [{}, {"key": "k"}, {"output": "a.wav"}, {"deadline_s": 5.0}, {"events": "final"}, {"connection": -1}]
)
def test_a_job_that_can_not_be_written_down_is_refused_and_leaves_nothing_behind(
    make_world: MakeWorld, keys: Any
) -> None:
    world = make_world(journal="fails")
    world.ready()
    id = world.request(priority="batch", prompt=requests.Prompt(text="x"), body=b"recording", **keys)
    (error,) = world.told(id)
    assert (error.code, error.retryable, error.retry_after_s) == ("unavailable", True, 5.0)
    assert error.job is UNSET
    assert "the disk is full" in error.message
    assert '"durable": false' in error.message
    assert nothing_is_left(world)
    world.pass_time(10.0)
    assert len(world.told(id)) == 1
    values = world.last(world.operate(control.Status)).values
    assert (values["counts"]["accepted"], values["counts"]["ended"]) == (0, {})
    world.journal = "works"
    assert world.names(world.request(priority="batch", **keys))[-1:] != ["error"]


def test_everybody_who_waits_for_a_job_that_could_not_be_written_is_told(make_world: MakeWorld) -> None:
    world = make_world(journal="holds")
    world.ready()
    ids = [
        world.request(priority="batch", key="k"),
        world.request(priority="batch", key="k", events="final"),
        world.request(priority="batch", key="k", connection=-1),
    ]
    (job,) = world.live
    ids.append(world.request(requests.Wait(id="", v=1, job=job)))
    world.journal = "fails"
    world.write()
    assert [[event.code for event in world.told(id)] for id in ids] == [["unavailable"]] * 4
    assert nothing_is_left(world)


# --- keys


def test_the_same_key_while_the_first_is_being_written_is_the_same_job(holding: World) -> None:
    first, second = (holding.request(priority="batch", key="k", connection=n) for n in (1, 2))
    other = holding.request(priority="batch", key="k", text="another")
    assert (holding.names(first), holding.names(second)) == ([], [])
    assert holding.last(other).code == "bad_request"
    holding.write()
    assert holding.names(first) == holding.names(second) == ["accepted", "started"]
    assert holding.job(first) == holding.job(second)
    assert len(holding.effects(effects.JournalAdd)) == 1


# --- the end


def test_an_end_is_told_when_it_is_on_disk(holding: World) -> None:
    id = holding.request(priority="batch")
    holding.write()
    job = holding.job(id)
    holding.say(_done(job))
    assert holding.names(id) == ["accepted", "started"]
    assert holding.states() == ["ready"], "the worker does not wait for the disk"
    wait = holding.request(requests.Wait(id="", v=1, job=job), connection=2)
    holding.write()
    assert holding.names(id) == ["accepted", "started", "done"]
    assert holding.names(wait) == ["done"]
    (end,) = holding.effects(effects.JournalEnd)
    assert (end.state, end.result) == ("done", f"/results/{job}")
    assert {stored.path for stored in holding.effects(effects.SendStored)} == {f"/results/{job}"}


def _done(job: str) -> wire.Finished:
    return wire.Finished(
        job=job, sample_rate=24_000, audio_s=1.0, synthesis_s=0.5, first_audio_s=0.1, voice="tone", sha256="0" * 64,
        chunks=0, bytes=4, path=None, result=f"/results/{job}", memory=wire.Memory(rss=1),
    )  # fmt: skip


def test_nobody_is_kept_waiting_for_a_disk_that_can_not_take_the_end(holding: World) -> None:
    id = holding.request(priority="batch")
    holding.write()
    holding.finish(holding.job(id), b"RIFF")
    holding.journal = "fails"
    holding.write()
    assert holding.names(id) == ["accepted", "started", "done"]
    assert holding.bodies(id) == [b"RIFF"]


def test_a_job_is_kept_as_long_as_its_key_holds(make_world: MakeWorld) -> None:
    world = make_world(queue={"keep_durable_s": 100.0, "keep_durable_mib": 3})
    world.ready()
    for key in (UNSET, "k"):
        world.finish(world.job(world.request(priority="batch", key=key)), b"RIFF")
    without, with_key = world.effects(effects.JournalEnd)
    assert without.keep_s == 100.0 and without.keep_bytes == 3 << 20
    assert with_key.keep_s == 86_400.0


def test_a_job_that_is_cancelled_while_it_is_written_is_never_started(holding: World) -> None:
    id = holding.request(priority="batch")
    (job,) = holding.machine.state.job_table.live
    cancel = holding.request(requests.Cancel(id="", v=1, job=job))
    assert holding.last(cancel).values == {"state": "cancelled", "job": job}
    holding.write()
    assert [event.code for event in holding.told(id)] == ["cancelled"]
    assert not holding.messages(wire.SpeakJob)
    assert holding.ends[job].state == "cancelled"
    assert holding.machine.state.job_table.live == {}
    assert not holding.machine.describe()["disk"]


# --- stop and drain


def test_a_stop_leaves_durable_jobs_that_wait_to_the_next_daemon_and_says_so(world: World) -> None:
    running, waiting, short = (
        world.request(priority="batch", text="a"),
        world.request(priority="batch", text="b"),
        world.request(text="c"),
    )
    world.step(inputs.StopAsked("SIGTERM"))
    error = world.last(waiting)
    assert (error.code, error.retryable, error.job) == ("shutting_down", True, world.job(waiting))
    assert "'wait'" in error.message
    world.finish(world.job(running), b"RIFF")
    world.finish(world.job(short), b"RIFF")
    assert isinstance(world.last(running), events.Done)
    assert isinstance(world.last(short), events.Done)
    assert list(world.ends) == [world.job(running)]
    world.die(0)
    assert len(world.effects(effects.Exit)) == 1


def test_a_stop_that_has_no_time_leaves_durable_jobs_that_are_spoken(world: World) -> None:
    running = world.request(priority="batch", output="a.wav")
    world.step(inputs.StopAsked("SIGTERM"))
    world.pass_time(30.0)
    assert world.last(running).code == "shutting_down"
    assert world.messages(wire.CancelJob)
    assert world.ends == {}
    # It finishes after all: the next daemon speaks it again, and must find the name free.
    world.finish(world.job(running), None, path="/out/a.wav")
    assert [(s.path, s.wanted) for s in world.effects(effects.SettleOutput)] == [("/out/a.wav", False)]


@pytest.mark.parametrize("times", [1, 2])
def test_a_job_that_is_being_written_when_the_daemon_stops_is_refused_and_does_not_go_on(
    holding: World, times: int
) -> None:
    good, bad = holding.request(priority="batch", text="good"), holding.request(priority="batch", text="bad")
    holding.request(text="keeps it busy", durable=False)
    for _ in range(times):
        holding.step(inputs.StopAsked("SIGTERM"))
    holding.write()
    assert [holding.names(id) for id in (good, bad)] == [["error"]] * 2, "neither was accepted"
    assert [holding.last(id).code for id in (good, bad)] == ["shutting_down"] * 2
    assert {end.state for end in holding.ends.values()} == {"failed"}, "it was said not to be done, and is not"
    if holding.worker().jobs:
        holding.finish(next(iter(holding.worker().jobs)), b"RIFF")
    holding.die(0)
    assert len(holding.effects(effects.Exit)) == 1


def test_a_daemon_that_exits_answers_requests_that_wait_for_the_journal(holding: World) -> None:
    asked = holding.request(requests.Wait(id="", v=1, job="a-1", events="final"))
    holding.step(inputs.StopAsked("SIGTERM"))
    assert not holding.told(asked)
    holding.die(0)
    assert holding.effects(effects.Exit)
    error = holding.last(asked)
    assert (error.code, error.retryable) == ("shutting_down", True)


def test_a_stopping_daemon_waits_for_the_ends_to_be_on_disk(holding: World) -> None:
    id = holding.request(priority="batch")
    holding.write()
    holding.step(inputs.StopAsked("SIGTERM"))
    holding.finish(holding.job(id), b"RIFF")
    assert holding.states() == ["ready"]
    holding.write()
    assert isinstance(holding.last(id), events.Done)
    assert holding.states() == ["stopping"]


# --- no workers, no journal


def test_durable_jobs_wait_for_better_times_when_no_worker_can_be_had(make_world: MakeWorld) -> None:
    world = make_world(workers={"restart": {"breaker_failures": 2}})
    durable, other = world.request(priority="batch"), world.request()
    for _ in range(4):
        if world.states() == ["starting"]:
            world.die(3, last_words="no module")
    assert world.last(other).code == "unavailable"
    assert world.names(durable) == ["accepted"]
    while world.states() != ["starting"]:
        world.pass_time(1.0)
    world.ready()
    assert world.names(durable) == ["accepted", "started"]


def test_a_journal_that_fails_is_an_alert_and_takes_nothing_from_those_who_don_t_need_it(world: World) -> None:
    before = world.request(priority="batch")
    world.step(inputs.JournalChanged("the disk is full"))
    world.step(inputs.JournalChanged("the disk is full"))
    (alert,) = world.last(world.operate(control.Status)).values["alerts"]
    assert (alert["name"], alert["message"]) == ("journal", "the disk is full")
    errors = [log for log in world.effects(effects.Log) if log.level == "error"]
    assert len(errors) == 1, "it is logged once"
    refused = world.last(world.request(priority="batch", text="x"))
    assert (refused.code, "the disk is full" in refused.message) == ("unavailable", True)
    assert world.last(world.request(requests.Info(id="", v=1))).limits["durable"] is False
    other = world.request(text="y")
    world.finish(world.job(before), b"RIFF")
    assert world.names(other) == ["accepted", "started"]
    world.finish(world.job(other))
    unknown = world.last(world.request(requests.GetJob(id="", v=1, job="a-9")))
    assert unknown.code == "job_not_found", "what is there can be read"
    world.step(inputs.JournalChanged(""))
    assert world.last(world.operate(control.Status)).values["alerts"] == []
    assert world.names(world.request(priority="batch", text="x")) == ["accepted", "started"]


def test_a_durable_job_goes_on_when_its_client_goes_away_even_as_a_stream(world: World) -> None:
    id = world.request(stream=True, durable=True)
    (asked,) = world.messages(wire.SpeakJob)
    world.step(inputs.ConnectionClosed(1))
    world.audio(world.job(id), 0)
    assert not world.messages(wire.CancelJob)
    world.finish(world.job(id), None, chunks=1, result=asked.result)
    assert world.ends[world.job(id)].state == "done"


def test_a_disk_that_never_answers_does_not_keep_the_daemon_from_ending(holding: World) -> None:
    id = holding.request(priority="batch")
    holding.write()
    holding.finish(holding.job(id), b"RIFF")
    assert holding.names(id)[-1] == "started", "its end is not on disk"
    holding.step(inputs.StopAsked("SIGTERM"))
    holding.pass_time(30.0 + 5.0)
    assert holding.names(id)[-1] == "done"
    holding.die(0)
    assert len(holding.effects(effects.Exit)) == 1
