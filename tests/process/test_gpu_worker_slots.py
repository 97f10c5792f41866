"""A worker that speaks for eight at once: none hears another, nor pays for another's error."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.protocol import exit_codes
from glmtts.protocol.worker import (
    MAX_SUSPENDED,
    AddText,
    AudioChunk,
    Bye,
    CancelJob,
    Failed,
    Finished,
    Message,
    Replay,
    ResumeJob,
    SegmentDone,
    StopWorker,
    Suspended,
    SuspendJob,
)

from .worker_under_test import DEADLINE_S, Start, WorkerUnderTest, workers

SLOTS = 8
Seen = list[tuple[Message, bytes | None]]
#: About a second beside seven others.
TONE = {"seconds": 1.0, "segments": 2, "rtf": 0.6}


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as begin:
        yield begin


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[WorkerUnderTest, WorkerUnderTest]]:
    """Workers that no test ends: one with eight slots, one with one."""
    with workers() as begin:
        many, one = begin(engine_settings={"slots": SLOTS}), begin()
        assert (many.ready().slots, one.ready().slots) == (SLOTS, 1)
        yield many, one


@pytest.fixture
def worker(shared: tuple[WorkerUnderTest, WorkerUnderTest]) -> WorkerUnderTest:
    shared[0].beats.clear()
    return shared[0]


@pytest.fixture
def one(shared: tuple[WorkerUnderTest, WorkerUnderTest]) -> WorkerUnderTest:
    return shared[1]


@pytest.fixture
def doomed(start: Start) -> WorkerUnderTest:
    """A worker of a test that ends it."""
    worker = start(engine_settings={"slots": SLOTS}, receives=1_000)
    worker.ready()
    return worker


def of(number: int, **job: Any) -> dict[str, Any]:
    return {"text": f"the text of {number}", "format": "pcm_s16le", "stream": True, "options": TONE} | job


def begin(worker: WorkerUnderTest, **odd: Any) -> list[str]:
    """Eight jobs; ``odd``: what is different about the third, which begins last, when the worker has all others."""
    names = {number: worker.start(**of(number, **(odd if number == 2 else {}))) for number in (0, 1, 3, 4, 5, 6, 7, 2)}
    return [names[number] for number in range(SLOTS)]


def alone(one: WorkerUnderTest, names: list[str], *without: int, **odd: Any) -> dict[str, bytes]:
    """The audio of such jobs from a worker with one slot."""
    jobs = {
        name: of(number, **(odd if number == 2 else {})) for number, name in enumerate(names) if number not in without
    }
    return {name: one.speak(**job | {"options": {**job["options"], "rtf": 0.0}})[1] for name, job in jobs.items()}


def audio(seen: Seen) -> bytes:
    return b"".join(body or b"" for message, body in seen if isinstance(message, AudioChunk))


def test_eight_at_once_sound_like_eight_alone_and_take_no_longer_than_one(
    worker: WorkerUnderTest, one: WorkerUnderTest
) -> None:
    begun = time.monotonic()
    seen = worker.until_all_end(*(names := begin(worker)))
    took = time.monotonic() - begun
    assert {name: audio(said) for name, said in seen.items()} == alone(one, names)
    assert 0.6 <= took < SLOTS * 0.6 * 0.75
    work_s = [end.work_s for said in seen.values() if isinstance(end := said[-1][0], Finished)]
    # The engine's time, and not that of each: it is shared out.
    assert len(work_s) == SLOTS and sum(work_s) < took + 0.1
    beats = {beat.job for beat in worker.beats}
    assert beats == set(names)


@pytest.mark.parametrize("how", ["cancel", "raise", "nan", "no room"])
def test_the_end_of_one_is_not_felt_by_seven(
    worker: WorkerUnderTest, one: WorkerUnderTest, how: str, tmp_path: Path
) -> None:
    if how == "cancel":
        names = begin(worker)
        worker.moving()
        worker.send(CancelJob(job=names[2]))
        code, words = "cancelled", "cancelled"
    elif how == "no room":
        # It fails in the helper's thread.
        names = begin(worker, stream=False, format="flac", output=str(tmp_path / "a"), output_room=10)
        code, words = "output_failed", "was not written"
    else:
        names = begin(worker, options=TONE | {"fault": how, "after_segments": 1})
        code, words = "synthesis_failed", "not numbers" if how == "nan" else "asked for"
    seen = worker.until_all_end(*names)
    failed = seen.pop(names[2])[-1][0]
    assert isinstance(failed, Failed) and not failed.fatal and words in failed.message and code in failed.code
    assert {name: audio(said) for name, said in seen.items()} == alone(one, names, 2)


def test_one_of_eight_is_cancelled_within_a_step(worker: WorkerUnderTest) -> None:
    # Its next piece would come in 50 s.
    names = begin(worker, options={"seconds": 3_600, "rtf": 100.0})
    worker.moving()
    worker.send(CancelJob(job=names[2]))
    while not isinstance((message := worker.next()[0]), Failed):
        pass
    assert (message.job, message.code) == (names[2], "cancelled")
    worker.until_all_end(*(name for name in names if name != names[2]))


def test_one_of_eight_is_suspended_in_the_middle_of_a_segment(worker: WorkerUnderTest, one: WorkerUnderTest) -> None:
    odd = {"seconds": 2.0, "segments": 1, "rtf": 0.5}
    begun = time.monotonic()
    names = begin(worker, options=odd)
    worker.moving()
    worker.send(SuspendJob(job=names[2]))
    seen: dict[str, Seen] = {name: [] for name in names}
    while not isinstance(seen[names[2]][-1][0] if seen[names[2]] else None, Suspended):
        received = worker.next()
        seen[received[0].job].append(received)  # type: ignore[attr-defined]
    assert not any(isinstance(message, SegmentDone) for message, _ in seen[names[2]])
    stopped = time.monotonic()
    # Another takes its slot.
    ninth = worker.start(**of(8))
    others = [name for name in (*names, ninth) if name != names[2]]
    for name, said in worker.until_all_end(*others).items():
        seen.setdefault(name, []).extend(said)
    resumed = time.monotonic()
    worker.send(ResumeJob(job=names[2]))
    seen[names[2]] += worker.until_end(names[2])[1]
    active_s = time.monotonic() - begun - (resumed - stopped)
    assert {name: audio(said) for name, said in seen.items()} == alone(one, [*names, ninth], options=odd)
    end = seen[names[2]][-1][0]
    # Its clock stood still, and so did its work.
    assert isinstance(end, Finished) and end.work_s <= end.synthesis_s <= active_s


def test_a_text_comes_in_pieces_beside_others(worker: WorkerUnderTest, one: WorkerUnderTest) -> None:
    pieces = ["今天天气不错。", "Hello world. ", "How are you?"]
    names = begin(worker, text=pieces[0], more=True, options={"rtf": 0.2})
    seen: dict[str, Seen] = {name: [] for name in names}
    for number, piece in enumerate(pieces[1:]):
        while not (seen[names[2]] and isinstance(seen[names[2]][-1][0], Suspended)):
            received = worker.next()
            seen[received[0].job].append(received)  # type: ignore[attr-defined]
        suspended = seen[names[2]].pop()[0]
        assert isinstance(suspended, Suspended) and suspended.waits and suspended.texts == number
        worker.send(AddText(job=names[2], text=piece, last=number == 1))
        worker.send(ResumeJob(job=names[2]))
    left = [name for name in names if not (seen[name] and isinstance(seen[name][-1][0], Finished | Failed))]
    for name, said in worker.until_all_end(*left).items():
        seen[name] += said
    # The whole text is there when the job begins, or it would be suspended.
    other = one.busy()
    name = one.start(**of(2, text="".join(pieces), more=True, options={}))
    one.send(AddText(job=name, text="", last=True))
    one.free(other)
    assert audio(seen.pop(names[2])) == audio(one.until_end(name)[1])
    assert {name: audio(said) for name, said in seen.items()} == alone(one, names, 2)


def test_files_are_encoded_and_written_beside_others(
    worker: WorkerUnderTest, one: WorkerUnderTest, tmp_path: Path
) -> None:
    kinds = ["wav", "flac", "ogg", "mp3"] * 2
    whole = [one.speak(f"{kind}", format=kind, options=TONE | {"rtf": 0.0})[1] for kind in kinds]
    names = [
        worker.start(kind, format=kind, options=TONE, output=str(tmp_path / f"{number}") if number >= 4 else None)
        for number, kind in enumerate(kinds)
    ]
    seen = worker.until_all_end(*names)
    files = [
        seen[name][-1][1] if number < 4 else (tmp_path / f"{number}").read_bytes() for number, name in enumerate(names)
    ]
    assert files == whole


@pytest.mark.parametrize("seed", range(2))
def test_forty_jobs_in_any_order_suspended_and_cancelled_at_random_sound_as_alone(
    worker: WorkerUnderTest, one: WorkerUnderTest, seed: int
) -> None:
    chance = random.Random(seed)
    sound: list[dict[str, Any]] = [
        {"format": "flac"},
        {"format": "mp3", "stream": True},
        {"speed": 1.5},
        {"sample_rate": 16_000},
        {},
    ]
    jobs = {f"0-{worker.jobs + n}": {"text": f"text {n}"} | chance.choice(sound) for n in range(1, 41)}
    options = {name: {"seconds": chance.uniform(0.2, 2.0), "segments": chance.randint(1, 3)} for name in jobs}
    seen: dict[str, Seen] = {name: [] for name in jobs}
    waiting, active, suspended, asked = list(jobs), set[str](), list[str](), set[str]()
    while waiting or active or suspended:
        action = chance.random()
        if waiting and len(active) < SLOTS and action < 0.5:
            name = worker.start(**jobs[waiting.pop(0)], options=options[f"0-{worker.jobs + 1}"] | {"rtf": 0.1})
            active.add(name)
        elif suspended and len(active) < SLOTS and action < 0.7:
            active.add(name := suspended.pop(chance.randrange(len(suspended))))
            worker.send(ResumeJob(job=name))
        elif active - asked and len(suspended) + len(asked) < MAX_SUSPENDED and action < 0.9:
            asked.add(name := chance.choice(sorted(active - asked)))
            worker.send(SuspendJob(job=name))
        elif action < 0.92:
            worker.send(CancelJob(job=chance.choice(list(jobs))))
        if not active:
            continue
        message, body = worker.next()
        name = message.job  # type: ignore[attr-defined]
        seen[name].append((message, body))
        # One that is suspended is silent, also where its audio is still being encoded.
        assert name in active or isinstance(message, Failed)
        if isinstance(message, Suspended | Finished | Failed):
            asked.discard(name)
            active.discard(name)
            if isinstance(message, Suspended):
                suspended.append(name)
            elif name in suspended:
                suspended.remove(name)
    done = [name for name, said in seen.items() if isinstance(said[-1][0], Finished)]
    assert len(done) > 20
    assert all(
        isinstance(said[-1][0], Failed) and said[-1][0].code == "cancelled"
        for name, said in seen.items()
        if name not in done
    )
    for name in done:
        _, whole = one.speak(**jobs[name], options=options[name])
        assert (audio(seen[name]) if jobs[name].get("stream") else seen[name][-1][1]) == whole, jobs[name]


@pytest.mark.parametrize(
    ("options", "stage", "named"),
    [
        ({"fault": "kill"}, "speak", [8]),
        ({"fault": "segv", "shared": True}, "together", [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"fault": "kill", "recorded": False}, "", []),
    ],
)
def test_the_flight_recorder_names_those_that_may_have_killed_the_worker(
    doomed: WorkerUnderTest, options: dict[str, Any], stage: str, named: list[int]
) -> None:
    begin(doomed, options=TONE | options | {"after_segments": 1})
    _, note = doomed.until_dead()
    assert (note.stage, sorted(note.jobs)) == (stage, [f"0-{number}" for number in named])


def test_a_worker_that_is_killed_while_it_waits_names_none(doomed: WorkerUnderTest) -> None:
    doomed.start(options={"seconds": 3_600, "rtf": 100.0})
    doomed.moving()
    doomed.process.send_signal(signal.SIGKILL)
    code, note = doomed.until_dead()
    assert code == -signal.SIGKILL and note.jobs == ()


@pytest.mark.parametrize(("shared", "code"), [(False, "out_of_memory"), (True, "out_of_memory")])
def test_memory_that_ran_out_is_told_with_the_jobs_that_were_in_the_step(
    doomed: WorkerUnderTest, shared: bool, code: str
) -> None:
    names = begin(doomed, options=TONE | {"fault": "oom", "after_segments": 1, "shared": shared})
    while not isinstance((failed := doomed.next()[0]), Failed):
        pass
    assert (failed.code, failed.fatal) == (code, True)
    assert (failed.job, sorted(failed.suspects)) == (("", sorted(names)) if shared else (names[2], []))
    doomed.expect(Bye)
    assert doomed.process.wait(DEADLINE_S) == exit_codes.OUT_OF_MEMORY


def test_a_stopped_worker_finishes_all_it_has(doomed: WorkerUnderTest) -> None:
    names = begin(doomed)
    doomed.send(StopWorker())
    assert all(isinstance(said[-1][0], Finished) for said in doomed.until_all_end(*names).values())
    doomed.expect(Bye)
    assert doomed.process.wait(DEADLINE_S) == exit_codes.STOPPED


def test_a_configuration_with_fewer_slots_than_the_engine_has_is_kept(start: Start) -> None:
    worker = start(engine_settings={"slots": SLOTS}, slots=2)
    assert worker.ready().slots == 2
    names = [worker.start(**of(number, options={})) for number in range(SLOTS)]
    ends = [said[-1][0] for said in worker.until_all_end(*names).values()]
    assert all(isinstance(end, Finished) for end in ends)


# --- a stream that broke


@pytest.mark.parametrize("audio_format", ["pcm_s16le", "wav", "mp3", "ogg", "flac"])
def test_a_stream_goes_on_where_the_last_attempt_ended(worker: WorkerUnderTest, audio_format: str) -> None:
    job = of(0, format=audio_format, speed=1.25, options=TONE | {"rtf": 0.0, "seconds": 4.0})
    end, seen = worker.until_end(worker.start(**job))
    chunks = [(message, body or b"") for message, body in seen if isinstance(message, AudioChunk)]
    whole = b"".join(body for _, body in chunks)
    assert isinstance(end, Finished) and len(chunks) > 4
    sent = b"".join(body for _, body in chunks[:3])
    assert chunks[2][0].digest == hashlib.sha256(sent).digest()
    replay = Replay(size=len(sent), digest=chunks[2][0].digest, chunks=3)
    again, seen = worker.until_end(worker.start(**job, replay=replay))
    rest = [(message, body) for message, body in seen if isinstance(message, AudioChunk)]
    assert isinstance(again, Finished) and sent + audio(seen) == whole
    assert [message.seq for message, _ in rest] == list(range(3, again.chunks))
    assert (again.sha256, again.bytes) == (end.sha256, end.bytes)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"size": 1 << 20}])
def test_nothing_is_sent_of_a_stream_that_is_another_now(worker: WorkerUnderTest, changed: dict[str, Any]) -> None:
    job = of(0, options=TONE | {"rtf": 0.0})
    _, seen = worker.until_end(worker.start(**job))
    first = next(message for message, _ in seen if isinstance(message, AudioChunk))
    replay = Replay(size=changed.pop("size", len(seen[0][1] or b"")), digest=first.digest, chunks=1)
    failed, seen = worker.until_end(worker.start(**(job | changed), replay=replay))
    assert isinstance(failed, Failed) and failed.code == "worker_crashed" and "other audio" in failed.message
    assert audio(seen) == b"" and not failed.fatal
