"""A text that comes in pieces: spoken as it comes, by a worker that speaks for others while none comes."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from glmtts.daemon.core import effects, inputs
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire

from ..support.core_world import ALICE, BOB, MEMORY, MakeWorld, World


def piece(world: World, job: str, text: str = "", **keys: Any) -> Any:
    """Send a piece; returns its answer."""
    client = keys.pop("client", ALICE)
    return world.last(world.request(requests.Text(id="", v=1, job=job, text=text, **keys), client=client))


def starve(world: World, job: str, texts: int = 0, worker: str = "w0") -> None:
    """The worker has spoken all that it has of a job."""
    world.say(wire.Suspended(job=job, memory=MEMORY, waits=True, texts=texts), worker=worker)


def info(world: World, job: str) -> Any:
    return world.last(world.request(requests.GetJob(id="", v=1, job=job)))


def added(world: World) -> list[tuple[str, bool]]:
    return [(message.text, message.last) for message in world.messages(wire.AddText)]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    world = make_world(limits={"text_timeout_s": 60.0, "text_chars": 40})
    world.ready()
    return world


def open_job(world: World, text: str = "", **keys: Any) -> tuple[str, str]:
    """A job with ``more``: its request and its id."""
    request = world.request(text=text, more=True, **({"stream": True} | keys))
    return request, world.job(request)


def begin(world: World, **keys: Any) -> tuple[str, str]:
    """A job that a worker speaks, and that waits there for more of its text."""
    request, job = open_job(world, "One. T", **keys)
    world.audio(job, 0)
    starve(world, job)
    assert info(world, job).waits_for_text is True
    return request, job


# --- from piece to piece


def test_a_sentence_is_spoken_when_it_is_whole_and_the_rest_at_the_last_piece(world: World) -> None:
    _, job = open_job(world)
    assert world.started() == [] and info(world, job).waits_for_text is True
    for text in ("Mr", ". Smi", "th paid 3", ".", "50. "):
        assert piece(world, job, text).values["state"] == "waiting"
    assert world.started() == []
    assert piece(world, job, "Then").values == {"job": job, "state": "waiting", "text_length": 25}
    assert [(message.text, message.more) for message in world.messages(wire.SpeakJob)] == [
        ("Mr. Smith paid 3.50. ", True)
    ]
    piece(world, job, " he left")
    assert added(world) == []
    piece(world, job, ".", last=True)
    assert added(world) == [("Then he left.", True)]


def test_a_text_that_is_whole_at_once_needs_no_piece_more(world: World) -> None:
    _, job = open_job(world, "One. Two.")
    assert world.started() == ["One. "]
    piece(world, job, last=True)
    assert added(world) == [("Two.", True)]


def test_flush_has_everything_spoken_that_is_there(world: World) -> None:
    _, job = open_job(world, "Well")
    piece(world, job, flush=True)
    piece(world, job, "...", flush=True)
    piece(world, job, " yes", flush=True)
    assert world.started() == ["Well"] and added(world) == [("... yes", False)]


def test_characters_are_folded_across_pieces(world: World) -> None:
    _, job = open_job(world, "Cafe")
    for text in ("\u0301 １２", "：", "３０", "。ok"):
        piece(world, job, text)
    assert world.started() == ["Café 12:30。"]


# --- a job that waits for text


def test_a_job_that_waits_for_text_holds_no_worker(world: World) -> None:
    _, job = begin(world)
    other = world.request(text="hello", client=BOB)
    assert world.started() == ["One. ", "hello"] and world.told(other)[0].position == 0
    piece(world, job, "wo. T")
    assert added(world) == [("Two. ", False)] and not world.messages(wire.ResumeJob)
    assert info(world, job).suspended is True
    world.finish(world.job(other))
    assert [message.job for message in world.messages(wire.ResumeJob)] == [job]
    assert info(world, job).waits_for_text is UNSET


def test_text_that_crosses_the_news_of_its_lack_is_spoken_at_once(world: World) -> None:
    _, job = open_job(world, "One. T")
    piece(world, job, "wo. T")
    # The worker had not read it yet.
    starve(world, job, texts=0)
    assert [message.job for message in world.messages(wire.ResumeJob)] == [job]
    starve(world, job, texts=1)
    assert len(world.messages(wire.ResumeJob)) == 1 and info(world, job).waits_for_text is True


def test_a_worker_that_waits_for_text_is_not_taken_for_hung(world: World) -> None:
    request, job = begin(world)
    for _ in range(10):
        world.pass_time(50.0)
        piece(world, job, "x")
    assert world.states() == ["busy"] and "error" not in world.names(request)


def test_a_sentence_does_not_wait_for_the_end_of_a_book(world: World) -> None:
    _, job = begin(world)
    book = world.request(text="b" * 40, client=BOB, stream=True)
    long = world.job(book)
    world.say(wire.SegmentDone(job=long, segment=1, segments=20, audio_s=1.0))
    piece(world, job, "wo. T")
    assert [message.job for message in world.messages(wire.SuspendJob)] == [long]
    world.say(wire.Suspended(job=long, memory=MEMORY))
    assert [message.job for message in world.messages(wire.ResumeJob)] == [job]
    starve(world, job, texts=1)
    assert [message.job for message in world.messages(wire.ResumeJob)] == [job, long]


def test_jobs_without_text_take_no_place_in_the_queue(make_world: MakeWorld) -> None:
    world = make_world(queue={"max_waiting": 1}, limits={"open_texts": 4})
    world.ready()
    for _ in range(3):
        open_job(world)
    world.request(client=BOB)
    assert world.names(world.request(client=BOB)) == ["accepted"]


# --- its end


def test_a_text_without_its_last_piece_is_whole_after_a_time(world: World) -> None:
    _, job = begin(world)
    world.pass_time(59.0)
    assert added(world) == []
    world.pass_time(2.0)
    assert added(world) == [("T", True)] and [m.job for m in world.messages(wire.ResumeJob)] == [job]


@pytest.mark.parametrize("how", ["last", "timeout"])
def test_a_job_that_gets_no_word_ends_with_that(world: World, how: str) -> None:
    request, job = open_job(world, "...")
    if how == "last":
        assert piece(world, job, "!", last=True).values["state"] == "failed"
    else:
        world.pass_time(61.0)
    assert world.names(request) == ["accepted", "error"]
    assert world.last(request).code == "bad_request" and "no letter or digit" in world.last(request).message


def test_a_job_is_cancelled_while_it_waits_for_text(world: World) -> None:
    request, job = begin(world)
    world.request(requests.Cancel(id="", v=1, job=job))
    assert world.last(request).code == "cancelled" and [m.job for m in world.messages(wire.CancelJob)] == [job]
    # The worker owes the end of it.
    world.pass_time(61.0)
    assert world.states() == ["failed"]


def test_a_stream_whose_client_is_gone_ends_though_it_waits_for_text(world: World) -> None:
    _, job = begin(world)
    world.step(inputs.ConnectionClosed(1))
    assert not world.live and [m.job for m in world.messages(wire.CancelJob)] == [job]


def test_a_file_whose_worker_dies_is_spoken_from_the_beginning_with_all_that_came(world: World) -> None:
    request, job = open_job(world, "One. T", stream=False)
    starve(world, job)
    piece(world, job, "wo. T")
    world.die()
    world.come_back()
    assert world.started() == ["One. ", "One. Two. "]
    piece(world, job, "hree.", last=True)
    world.finish(job)
    assert world.names(request)[-1] == "done"


def test_a_stream_whose_worker_dies_while_it_waits_for_text_ends_once(world: World) -> None:
    request, _ = begin(world)
    world.die()
    assert world.names(request).count("error") == 1 and world.last(request).code == "worker_crashed"


def test_a_worker_is_not_blamed_on_a_job_that_waited_for_text(world: World) -> None:
    _, job = open_job(world, "One. T", stream=False)
    starve(world, job)
    world.die()
    assert world.live[job].excused == 1 and not world.machine.scheduler.retries.quarantine


# --- what is refused


def test_a_piece_that_a_job_can_not_take_is_refused_and_the_job_goes_on(world: World) -> None:
    request, job = open_job(world, "One. T")
    whole = world.job(world.request(text="hello"))
    for answer, words in (
        (piece(world, job, "x" * 35), "41 characters with those that came before; at most 40"),
        (piece(world, whole, "x"), "was not opened with more"),
        (piece(world, "b-99", "x"), "there is no job"),
        (piece(world, job, "x", client=BOB), "there is no job"),
    ):
        assert isinstance(answer, events.Error) and words in answer.message, answer
    piece(world, job, "wo", last=True)
    assert added(world) == [("Two", True)]
    assert "the last piece" in piece(world, job, "x").message
    world.say(wire.AudioChunk(job=job, seq=0), b"pcm")
    world.finish(job, body=None, chunks=1)
    assert world.names(request)[-1] == "done"
    assert "has ended" in piece(world, job, "x").message


def test_pieces_without_end_are_refused(world: World) -> None:
    _, job = open_job(world)
    for _ in range(1_039):
        piece(world, job, flush=True)
    assert piece(world, job, flush=True).code == "too_large"


def test_open_texts_have_a_limit_and_shares(make_world: MakeWorld) -> None:
    world = make_world(limits={"open_texts": 5}, queue={"max_share": 0.8})
    world.ready()
    jobs = [open_job(world)[1] for _ in range(4)]
    mine = world.last(world.request(text="", more=True))
    assert mine.code == "queue_full" and "which is the share of 5" in mine.message
    world.request(text="", more=True, client=BOB)
    full = world.last(world.request(text="", more=True, client=BOB))
    assert full.code == "queue_full" and "open_texts" in full.message
    piece(world, jobs[0], "so", last=True)
    assert world.names(world.request(text="", more=True)) == ["accepted"]


def test_a_req_socket_is_told_that_it_can_send_no_pieces(world: World) -> None:
    answer = world.last(world.request(text="", more=True, connection=-1))
    assert answer.code == "bad_request" and "DEALER" in answer.message


def test_one_token_of_the_rate_pays_for_all_pieces(make_world: MakeWorld) -> None:
    world = make_world(limits={"rate": "1/minute"})
    world.ready()
    _, job = open_job(world)
    for _ in range(20):
        assert isinstance(piece(world, job, "One. "), events.Result)
    assert world.last(world.request(text="", more=True)).code == "rate_limited"


def test_a_drain_lets_a_text_come_to_its_end(world: World) -> None:
    _, job = begin(world)
    drained = world.operate(control.Drain)
    piece(world, job, "wo", last=True)
    assert not world.told(drained)
    world.finish(job, body=None, chunks=1)
    assert world.last(drained).values["drained"] is True


def test_a_text_without_end_keeps_no_worker_from_being_replaced(world: World) -> None:
    request, job = begin(world)
    world.operate(control.Recycle, worker="w0")
    for _ in range(8):
        world.pass_time(10.0)
        piece(world, job, "x")
    error = world.last(request)
    assert (error.code, error.retryable) == ("unavailable", True) and "the worker is replaced" in error.message


def test_a_text_that_was_not_sent_to_the_worker_ends_its_job(world: World) -> None:
    request, job = begin(world)
    piece(world, job, "wo. T")
    tell = next(e for e in world.effects(effects.Tell) if isinstance(e.message, wire.AddText))
    world.may_fail = True
    world.step(inputs.EffectFailed(tell, "a bug"))
    assert world.last(request).code == "unavailable"
