"""Jobs of one worker: suspended, cancelled, bounded, and gone wrong in every way that upstream's models know."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from glmtts.protocol import exit_codes
from glmtts.protocol.worker import Bye, CancelJob, Failed, Finished, Message, ResumeJob, Suspended, SuspendJob

from ..process.worker_under_test import Start, WorkerUnderTest
from .stand_in.packages.mischief import SLOW_FLOW_S, SLUGGISH_S
from .upstream_root import Root, asked, floats, pitch

#: Three segments.
LONG = (
    "我们每天早上九点开会，讨论客户的问题，然后各自工作，下午有时候一起喝咖啡。"
    "周末大家去郊外爬山，或者在公园里散步，天气好的时候还会一起野餐，说说笑笑。"
    "如果您有时间，欢迎您来参观，我们会带您看看新的实验室和图书馆，还有花园。"
)
#: One segment, as long as one can be.
SEGMENT = "我们每天早上九点开会讨论客户的问题然后各自工作下午有时候一起喝咖啡周末大家去郊外爬山或者在公园里散步说说笑笑"
SHORT = "今天天气不错。"
#: What upstream's prompt may leave at the front of each segment, and what a token is, in samples at 24,000 Hz.
_PROMPT_S = 0.04
_TOKEN_S = 0.04
Seen = list[tuple[Message, bytes | None]]


def speak(worker: WorkerUnderTest, text: str, **job: Any) -> bytes:
    return worker.speak(**asked(text, **job))[1]


def is_unharmed(worker: WorkerUnderTest, before: bytes) -> bool:
    """Whether the same process speaks as it did."""
    return worker.process.poll() is None and speak(worker, SHORT) == before


def suspend(worker: WorkerUnderTest, name: str) -> Seen:
    # It arrives while the segment is spoken, which takes a hundred times as long.
    worker.send(SuspendJob(job=name))
    return worker.until(Suspended, name)


def streamed(seen: Seen) -> bytes:
    return b"".join(body or b"" for _, body in seen)


# --- suspended


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_job_suspended_for_another_voice_rate_and_seed_sounds_as_if_it_had_not_been(
    worker: WorkerUnderTest, use_cache: bool
) -> None:
    bound = {"use_cache": use_cache, "max_tokens": 60}
    job = asked(LONG, hz=150.0, seed=5, stream=True, options=bound)
    others = [
        asked(LONG, hz=240.0, seed=6, sample_rate=32_000, options={"sampling": "topk", "max_tokens": 30}),
        asked("Hello, my friend.", hz=300.0, seed=5, sample_rate=16_000, options={"use_phoneme": True}),
    ]
    alone = [worker.speak(**one)[1] for one in (job, *others)]
    name = worker.start(**job)
    seen = suspend(worker, name)
    between = [worker.speak(**others[0])[1]]
    worker.send(ResumeJob(job=name))
    seen += suspend(worker, name)
    between.append(worker.speak(**others[1])[1])
    worker.send(ResumeJob(job=name))
    end, rest = worker.until_end(name)
    assert isinstance(end, Finished)
    assert [streamed(seen + rest), *between] == alone


def test_two_jobs_suspended_do_not_hear_each_other(worker: WorkerUnderTest) -> None:
    jobs = [asked(LONG, hz=hz, seed=seed, options={"max_tokens": 60}) for hz, seed in ((150.0, 1), (260.0, 2))]
    alone = [worker.speak(**job)[1] for job in jobs]
    names = []
    for job in jobs:
        names.append(worker.start(**job))
        suspend(worker, names[-1])
    together = []
    for name in names:
        worker.send(ResumeJob(job=name))
        together.append(worker.until_end(name)[1][-1][1])
    assert together == alone


# --- progress and cancellation


def test_a_segment_says_that_it_moves_while_it_is_spoken(root: Root, worker: WorkerUnderTest) -> None:
    # So that a worker that speaks a long segment is not taken for hung.
    text = "sluggish 我们去公园散步。" if root.is_stand_in else SEGMENT
    name = worker.start(**asked(text))
    end, _ = worker.until_end(name)
    assert isinstance(end, Finished)
    beats = [beat.done for beat in worker.beats if beat.job == name]
    # The last may be said twice: nothing is counted in the vocoder.
    assert len(set(beats)) >= 4 and beats == sorted(beats)


def test_a_cancelled_job_ends_within_its_segment(root: Root, worker: WorkerUnderTest) -> None:
    before = speak(worker, SHORT)
    text = f"neverending sluggish {SHORT}" if root.is_stand_in else SEGMENT
    name = worker.start(**asked(text))
    worker.moving()
    worker.send(CancelJob(job=name))
    asked_for = time.monotonic()
    end, _ = worker.until_end(name)
    # A token, and whoever else uses the machine; the segment would have taken 200 tokens at least.
    assert time.monotonic() - asked_for < (200 * SLUGGISH_S / 5 if root.is_stand_in else 1.0)
    assert isinstance(end, Failed) and end.code == "cancelled" and not end.fatal
    assert is_unharmed(worker, before)


@pytest.mark.usefixtures("stand_in")
def test_a_job_is_cancelled_within_the_flow_model_too(worker: WorkerUnderTest) -> None:
    before = speak(worker, SHORT)
    name = worker.start(**asked("slowflow."))
    beats = [worker.moving().done for _ in range(4)]
    worker.send(CancelJob(job=name))
    asked_for = time.monotonic()
    end, _ = worker.until_end(name)
    assert beats == sorted(set(beats))
    assert isinstance(end, Failed) and end.code == "cancelled"
    # The ten steps are two passes each.
    assert time.monotonic() - asked_for < 20 * SLOW_FLOW_S / 2
    assert is_unharmed(worker, before)


# --- bounds and options


def test_a_segment_has_no_more_tokens_than_the_job_allows(worker: WorkerUnderTest) -> None:
    samples = floats(speak(worker, SHORT, options={"max_tokens": 5}))
    assert 5 * _TOKEN_S <= len(samples) / 24_000 <= 5 * _TOKEN_S + _PROMPT_S


def test_a_seed_makes_the_same_speech_again_and_another_makes_another(worker: WorkerUnderTest) -> None:
    first, other, again = (speak(worker, SHORT, seed=seed) for seed in (1, 2, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sampling", "magic"),
        ("top_k", 0),
        ("max_tokens", -1),
        ("use_phoneme", "yes"),
        ("use_cache", 3),
        ("temperature", 1.0),
    ],
)
def test_an_option_that_can_t_be_is_refused_by_its_name(worker: WorkerUnderTest, option: str, value: Any) -> None:
    failed = worker.fail(**asked(SHORT, options={option: value}))
    assert failed.code == "bad_request" and option in failed.message


def test_a_job_without_a_voice_is_told_how_to_have_one(worker: WorkerUnderTest) -> None:
    failed = worker.fail(SHORT)
    assert failed.code == "bad_request" and "voice" in failed.message and "glmttsctl voice add" in failed.message


def test_the_configuration_s_defaults_and_dictionary_take_effect(
    root: Root, worker: WorkerUnderTest, start: Start, tmp_path: Any
) -> None:
    dictionary = tmp_path / "words.jsonl"
    dictionary.write_text('{"天气": "<|Q|><|I4|>"}\n', encoding="utf-8")
    own = start(**root.worker(max_tokens=20, sampling="topk", top_k=3, dictionary=str(dictionary)))
    own.ready()
    asked_for = {"max_tokens": 20, "sampling": "topk", "top_k": 3}
    without = "我们去公园散步。"
    assert speak(own, without) == speak(worker, without, options=asked_for) != speak(worker, without)
    assert speak(own, SHORT) != speak(worker, SHORT, options=asked_for)
    assert speak(own, without, options={"max_tokens": 0, "sampling": "ras", "top_k": 25}) == speak(worker, without)


def test_a_language_model_in_half_precision_speaks_with_the_same_voice(root: Root, start: Start) -> None:
    worker = start(**root.worker(dtype="bf16"))
    worker.ready()
    first, other, again = (speak(worker, SHORT, seed=seed, options={"max_tokens": 40}) for seed in (1, 2, 1))
    assert first == again != other
    assert np.abs(floats(first)).max() > 0.01
    if root.is_stand_in:
        assert pitch(floats(first), 24_000) == pytest.approx(180.0, rel=0.03)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 32_000, 44_100, 48_000])
def test_the_voice_is_that_of_the_recording_at_every_rate(root: Root, worker: WorkerUnderTest, rate: int) -> None:
    finished, audio = worker.speak(**asked(SHORT, hz=220.0, sample_rate=rate))
    assert finished.sample_rate == rate and round(finished.audio_s * rate) == len(audio) / 4
    if root.is_stand_in:
        assert pitch(floats(audio), rate) == pytest.approx(220.0, rel=0.03)


# --- what upstream's models may do


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("word", ["overrange", "underrange"])
@pytest.mark.parametrize("sampling", ["ras", "topk"])
def test_tokens_that_are_no_audio_reach_no_flow_model(worker: WorkerUnderTest, word: str, sampling: str) -> None:
    # On a GPU they would cost the process; upstream only prints a warning.
    before = speak(worker, SHORT)
    samples = floats(speak(worker, f"{word} {SHORT}", options={"sampling": sampling}))
    assert len(samples) > 4_800 and pitch(samples, 24_000) == pytest.approx(180.0, rel=0.03)
    assert is_unharmed(worker, before)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("word", "options", "words"),
    [
        ("onlyending", {"sampling": "topk"}, "probabilities"),
        ("notanumber", {}, "numbers"),
        ("notanumber", {"sampling": "topk"}, "numbers"),
        ("raises", {}, "the fault that was asked for"),
    ],
)
def test_a_model_that_fails_fails_this_job_alone(
    worker: WorkerUnderTest, word: str, options: dict[str, Any], words: str
) -> None:
    before = speak(worker, SHORT)
    failed = worker.fail(**asked(f"{word} {SHORT}", options=options))
    assert failed.code == "synthesis_failed" and words in failed.message and not failed.fatal
    assert is_unharmed(worker, before)


@pytest.mark.usefixtures("stand_in")
def test_a_segment_that_takes_too_long_is_ended(root: Root, start: Start) -> None:
    worker = start(**root.worker(max_segment_s=1.0))
    worker.ready()
    before = speak(worker, SHORT)
    failed = worker.fail(**asked(f"sluggish {LONG}"))
    assert failed.code == "synthesis_failed" and "max_segment_s" in failed.message and not failed.fatal
    assert is_unharmed(worker, before)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("word", "code", "status"),
    [
        ("outofmemory", "out_of_memory", exit_codes.OUT_OF_MEMORY),
        ("devicefault", "cuda_context", exit_codes.OF_FATAL_ERROR["cuda_context"]),
    ],
)
def test_a_worker_that_can_t_go_on_says_so_and_ends(
    root: Root, start: Start, word: str, code: str, status: int
) -> None:
    worker = start(**root.worker())
    worker.ready()
    failed = worker.fail(**asked(f"{word} {SHORT}"))
    assert failed.code == code and failed.fatal
    worker.expect(Bye)
    assert worker.process.wait(20) == status


# --- odd texts


@pytest.mark.parametrize(
    "text", ["(\t你好)", "气压是0.00001×10^3帕。", "wonderful " * 60, "a" * 300, "<|user|>你好<|audio_5|>"]
)
def test_a_text_that_upstream_raises_on_is_spoken_and_the_next_is_as_before(worker: WorkerUnderTest, text: str) -> None:
    before = speak(worker, SHORT)
    assert worker.speak(**asked(text, options={"max_tokens": 40}))[0].audio_s > 0.04
    assert is_unharmed(worker, before)


@pytest.mark.parametrize("text", ["", "。。。", "😀😀", "\u200b\ufeff", "Привет, мир"], ids=ascii)
def test_a_text_with_nothing_to_speak_is_refused_and_the_next_is_as_before(worker: WorkerUnderTest, text: str) -> None:
    before = speak(worker, SHORT)
    failed = worker.fail(**asked(text))
    assert failed.code == "bad_request" and failed.message.startswith("text: ") and not failed.fatal
    assert is_unharmed(worker, before)


# --- what upstream prints


@pytest.mark.usefixtures("stand_in")
def test_what_upstream_prints_disturbs_nobody_and_tells_no_one_s_text(worker: WorkerUnderTest) -> None:
    samples = floats(speak(worker, f"chatty {SHORT}"))
    assert np.isfinite(samples).all() and len(samples)
    assert "nobody else should read" not in worker.log.read_text(errors="replace")
