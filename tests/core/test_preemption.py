"""A sentence need not wait for a chapter: it is suspended, goes on afterwards, and loses nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.settings import ClassesSettings, VipSettings
from glmtts.protocol import control, events, requests
from glmtts.protocol import worker as wire
from glmtts.protocol.worker import MAX_SUSPENDED

from ..support.core_world import World
from ..support.stage import MakeStage, Stage

BOB, CAROL, DAVE = (inputs.Client(f"uid:{1_002 + n}", name) for n, name in enumerate(("bob", "carol", "dave")))
#: Ten seconds of speech, in ten segments.
CHAPTER, SENTENCE = "c" * 100, "s" * 10


def chapter(stage: Stage, text: str = CHAPTER, **keys: Any) -> str:
    return str(stage.world.request(text=text, **({"priority": "batch"} | keys)))


def aside(stage: Stage, **keys: Any) -> tuple[str, str]:
    """A batch job that is suspended for an interactive one, which is at work; their requests."""
    long = chapter(stage, **keys)
    stage.run(2.5)
    short = stage.world.request(text=SENTENCE * 5, client=BOB)
    stage.run(1.0)
    assert stage.world.worker().process.suspended == [stage.of(keys.get("text", CHAPTER))]
    return long, short


# --- what gives way to what


def test_a_sentence_is_spoken_at_the_next_boundary_of_a_chapter_that_goes_on_where_it_was(
    make_stage: MakeStage,
) -> None:
    stage = make_stage()
    long = chapter(stage)
    start = stage.world.now
    stage.run(2.5)
    short = stage.world.request(text=SENTENCE, client=BOB)
    assert stage.world.told(short)[0].estimated_wait_s == 0.5
    stage.run(20.0)
    assert [(round(at - start, 2), what, len(text)) for at, what, text in stage.log] == [
        (0.0, "begins", 100), (3.0, "suspended", 100), (3.0, "begins", 10), (4.0, "ends", 10), (4.0, "resumes", 100),
        (11.0, "ends", 100),
    ]  # fmt: skip
    done = stage.world.last(long)
    assert isinstance(done, events.Done)
    assert done.attempts == 1
    assert [e.segment for e in stage.world.told(long) if isinstance(e, events.Progress)] == list(range(1, 11))


def test_nothing_is_suspended_where_that_is_switched_off(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"preempt": False})
    chapter(stage)
    stage.run(2.5)
    short = stage.world.request(text=SENTENCE, client=BOB)
    assert stage.world.told(short)[0].estimated_wait_s == 7.5
    stage.run(10.0)
    assert not stage.when("suspended", CHAPTER)


@pytest.mark.parametrize("slow", [1.0, 0.1, 5.0])
@pytest.mark.usefixtures("no_head_start")
def test_under_a_stream_of_sentences_a_chapter_gets_the_share_of_its_class(make_stage: MakeStage, slow: float) -> None:
    # ``slow``: whatever was expected of it; a chapter that is nearly free, or that takes five times as long.
    stage = make_stage(slow=1.0, segment_s=0.25, queue={"max_share": 1.0})
    stage._slow = 1.0
    long = "c" * 2_000
    for _ in range(8):
        stage.world.machine.state.estimator.learn(_like(stage, long, "batch"), len(long) * stage.PACE_S * slow)
    chapter(stage, long)
    stage.run(1.0)
    stage.spoken.clear()
    for number in range(200):
        for client in (BOB, CAROL):
            if stage.world.machine.state.queue.length("interactive") < 4:
                stage.world.request(text=f"{number:3}" + "s" * 7, client=client, durable=False)
        stage.run(0.5)
    sentences = sum(seconds for text, seconds in stage.spoken.items() if text != long)
    assert stage.spoken[long] + sentences == pytest.approx(100.0, abs=1.0), "the worker never waits"
    # 4 : 1, the weights of the classes.
    assert stage.spoken[long] == pytest.approx(20.0, abs=1.5)


def _like(stage: Stage, text: str, priority: str) -> Any:
    from glmtts.daemon.core.jobs.job import Job

    request = requests.Synthesize(id="x", v=1, text=text, priority=priority)  # type: ignore[arg-type]
    return Job(
        id="x", client=BOB, request=request, recording=None, format="wav", sample_rate=None, streams=False,
        accepted_at=stage.world.now, created=0.0,
    )  # fmt: skip


def test_a_sentence_overtakes_the_rest_of_a_long_job_of_who_has_had_more(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.world.request(text=CHAPTER)
    stage.run(2.5)
    stage.world.request(text=SENTENCE, client=BOB)
    stage.run(2.0)
    assert stage.when("ends", SENTENCE)
    assert not stage.when("ends", CHAPTER)


def test_a_batch_sentence_overtakes_a_batch_chapter_also_where_other_workers_take_no_batch_jobs(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(2)
    chapter(stage)
    stage.run(2.5)
    chapter(stage, SENTENCE, client=BOB)
    stage.run(2.0)
    assert stage.when("ends", SENTENCE)
    assert stage.world.worker("w1").jobs == []


@pytest.mark.parametrize(
    ("text", "client", "keys"),
    [
        ("s" * 60, BOB, {}),
        (SENTENCE, inputs.Client("uid:1001", "alice"), {}),
        (SENTENCE, BOB, {"priority": "batch"}),
    ],
    ids=["nearly as long", "of the same client", "of a lower class"],
)
def test_what_is_not_to_overtake_waits(make_stage: MakeStage, text: str, client: inputs.Client, keys: Any) -> None:
    stage = make_stage()
    stage.world.request(text=CHAPTER)
    stage.run(2.5)
    stage.world.request(text=text, client=client, **keys)
    stage.run(7.6)
    assert not stage.when("suspended", CHAPTER)
    assert stage.when("begins", text)


def test_who_has_had_more_than_others_does_not_overtake_them(make_stage: MakeStage) -> None:
    stage = make_stage()
    for _ in range(5):
        stage.world.request(text="b" * 100, client=BOB)
    chapter_of_alice = stage.world.request(text=CHAPTER)
    stage.run(50.1)
    stage.world.request(text=SENTENCE, client=BOB)
    stage.run(3.0)
    begun = stage.when("begins", CHAPTER)
    assert begun and stage.world.names(chapter_of_alice)[1] == "started"


def test_a_stream_that_is_heard_is_not_interrupted_by_its_own_class(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.world.request(text=CHAPTER, stream=True)
    stage.run(2.5)
    stage.world.request(text=SENTENCE, client=BOB)
    stage.run(7.6)
    assert not stage.when("suspended", CHAPTER)


def test_a_stream_that_is_heard_gives_way_to_a_higher_class_and_one_that_has_no_listener_to_its_own(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(queue={"classes": ClassesSettings(vip=VipSettings(users=[]))})
    stage.world.request(text=CHAPTER, stream=True)
    stage.run(2.5)
    stage.world.request(text=SENTENCE, client=BOB, priority="vip")
    stage.run(1.0)
    assert len(stage.when("suspended", CHAPTER)) == 1
    unheard = make_stage()
    unheard.world.request(text=CHAPTER, stream=True, durable=True)
    unheard.run(2.5)
    unheard.world.step(inputs.ConnectionClosed(1))
    unheard.world.request(text=SENTENCE, client=BOB, connection=2)
    unheard.run(1.0)
    assert len(unheard.when("suspended", CHAPTER)) == 1


def test_the_last_segment_is_spoken_to_its_end(make_stage: MakeStage) -> None:
    stage = make_stage()
    chapter(stage)
    stage.run(9.2)
    stage.world.request(text=SENTENCE, client=BOB)
    stage.run(1.0)
    assert not stage.world.messages(wire.SuspendJob)
    assert stage.when("ends", CHAPTER)


def test_one_worker_is_asked_for_each_sentence_that_waits_and_no_more(make_stage: MakeStage) -> None:
    stage = make_stage(3, queue={"interactive_workers": 0})
    for number in range(3):
        chapter(stage, CHAPTER + str(number), client=(BOB, CAROL, DAVE)[number])
    stage.run(2.5)
    for number in range(2):
        stage.world.request(text=f"{number}" + SENTENCE)
        assert len(stage.world.messages(wire.SuspendJob)) == number + 1
    stage.run(0.4)
    assert len(stage.world.messages(wire.SuspendJob)) == 2


def test_a_worker_holds_few_suspended_jobs_however_many_would_overtake(make_stage: MakeStage) -> None:
    stage = make_stage()
    lengths = [1_600, 700, 300, 120, 50, 20]
    most = 0
    for number, length in enumerate(lengths):
        stage.world.request(text="x" * length, client=inputs.Client(f"uid:{number}", f"u{number}"), durable=False)
        stage.run(2.5)
        most = max(most, len(stage.world.worker().process.suspended))
    assert most == MAX_SUSPENDED
    stage.run(400.0)
    assert [len(text) for _, what, text in stage.log if what == "ends"] == [120, 50, 20, 300, 700, 1_600]


def test_an_overtaken_job_goes_on_though_ever_new_clients_come(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_share": 1.0, "max_waiting": 100})
    stage.world.request(text=CHAPTER)
    stage.run(1.5)
    for number in range(150):
        client = inputs.Client(f"uid:{2_000 + number}", f"user{number}")
        stage.world.request(text=f"{number:10}", client=client)
        stage.run(0.95)
    assert stage.when("suspended", CHAPTER)
    assert stage.when("ends", CHAPTER)


def test_who_has_had_much_is_served_again_though_ever_new_clients_fill_the_queue(make_stage: MakeStage) -> None:
    stage = make_stage(queue={"max_share": 1.0})
    stage.world.request(text=CHAPTER)
    again = stage.world.request(text="again" + SENTENCE)
    for number in range(300):
        client = inputs.Client(f"uid:{2_000 + number}", f"user{number}")
        stage.world.request(text=f"{number:10}", client=client)
        stage.run(0.8)
    assert stage.world.machine.state.queue.length("interactive") >= 9, "the queue was full all the time"
    assert isinstance(stage.world.last(again), events.Done)


# --- what becomes of a job that is suspended


def test_a_suspended_job_goes_on_after_a_pause_of_the_queue_and_nothing_else_is_started(make_stage: MakeStage) -> None:
    stage = make_stage()
    aside(stage)
    stage.world.operate(control.Pause)
    waits = stage.world.request(text="later", client=CAROL)
    stage.run(20.0)
    assert stage.when("ends", CHAPTER)
    assert stage.world.names(waits) == ["accepted"]
    stage.world.operate(control.Resume)
    assert stage.world.names(waits) == ["accepted", "started"]


def test_a_suspended_job_is_not_to_blame_for_the_death_of_its_worker_and_loses_no_attempt(
    make_stage: MakeStage,
) -> None:
    stage = make_stage()
    long, short = aside(stage)
    for _ in range(3):
        if stage.world.names(short)[-1] == "error":
            break
        stage.world.die(-11)
        stage.world.come_back()
        stage.run(0.1)
    assert stage.world.last(short).code in ("worker_crashed", "quarantined")
    live = stage.world.live[stage.of(CHAPTER)]
    assert live.attempts - live.excused <= 1
    assert not stage.world.machine.scheduler.retries.quarantine.deaths(live.content, stage.world.now)
    assert "error" not in stage.world.names(long)


@pytest.mark.parametrize(
    "death",
    [
        lambda world: world.die(-9),
        lambda world: world.say(
            wire.Failed(job=world.worker().process.at_hand[0], code="out_of_memory", message="x", fatal=True)
        ),
    ],
    ids=["killed", "out of memory"],
)
def test_a_suspended_stream_of_which_a_part_was_heard_ends_with_its_worker(
    make_stage: MakeStage, death: Callable[[Any], None]
) -> None:
    stage = make_stage()
    long, _ = aside(stage, stream=True, durable=False)
    death(stage.world)
    error = stage.world.last(long)
    assert (error.code, error.retryable) == ("worker_crashed", True)
    assert "part of the audio had been sent" in error.message


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("by", ["its client", "an operator", "its deadline", "its buffer"])
def test_a_suspended_job_can_be_ended_and_what_overtook_it_goes_on(
    make_stage: MakeStage, by: str, durable: bool
) -> None:
    if durable and by == "its buffer":
        pytest.skip("who does not read it is told so, and the job goes on")
    stage = make_stage()
    keys: dict[str, Any] = {"durable": durable}
    if by == "its deadline":
        keys["deadline_s"] = 11.0
    if by == "its buffer":
        keys["stream"] = True
    long = chapter(stage, **keys)
    stage.run(2.5)
    # Long enough for the deadline to come in it.
    short = stage.world.request(text="s" * 90, client=BOB)
    stage.run(1.0)
    world, job = stage.world, stage.of(CHAPTER)
    assert world.worker().process.suspended == [job]
    if by == "its client":
        world.request(requests.Cancel(id="", v=1, job=job))
    elif by == "an operator":
        world.operate(control.Cancel, job=job)
    elif by == "its deadline":
        stage.run(7.6)
    else:
        world.step(inputs.ConnectionOverrun(1, job))
    codes = {"its deadline": "deadline_exceeded", "its buffer": "slow_consumer"}
    assert world.last(long).code == codes.get(by, "cancelled")
    stage.run(20.0)
    assert isinstance(world.last(short), events.Done)
    assert (world.states(), world.worker().jobs, world.worker().process.suspended) == (["ready"], [], [])
    assert not stage.when("resumes", CHAPTER)
    assert world.live == {}


def test_a_job_that_is_cancelled_while_its_worker_chooses_is_not_told_to_go_on(make_stage: MakeStage) -> None:
    stage = make_stage(journal="holds")
    stage.world.journal = "works"
    aside(stage)
    stage.world.journal = "holds"
    job = stage.of(CHAPTER)
    stage.world.request(requests.Cancel(id="", v=1, job=job))
    assert job in stage.world.live, "its end is not on disk yet"
    stage.world.forget()
    # The worker is through with the other before it has read that.
    stage.world.say(_finished(stage.world.worker().process.at_hand[0]), b"RIFF")
    assert not stage.world.messages(wire.ResumeJob)
    next_one = stage.world.request(text="next", client=CAROL, durable=False)
    assert stage.world.names(next_one) == ["accepted", "started"]


def _finished(job: str) -> wire.Finished:
    return wire.Finished(
        job=job, sample_rate=24_000, audio_s=1.0, synthesis_s=1.0, first_audio_s=0.1, voice="tone", sha256="0" * 64,
        chunks=0, bytes=4, path=None, memory=wire.Memory(rss=1),
    )  # fmt: skip


def test_a_job_goes_on_where_the_one_that_was_to_overtake_it_is_not_run_any_more(make_stage: MakeStage) -> None:
    stage = make_stage(workers={"restart": {"quarantine_after": 1, "max_attempts": 1}})
    world = stage.world
    chapter(stage)
    stage.run(2.5)
    killers = [world.request(text="killer", client=client) for client in (BOB, CAROL, DAVE)]
    world.machine.scheduler.retries.quarantine.blame(
        world.machine.scheduler.retries.content(world.live[world.job(killers[0])]),
        world.now,
        3_600.0,
    )
    stage.run(1.0)
    assert {world.last(id).code for id in killers} == {"quarantined"}
    stage.run(10.0)
    assert stage.when("ends", CHAPTER)


# --- the worker's end, and its life


@pytest.mark.parametrize(
    "end",
    [
        lambda stage: stage.world.operate(control.Recycle, worker="w0"),
        lambda stage: stage.world.operate(control.Drain),
        lambda stage: stage.world.step(inputs.StopAsked("SIGTERM")),
    ],
    ids=["recycle", "drain", "stop"],
)
def test_a_worker_finishes_what_it_has_suspended_before_it_ends(
    make_stage: MakeStage, end: Callable[[Any], None]
) -> None:
    stage = make_stage()
    long, short = aside(stage)
    end(stage)
    stage.run(20.0)
    assert isinstance(stage.world.last(long), events.Done)
    assert isinstance(stage.world.last(short), events.Done)
    assert stage.world.worker().jobs == []


def test_a_worker_that_is_one_too_many_finishes_what_it_has_suspended(make_stage: MakeStage) -> None:
    stage = make_stage(2, queue={"interactive_workers": 0})
    longs = [chapter(stage, CHAPTER + str(number), client=(CAROL, DAVE)[number]) for number in range(2)]
    stage.run(2.5)
    for number in range(2):
        stage.world.request(text=SENTENCE * 5 + str(number), client=BOB)
    stage.run(1.0)
    stage.world.operate(control.Scale, max=1)
    stage.run(30.0)
    assert all(isinstance(stage.world.last(id), events.Done) for id in longs)
    assert len([state for state in stage.world.states() if state == "ready"]) == 1


def test_a_stop_at_once_leaves_a_durable_job_that_is_suspended_to_the_next_daemon(make_stage: MakeStage) -> None:
    stage = make_stage()
    long, _ = aside(stage)
    for _ in range(2):
        stage.world.step(inputs.StopAsked("SIGTERM"))
    assert stage.world.last(long).code == "shutting_down"
    assert stage.of(CHAPTER) not in stage.world.ends


def test_a_suspended_job_for_long_is_not_taken_for_hung_and_one_that_goes_on_is_watched_again(
    make_stage: MakeStage,
) -> None:
    stage = make_stage(workers={"hang_timeout_s": 3.0})
    chapter(stage)
    stage.run(2.5)
    stage.world.request(text="s" * 90, client=BOB)
    stage.run(9.0)
    assert stage.world.states() == ["busy"]
    assert stage.world.worker().process.suspended
    stage.run(1.6)
    assert stage.when("resumes", CHAPTER)
    # From here on it stands still.
    stage._job.clear()
    stage.run(3.1)
    assert stage.world.states() == ["failed"]


def test_a_worker_that_owes_only_the_end_of_a_cancelled_suspended_job_is_watched(make_stage: MakeStage) -> None:
    stage = make_stage(workers={"hang_timeout_s": 3.0})
    aside(stage)
    world = stage.world
    world.request(requests.Cancel(id="", v=1, job=stage.of(CHAPTER)))
    world.say(_finished(world.worker().process.at_hand[0]), b"RIFF")
    assert world.worker().jobs == [stage.of(CHAPTER)]
    world.pass_time(3.1)
    assert world.states() == ["failed"]


def test_a_worker_that_suspends_a_job_unasked_is_not_trusted_any_more(world: World) -> None:
    id = world.request()
    world.say(wire.Suspended(job=world.job(id)))
    assert world.states() == ["failed"]
    assert "without being asked" in next(
        e.fields["detail"] for e in world.effects(effects.Log) if e.message == "worker failed"
    )


def test_a_worker_suspends_a_job_once(make_stage: MakeStage) -> None:
    stage = make_stage()
    aside(stage)
    stage.world.say(wire.Suspended(job=stage.of(CHAPTER)))
    assert stage.world.states() == ["failed"]


def test_operators_see_what_is_suspended(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.world.machine.watched = True
    aside(stage)
    status = stage.world.last(stage.world.operate(control.Status)).values["queue"]
    assert (status["suspended"], status["waiting"], status["running"]) == (1, 0, 2)
    queue = stage.world.last(stage.world.operate(control.Queue)).values["classes"]
    assert (queue["batch"]["suspended"], queue["batch"]["running"], queue["interactive"]["running"]) == (1, 0, 1)
    stage.run(20.0)
    topics = [e.topic for e in stage.world.effects(effects.Publish)]
    assert [t for t in topics if t in ("job.suspended", "job.resumed")] == ["job.suspended", "job.resumed"]
