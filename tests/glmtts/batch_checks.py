"""Checks of the batching engine, in one process with upstream's own code.

Run by the interpreter of a root: ``batch_checks.py ROOT CACHE CHECK [JOBS VOICES SLOTS]``, which prints a JSON object.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from glmtts.daemon.core.settings import GlmttsEngineSettings
from glmtts.daemon.engines import load
from glmtts.daemon.engines.base import Broken, Ended, EngineError, Event, Handle, Reference, SharedStepError, Utterance
from glmtts.daemon.engines.glmtts.batch_engine import BatchedGlmttsEngine
from glmtts.daemon.engines.glmtts.batch_job import BatchJob
from glmtts.daemon.engines.glmtts.engine import GlmttsEngine
from glmtts.daemon.engines.glmtts.token_watch import Watch

TEXTS = [
    "今天天气不错，我们去公园散步吧。",
    "The weather is nice today, and so we shall go for a walk in the park, if you would like to come with me.",
    "我们在 Berlin 的办公室有 12 个人，每天早上九点开会，讨论 new projects 和客户的问题。下午大家各自工作，有时候也一起"
    "喝咖啡，聊聊周末的计划，或者去楼下的花园里散步。",
    "你好。",
    "All of the windows were open that night.",
    "周末大家去郊外爬山，或者在公园里散步，天气好的时候还会一起野餐，说说笑笑。如果您有时间，欢迎您来参观，我们会带您看看"
    "新的实验室和图书馆，还有花园。",
]
#: Upstream's samples, as a share of full scale: rounding in the models moves them less.
CLOSE = 1e-3
_PATIENCE_S = 600.0


@dataclass(eq=False)
class Take:
    """One run of one utterance."""

    utterance: Utterance
    handle: Handle | None = None
    samples: list[Any] = field(default_factory=list)
    error: Exception | None = None
    over: bool = False
    cancelled: bool = False
    suspended: bool = False

    @property
    def audio(self) -> Any:
        return np.concatenate(self.samples) if self.samples else np.zeros(0, np.float32)


class Rig:
    def __init__(self, root: str, cache: str, slots: int) -> None:
        settings = msgspec.to_builtins(GlmttsEngineSettings(root=root, batching="on", slots=slots, stream="segment"))
        engine = load("glmtts", settings, send_raw=print, cache_dir=cache, warn=lambda _: None)
        assert isinstance(engine, BatchedGlmttsEngine) and engine.slots == slots and engine.repeats
        self.engine = engine
        self.notes: Counter[tuple[str, int]] = Counter()
        self.noted: list[tuple[str, tuple[str, ...]]] = []
        engine.record = self._note

    def _note(self, stage: str, jobs: Collection[str]) -> None:
        self.notes[stage, min(len(jobs), 2)] += 1
        self.noted.append((stage, tuple(jobs)))

    def utterance(self, number: int, voices: int, **changes: Any) -> Utterance:
        draw = random.Random(number)
        voice = draw.randrange(voices)
        times = np.arange(int((0.6 + 0.1 * (voice % 9)) * 24_000)) / 24_000
        samples = (0.3 * np.sin(2 * np.pi * 110 * 1.05**voice * times)).astype(np.float32)
        options = self.engine.options(
            max_tokens=draw.choice([20, 45]),
            use_cache=draw.random() < 0.7,
            sampling=draw.choice(["ras", "ras", "topk"]),
            use_phoneme=draw.random() < 0.3,
        )
        given: dict[str, Any] = {
            "text": TEXTS[number % len(TEXTS)],
            "voice": None,
            "reference": Reference(samples, 24_000, "你好。", f"voice {voice}"),
            "sample_rate": draw.choice(self.engine.sample_rates),
            "seed": number,
            "options": options,
            "job": f"job-{number}",
        }
        return Utterance(**(given | changes))

    def run(self, takes: list[Take], turn: Callable[[], None] = lambda: None) -> list[Take]:
        """All of them, as many at once as there are slots; ``turn`` is called before each step."""
        engine, waiting = self.engine, list(takes)
        deadline = time.monotonic() + _PATIENCE_S
        while not all(one.over for one in takes):
            assert time.monotonic() < deadline, [one.utterance.job for one in takes if not one.over]
            active = [one for one in takes if one.handle is not None and not one.over and not one.suspended]
            while waiting and len(active) < engine.slots:
                one = waiting.pop(0)
                one.handle = engine.begin(one.utterance)
                active.append(one)
            turn()
            if (idle_s := engine.idle_s()) != 0 and active:
                select.select([engine.fileno()], [], [], min(idle_s or 0.05, 0.05))
            owners = {id(one.handle): one for one in takes if one.handle is not None}
            for event in engine.advance():
                self._take(owners[id(event.handle)], event)
        return takes

    def _take(self, one: Take, event: Event) -> None:
        assert not (one.over or one.cancelled or one.suspended)
        match event:
            case Ended():
                one.over = True
            case Broken():
                one.over, one.error = True, event.error
            case _:
                one.samples.append(event.piece.samples)

    def alone(self, utterance: Utterance) -> Any:
        (one,) = self.run([Take(utterance)])
        assert one.error is None, one.error
        assert one.handle is not None and one.handle.done > 12 and one.handle.work_s > 0
        return one.audio

    def by_upstream(self, utterances: list[Utterance]) -> list[Any]:
        """What the engine makes of them with ``batching = "off"``."""
        engine = GlmttsEngine.__new__(GlmttsEngine)
        engine.__dict__.update(self.engine.__dict__)
        engine._watch = Watch(engine._upstream.llm, engine._upstream.flow)
        return [np.concatenate([piece.samples for piece in engine.synthesize(one)]) for one in utterances]


def together(rig: Rig, jobs: int, voices: int) -> dict[str, Any]:
    """Each job is bit for bit what it is alone, whatever is beside it; and what upstream makes of it, but for ties."""
    utterances = [rig.utterance(number, voices) for number in range(jobs)]
    alone = [rig.alone(one) for one in utterances]
    draw = random.Random(7)
    takes = [Take(one) for one in utterances]
    dropped = [Take(rig.utterance(jobs + number, voices)) for number in range(jobs // 5)]
    order = draw.sample([*takes, *dropped], len(takes) + len(dropped))
    most_suspended = 3

    def disturb() -> None:
        begun = [one for one in order if one.handle is not None and not one.over]
        active = sum(not one.suspended for one in begun)
        for one in begun:
            if one in dropped and draw.random() < 0.05:
                rig.engine.cancel(one.handle)  # type: ignore[arg-type]
                one.over = one.cancelled = True
            elif one.suspended and active < rig.engine.slots and draw.random() < 0.1:
                rig.engine.resume(one.handle)  # type: ignore[arg-type]
                one.suspended = False
                active += 1
            elif (
                not one.suspended and draw.random() < 0.01 and sum(other.suspended for other in begun) < most_suspended
            ):
                rig.engine.suspend(one.handle)  # type: ignore[arg-type]
                one.suspended = True
                active -= 1

    rig.notes.clear()
    rig.run(order, disturb)
    unequal = [
        one.utterance.job
        for one, audio in zip(takes, alone, strict=True)
        if one.error is not None or not np.array_equal(one.audio, audio)
    ]
    assert not unequal, unequal
    stages = {stage for stage, _ in rig.notes if stage}
    assert stages == {"decode", "flow", "prefill", "vocoder", "voice"}, stages
    assert {stage for stage, size in rig.notes if size == 2} == {"decode"}
    assert not rig.engine._jobs and rig.engine.settled and rig.engine.idle_s() is None
    ties = []
    for utterance, audio, upstreams in zip(utterances, alone, rig.by_upstream(utterances), strict=True):
        if audio.shape != upstreams.shape or float(np.abs(audio - upstreams).max()) > CLOSE:
            ties.append(utterance.job)
    return {"jobs": jobs, "dropped": sum(one.cancelled for one in dropped), "unlike upstream": ties}


def in_pieces(rig: Rig, *_: int) -> dict[str, Any]:
    """A text that comes in pieces, with waits between them, is what upstream's code makes of the same pieces."""
    pieces = [TEXTS[0], "", "", TEXTS[1], "", "……", TEXTS[4], None]

    def feed() -> Callable[[], str | None]:
        left = iter(pieces[1:])
        return lambda: next(left)

    def utterance() -> Utterance:
        return rig.utterance(0, 4, text=str(pieces[0]), more=feed())

    neighbours = [Take(rig.utterance(number, 4)) for number in range(1, 4)]
    one = rig.run([Take(utterance()), *neighbours])[0]
    (upstreams,) = rig.by_upstream([utterance()])
    assert one.error is None and one.audio.shape == upstreams.shape
    assert float(np.abs(one.audio - upstreams).max()) < CLOSE
    return {"samples": len(upstreams)}


def poison(rig: Rig, *_: int) -> dict[str, Any]:
    """An exception in any stage of one job ends that job, and the others are as they are alone."""
    engine = rig.engine
    good = [rig.utterance(number, 4) for number in range(3)]
    alone = [rig.alone(one) for one in good]
    bad = rig.utterance(5, 4, job="bad")

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the fault that was asked for")

    def of(stage: str) -> None:
        handle = next((job for job in engine._jobs if job.utterance.job == "bad"), None)
        if handle is None:
            return
        if stage == "text" and handle.text is not None:
            handle.text.fail(EngineError("synthesis_failed", "the fault that was asked for"))
        if stage == "voice":
            handle.transcript = handle.transcript and _Broken()  # type: ignore[assignment]
        if stage == "prefill" and handle.reading is not None:
            handle.reading.ids[0] = "no token"  # type: ignore[call-overload]
        if stage == "decode" and handle.reading is not None and len(handle.reading.draws.tokens) > 5:
            handle.reading.draws.generator = "no generator"  # type: ignore[assignment]
        for segment in handle.flowing:
            if stage == "start of the flow" and segment.run is None:
                segment.tokens[:] = ["no token"]  # type: ignore[list-item]
            if segment.run is not None and stage == "flow" and segment.run.done == 4:
                segment.run.step = fails  # type: ignore[method-assign]
            if segment.run is not None and stage == "vocoder" and segment.run.mel is not None:
                segment.run.mel = "no spectrogram"  # type: ignore[assignment]

    stages = ["text", "voice", "prefill", "decode", "start of the flow", "flow", "vocoder"]
    for stage in stages:
        takes = [Take(one) for one in (good[0], bad, *good[1:])]
        rig.run(takes, lambda stage=stage: of(stage))  # type: ignore[misc]
        broken = [one.utterance.job for one in takes if one.error is not None]
        assert broken == ["bad"], (stage, [one.error for one in takes])
        found = [one.audio for one in takes if one.error is None]
        assert all(np.array_equal(ours, own) for ours, own in zip(found, alone, strict=True)), stage
        assert not engine._jobs and engine._llm.has_room
    return {"stages": len(stages)}


class _Broken:
    ended = True
    error = EngineError("synthesis_failed", "text: the fault that was asked for")


def shared_step(rig: Rig, *_: int) -> dict[str, Any]:
    """A step that fails once is done again, bit for bit; one that fails again names all that were in it."""
    engine = rig.engine
    utterances = [rig.utterance(number, 4) for number in (0, 1, 4)]
    alone = [rig.alone(one) for one in utterances]
    step = engine._llm._llama.step
    calls = 0

    def fails_once(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 10 == 0:
            raise RuntimeError("CUDA out of memory, perhaps" if calls % 20 else "a fault")
        return step(*given)

    engine._llm._llama.step = fails_once  # type: ignore[method-assign, assignment]
    takes = rig.run([Take(one) for one in utterances])
    assert calls > 20 and [one.error for one in takes] == [None] * 3
    assert all(np.array_equal(one.audio, own) for one, own in zip(takes, alone, strict=True))

    def fails_in_company(*given: Any) -> Any:
        # A slow front end may let one job begin long before the others.
        if len(engine._llm.live) > 1:
            raise RuntimeError("a fault")
        return step(*given)

    engine._llm._llama.step = fails_in_company  # type: ignore[method-assign, assignment]
    try:
        rig.run([Take(one) for one in utterances])
    except SharedStepError as error:
        assert error.jobs and error.jobs == list(rig.noted[-1][1]) and rig.noted[-1][0] == "decode"
        return {"suspects": len(error.jobs)}
    raise AssertionError("the step can't have been done")


def first_clause(rig: Rig, *_: int) -> dict[str, Any]:
    """The first clause is a segment, and the audio of the others comes behind it."""
    (one,) = rig.run([Take(rig.utterance(1, 4))])
    rig.engine._cuts_clause = True
    (cut,) = rig.run([Take(rig.utterance(1, 4))])
    assert cut.error is None and one.error is None
    return {"pieces": [len(one.samples), len(cut.samples)]}


def order(rig: Rig, *_: int) -> dict[str, Any]:
    """The classes of the jobs in the order in which the flow model begins their segments; batch jobs were there first.

    It begins when all of them have a segment for it.
    """
    short = rig.engine.options(max_tokens=12)
    given = [("b", TEXTS[2], True)] * 2 + [("i", "你好。", False)] * 6
    takes = [
        Take(rig.utterance(number, 1, text=text, batch=batch, options=short, job=name + str(number)))
        for number, (name, text, batch) in enumerate(given)
    ]
    most_needed = rig.engine._most_needed
    begun: list[str] = []

    def watched() -> BatchJob | None:
        if not begun and not all(isinstance(one.handle, BatchJob) and one.handle.flowing for one in takes):
            return None
        job = most_needed()
        if job is not None and job.flowing[0].run is None:
            begun.append(job.utterance.job[0])
        return job

    # mypy takes no other function for a method; the check watches this one.
    rig.engine._most_needed = watched  # type: ignore[method-assign]
    rig.run(takes)
    assert all(one.error is None for one in takes)
    first = takes[2].handle
    assert isinstance(first, BatchJob)
    first.spoken, first.audio_s, first.first_audio_at = 1, 32.0, 0.0
    # Far ahead, it is as a batch job; when its listener has heard some of it, no more.
    assert (first.is_urgent(1.0), first.is_urgent(3.0)) == (False, True)
    return {"order": "".join(begun)}


def refused(rig: Rig, *_: int) -> dict[str, Any]:
    """A job that can't be spoken is refused, and one that does not fit is bounded or fails by itself."""
    for changes in ({"reference": None}, {"text": "。。。"}):
        try:
            rig.engine.begin(rig.utterance(0, 4, **changes))
        except EngineError as error:
            assert error.code == "bad_request"
        else:
            raise AssertionError(changes)
    assert not rig.engine._jobs
    warnings: list[str] = []
    rig.engine._warn = warnings.append
    long = rig.utterance(1, 4, options=rig.engine.options(max_tokens=5_000, use_cache=False))
    assert long.reference is not None
    handle = rig.engine.begin(long)
    assert isinstance(handle, BatchJob)
    # A recording of 78 s, which the daemon would not accept.
    while handle.voice is None:
        rig.engine.advance()
    handle.voice = replace(handle.voice, speech_tokens=handle.voice.speech_tokens * 2)
    handle.history[0] = (handle.history[0][0], [7] * 1_960)
    while handle.reading is None:
        rig.engine.advance()
    assert handle.reading.most + len(handle.reading.ids) == 2_048 and "tokens instead of" in warnings[0]
    rig.engine.cancel(handle)
    handle = rig.engine.begin(long)
    while handle.voice is None:
        rig.engine.advance()
    handle.history[0] = (handle.history[0][0], [7] * 2_048)
    events: list[Event] = []
    while not events:
        events += rig.engine.advance()
    assert isinstance(events[0], Broken) and "recording" in str(events[0].error)
    return {}


def main(root: str, cache: str, check: str, *sizes: str) -> None:
    jobs, voices, slots = (int(size) for size in sizes or ("14", "5", "4"))
    rig = Rig(root, cache, slots)
    try:
        found = globals()[check](rig, jobs, voices)
    finally:
        rig.engine.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
