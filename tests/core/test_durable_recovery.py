"""Durable jobs of an earlier daemon: found in the journal, queued again, spoken once."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.scheduling.durable import MAX_INTERRUPTIONS
from glmtts.protocol import control, requests
from glmtts.protocol import worker as wire

from ..support.core_world import MakeWorld

ALICE, BOB = inputs.Client("uid:1001", "alice"), inputs.Client("uid:1002", "bob")
GATE = inputs.Client("uid:7", "gate")


# --- what only the journal remembers


def known_to_the_journal(make_world: MakeWorld, **keys: Any) -> Any:
    """A World with a job, done in an earlier daemon, that only the journal remembers; its id is ``a-1``."""
    earlier = make_world()
    earlier.ready()
    client = keys.pop("client", ALICE)
    id = earlier.request(priority="batch", client=client, **keys)
    job = earlier.job(id)
    sent = earlier.messages(wire.SpeakJob)[0]
    done = wire.Finished(
        job=job, sample_rate=24_000, audio_s=1.0, synthesis_s=0.5, first_audio_s=0.1, voice="tone", sha256="0" * 64,
        chunks=0, bytes=4, path=sent.output, result=sent.result, memory=wire.Memory(rss=1),
    )  # fmt: skip
    earlier.say(done)
    world = make_world()
    world.ready()
    world.rows["a-1"] = replace(earlier.rows[job], job="a-1")
    end = earlier.ends[job]
    world.ends["a-1"] = replace(end, job="a-1", event=replace(end.event, job="a-1"))
    return world


def test_a_key_of_an_earlier_daemon_s_job_is_that_job_with_its_result_and_not_a_second_synthesis(
    make_world: MakeWorld,
) -> None:
    world = known_to_the_journal(make_world, key="k")
    id = world.request(priority="batch", key="k")
    assert world.names(id) == ["accepted", "done"]
    assert [event.job for event in world.told(id)] == ["a-1", "a-1"]
    assert [stored.path for stored in world.effects(effects.SendStored)] == ["/results/b-1"]
    assert not world.messages(wire.SpeakJob)
    assert world.last(world.operate(control.Status)).values["counts"]["accepted"] == 0
    again = world.request(priority="batch", key="k")
    assert world.names(again) == ["accepted", "done"]


def test_a_key_of_an_earlier_daemon_s_job_with_another_content_is_refused(make_world: MakeWorld) -> None:
    world = known_to_the_journal(make_world, key="k")
    error = world.last(world.request(priority="batch", key="k", text="another"))
    assert (error.code, "a-1" in error.message) == ("bad_request", True)
    assert world.names(world.request(priority="batch", key="k", text="another", client=BOB)) == ["accepted", "started"]


def test_a_job_of_an_earlier_daemon_can_be_asked_for_and_its_result_fetched(make_world: MakeWorld) -> None:
    world = known_to_the_journal(make_world, label="Chapter 1")
    answer = world.last(world.request(requests.GetJob(id="", v=1, job="a-1")))
    assert (answer.state, answer.attempts, answer.audio_s, answer.text_length) == ("done", 0, 1.0, 5)
    assert answer.label == "Chapter 1"
    assert answer.client is UNSET
    assert world.last(world.request(requests.Cancel(id="", v=1, job="a-1"))).values["state"] == "done"
    wait = world.request(requests.Wait(id="", v=1, job="a-1"))
    assert world.names(wait) == ["done"]
    (stored,) = world.effects(effects.SendStored)
    assert (stored.path, stored.event.id) == ("/results/b-1", wait)
    shown = world.last(world.operate(requests.GetJob, job="a-1"))
    assert shown.client == "uid:1001"


@pytest.mark.parametrize("type_", [requests.Wait, requests.Cancel, requests.GetJob])
def test_a_job_of_an_earlier_daemon_is_its_client_s_alone(make_world: MakeWorld, type_: type[Any]) -> None:
    world = known_to_the_journal(make_world)
    assert world.last(world.request(type_(id="", v=1, job="a-1"), client=BOB)).code == "job_not_found"
    assert world.last(world.request(type_(id="", v=1, job="a-2"))).code == "job_not_found"


def test_a_gateway_finds_its_customers_jobs_of_an_earlier_daemon(make_world: MakeWorld) -> None:
    world = known_to_the_journal(make_world)
    world.rows["a-1"] = replace(world.rows["a-1"], client="uid:7/carol", user="gate")
    assert world.last(world.request(requests.GetJob(id="", v=1, job="a-1"), client=GATE)).state == "done"


def test_a_result_that_is_not_kept_any_more_or_can_not_be_read_is_said_to_be_gone(make_world: MakeWorld) -> None:
    world = known_to_the_journal(make_world)
    wait = world.request(requests.Wait(id="", v=1, job="a-1"))
    (stored,) = world.effects(effects.SendStored)
    world.step(inputs.StoredLost(stored.to, wait, "a-1", "no such file"))
    assert (world.last(wait).code, "no such file" in world.last(wait).message) == ("job_not_found", True)
    world.ends["a-1"] = replace(world.ends["a-1"], result="")
    gone = world.last(world.request(requests.Wait(id="", v=1, job="a-1")))
    assert (gone.code, "not kept any more" in gone.message) == ("job_not_found", True)


# --- the next daemon


def recovered(make_world: MakeWorld, *rows: inputs.JournalRow, ready: bool = True, **sections: Any) -> Any:
    world = make_world(journal="none", **sections)
    world.journal = "works"
    for row in rows:
        world.rows[row.job] = row
    if ready:
        world.ready()
    world.step(inputs.JournalChanged("", list(rows)))
    return world


def row(number: int = 1, **keys: Any) -> inputs.JournalRow:
    request = requests.Synthesize(
        id="old", v=1, text=keys.pop("text", f"text {number}"), priority="batch", key=keys.pop("key", UNSET)
    )
    defaults: dict[str, Any] = {"client": "uid:1001", "user": "alice", "content": f"c{number}"}
    keys = defaults | keys
    keys.setdefault("created", 1.7e9 - 1_000.0 + number)
    keys.setdefault("age_s", 1_000.0 - number)
    return inputs.JournalRow(job=f"a-{number}", request=request, format="wav", sample_rate=None, **keys)


def test_jobs_of_an_earlier_daemon_go_on_in_their_order_and_what_was_begun_goes_first(make_world: MakeWorld) -> None:
    world = recovered(make_world, row(1), row(2), row(3, attempts=1), ready=False)
    world.ready()
    for _ in range(3):
        world.finish(next(iter(world.worker().jobs)), b"RIFF")
    assert world.started() == ["text 3", "text 1", "text 2"]
    assert {end.state for end in world.ends.values()} == {"done"}
    assert [e.attempts for e in world.effects(effects.JournalStart)] == [2, 1, 1]
    assert world.last(world.operate(control.Status)).values["journal"] == {
        "ok": True, "problem": "", "unfinished": 0, "recovered": 3,
    }  # fmt: skip


def test_a_job_of_an_earlier_daemon_can_be_joined_waited_for_and_cancelled(make_world: MakeWorld) -> None:
    world = recovered(make_world, row(1), row(2, key="k"))
    wait = world.request(requests.Wait(id="", v=1, job="a-1"))
    world.finish("a-1", b"RIFF")
    assert world.names(wait) == ["done"]
    content = world.live["a-2"].content
    assert world.machine.state.job_table.with_key("uid:1001", "k", world.now) == ("a-2", content)
    world.request(requests.Cancel(id="", v=1, job="a-2"))
    assert world.ends["a-2"].state == "cancelled"


def test_the_end_of_a_daemon_costs_a_job_no_attempt_until_it_may_be_what_ends_it(make_world: MakeWorld) -> None:
    world = recovered(make_world, row(1, attempts=MAX_INTERRUPTIONS - 1), row(2, attempts=MAX_INTERRUPTIONS))
    assert world.ends["a-2"].event.code == "worker_crashed"
    assert f"{MAX_INTERRUPTIONS} times" in world.ends["a-2"].event.message
    world.die()
    world.come_back()
    assert world.started() == ["text 1", "text 1"], "its worker died once, and it is tried again"
    world.die()
    assert world.ends["a-1"].event.code == "worker_crashed"


def test_a_deadline_goes_on_while_no_daemon_runs(make_world: MakeWorld) -> None:
    world = recovered(make_world, row(1, deadline_in_s=-1.0), row(2, deadline_in_s=5.0), row(3, deadline_in_s=50.0))
    assert "while the daemon was down" in world.ends["a-1"].event.message
    world.pass_time(5.1)
    assert world.ends["a-2"].event.code == "deadline_exceeded"
    assert "a-3" not in world.ends


def test_a_recovered_stream_is_made_whole_and_kept(make_world: MakeWorld) -> None:
    streamed = row(1)
    streamed.request = replace(streamed.request, stream=True)
    world = recovered(make_world, streamed)
    (message,) = world.messages(wire.SpeakJob)
    assert (message.stream, message.result) == (False, "/results/a-1")


def test_a_job_is_taken_up_once_however_often_the_journal_names_it(make_world: MakeWorld) -> None:
    world = recovered(make_world, row(1))
    world.step(inputs.JournalChanged("", [row(1)]))
    assert world.machine.scheduler.durable_jobs.recovered == 1
    assert len(world.messages(wire.SpeakJob)) == 1


def test_jobs_of_an_earlier_daemon_find_room_however_full_the_queue_may_be(make_world: MakeWorld) -> None:
    world = recovered(make_world, *(row(n) for n in range(1, 6)), queue={"max_waiting_batch": 1})
    assert len(world.live) == 5
    assert world.last(world.request(priority="batch")).code == "queue_full"
