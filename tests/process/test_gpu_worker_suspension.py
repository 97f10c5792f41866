"""Jobs that are suspended at a boundary while the worker speaks others: what the supervisor's preemption relies on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmtts.protocol import exit_codes
from glmtts.protocol.worker import (
    AudioChunk,
    Bye,
    CancelJob,
    Failed,
    Finished,
    Message,
    ResumeJob,
    SegmentDone,
    StopWorker,
    Suspended,
    SuspendJob,
    Trim,
    Trimmed,
)

from ..fake_gpu.fake_gpu import FakeGpus
from .worker_under_test import DEADLINE_S, Start, WorkerUnderTest, workers

TONES = {"seconds": 1.5, "segments": 4}
SENTENCES = "今天天气不错。Hello world. 我们去公园散步吧。How are you?"
Seen = list[tuple[Message, bytes | None]]


@pytest.fixture
def start() -> Iterator[Start]:
    with workers() as begin:
        yield begin


@pytest.fixture
def worker(start: Start) -> WorkerUnderTest:
    worker = start()
    worker.ready()
    return worker


@pytest.fixture(scope="module", params=["fault", "espeak"])
def speaker(request: pytest.FixtureRequest) -> Iterator[WorkerUnderTest]:
    with workers() as begin:
        worker = begin(engine=request.param)
        worker.ready()
        yield worker


def job(worker: WorkerUnderTest, **changes: Any) -> dict[str, Any]:
    """A job of four segments."""
    return {"text": SENTENCES, "options": TONES if worker.engine == "fault" else {}} | changes


def resume(worker: WorkerUnderTest, name: str) -> str:
    worker.send(ResumeJob(job=name))
    return name


def streamed(seen: Seen) -> bytes:
    return b"".join(body or b"" for message, body in seen if isinstance(message, AudioChunk))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.integers(1, 3),
    kind=st.sampled_from(
        ["wav", "flac", "ogg", "mp3", "pcm_s16le", "pcm_f32le", "stream pcm_f32le", "stream mp3", "stream ogg"]
    ),
    sound=st.sampled_from([{}, {"sample_rate": 16_000}, {"sample_rate": 48_000, "speed": 0.5}, {"speed": 1.7}]),
    meanwhile=st.lists(st.sampled_from(["Hello.", "你好。How do you do?"]), max_size=2),
)
def test_a_job_that_was_suspended_sounds_as_if_it_had_not_been(
    speaker: WorkerUnderTest, times: int, kind: str, sound: dict[str, Any], meanwhile: list[str]
) -> None:
    stream = kind.startswith("stream")
    wanted = job(speaker, stream=stream, **sound)
    wanted["format"] = kind.removeprefix("stream ")
    whole, expected = speaker.speak(**wanted)
    name, seen = speaker.suspended(lambda: speaker.start(**wanted))
    for _ in range(times - 1):
        for text in meanwhile:
            speaker.speak(text)
        seen += speaker.suspended(lambda: resume(speaker, name))[1]
    end, said = speaker.until_end(resume(speaker, name))
    seen += said
    assert isinstance(end, Finished)
    assert (end.sha256, end.bytes, end.chunks, end.audio_s) == (whole.sha256, whole.bytes, whole.chunks, whole.audio_s)
    assert (streamed(seen) if stream else seen[-1][1]) == expected
    assert [message.segment for message, _ in seen if isinstance(message, SegmentDone)] == [1, 2, 3, 4]
    assert sum(isinstance(message, Suspended) for message, _ in seen) == times
    numbers = [message.seq for message, _ in seen if isinstance(message, AudioChunk)]
    assert numbers == list(range(end.chunks))


def test_a_job_is_suspended_right_behind_its_boundary_and_says_what_the_worker_holds(worker: WorkerUnderTest) -> None:
    _, seen = worker.suspended(lambda: worker.start(**job(worker)))
    boundary, suspended = seen[-2][0], seen[-1][0]
    assert isinstance(boundary, SegmentDone) and boundary.segment == 1
    assert isinstance(suspended, Suspended) and suspended.memory and suspended.memory.rss > 0


def test_a_job_is_suspended_at_whichever_boundary_comes_next(worker: WorkerUnderTest) -> None:
    options = {"seconds": 4.0, "segments": 200, "rtf": 0.25}
    whole, _ = worker.speak(options=options | {"rtf": 0})
    name = worker.start(options=options)
    for turn in range(3):
        for _ in range(10):
            seen = worker.until(SegmentDone, name)
        worker.send(SuspendJob(job=name))
        seen += worker.until(Suspended, name)
        assert isinstance(seen[-2][0], SegmentDone) and 10 * (turn + 1) <= seen[-2][0].segment < 200
        worker.speak()
        resume(worker, name)
    end, _ = worker.until_end(name)
    assert isinstance(end, Finished) and end.sha256 == whole.sha256


def test_jobs_suspended_one_after_another_are_resumed_in_any_order(speaker: WorkerUnderTest) -> None:
    alone = [speaker.speak(**job(speaker, seed=seed, text=SENTENCES * (seed + 1)))[0].sha256 for seed in range(3)]
    names = [
        speaker.suspended(lambda seed=seed: speaker.start(**job(speaker, seed=seed, text=SENTENCES * (seed + 1))))[0]  # type: ignore[misc]
        for seed in range(3)
    ]
    speaker.suspended(lambda: resume(speaker, names[1]))
    ends = {number: speaker.until_end(resume(speaker, names[number]))[0] for number in (0, 2, 1)}
    assert [getattr(ends[number], "sha256", ends[number]) for number in range(3)] == alone


def test_the_time_for_which_a_job_was_suspended_is_not_its_own(worker: WorkerUnderTest) -> None:
    slow = {"seconds": 0.4, "segments": 2, "rtf": 0.5}
    name, seen = worker.suspended(lambda: worker.start(options=slow))
    worker.speak(options={"seconds": 2.0, "rtf": 1.0})
    end, rest = worker.until_end(resume(worker, name))
    assert isinstance(end, Finished)
    assert 0.2 <= end.synthesis_s < 2.0 and 0.1 <= end.first_audio_s < end.synthesis_s
    assert not any(isinstance(message, Suspended) for message, _ in rest) and len(seen) < 12


def test_a_job_suspended_is_silent(worker: WorkerUnderTest) -> None:
    name, _ = worker.suspended(lambda: worker.start(**job(worker)))
    other = worker.start(options={"seconds": 0.5, "rtf": 1.0})
    worker.until_end(other)
    assert worker.beats and all(beat.job == other for beat in worker.beats)
    worker.send(Trim())
    worker.expect(Trimmed)
    assert isinstance(worker.until_end(resume(worker, name))[0], Finished)


def test_a_job_suspended_keeps_its_memory_on_the_gpu(
    start: Start, fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in fake_gpus.environment().items():
        monkeypatch.setenv(variable, value)
    worker = start()
    worker.ready()
    options = {"fault": "use_vram", "mib": 200, "segments": 2, "seconds": 0.4}
    name, seen = worker.suspended(lambda: worker.start(options=options))
    suspended = seen[-1][0]
    assert isinstance(suspended, Suspended) and suspended.memory and suspended.memory.torch_allocated == 200 << 20
    other, _ = worker.speak(options={"fault": "use_vram", "mib": 100})
    assert other.memory.torch_allocated == 200 << 20
    end, _ = worker.until_end(resume(worker, name))
    assert isinstance(end, Finished) and end.memory.torch_allocated == 0


def test_a_job_without_a_boundary_before_its_end_just_ends(worker: WorkerUnderTest) -> None:
    other = worker.busy()
    name = worker.start()
    worker.send(SuspendJob(job=name))
    worker.send(SuspendJob(job="0-999"))
    worker.free(other)
    end, seen = worker.until_end(name)
    assert isinstance(end, Finished) and not any(isinstance(message, Suspended) for message, _ in seen)
    worker.send(SuspendJob(job=name))
    worker.speak(**job(worker))


def test_a_job_suspended_can_be_cancelled_while_another_is_spoken(worker: WorkerUnderTest) -> None:
    name, _ = worker.suspended(lambda: worker.start(**job(worker)))
    other = worker.start(options={"seconds": 60, "rtf": 0.1})
    worker.moving()
    worker.send(CancelJob(job=name))
    failed = worker.expect(Failed)
    assert (failed.job, failed.code) == (name, "cancelled") and all(beat.job == other for beat in worker.beats)
    worker.free(other)
    worker.speak(**job(worker))


def test_a_job_that_fails_after_it_was_suspended_says_why_and_harms_no_other(worker: WorkerUnderTest) -> None:
    name, _ = worker.suspended(lambda: worker.start(options={"fault": "raise", "after_segments": 2, "seconds": 0.3}))
    spared, _ = worker.suspended(lambda: worker.start(**job(worker)))
    end, _ = worker.until_end(resume(worker, name))
    assert isinstance(end, Failed) and end.code == "synthesis_failed" and "asked for" in end.message
    assert isinstance(worker.until_end(resume(worker, spared))[0], Finished)


def test_a_worker_that_can_t_go_on_ends_at_once_with_its_suspended_jobs(worker: WorkerUnderTest) -> None:
    worker.suspended(lambda: worker.start(**job(worker)))
    failed = worker.fail(options={"fault": "oom"})
    assert failed.code == "out_of_memory" and failed.fatal
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.OUT_OF_MEMORY


@pytest.mark.parametrize("how", ["stop", "sigterm"])
def test_jobs_suspended_hear_of_the_end_of_their_worker(worker: WorkerUnderTest, how: str) -> None:
    names = [worker.suspended(lambda: worker.start(**job(worker)))[0] for _ in range(2)]
    if how == "stop":
        worker.send(StopWorker())
    else:
        worker.process.send_signal(signal.SIGTERM)
    for name in names:
        failed = worker.expect(Failed)
        assert (failed.job, failed.code, failed.fatal) == (name, "cancelled", how == "sigterm")
    worker.expect(Bye)
    assert worker.process.wait(DEADLINE_S) == exit_codes.STOPPED
