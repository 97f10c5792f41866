"""daemon/engines/fault/engine.py: the tone that the tests of everything else are measured by. Deaths: tests/process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmtts.daemon.engines import load
from glmtts.daemon.engines.base import EngineError, Handle, MemoryFigures, Piece, Reference, Spoken, Utterance
from glmtts.daemon.engines.fault.engine import FaultEngine
from glmtts.daemon.engines.options import FaultOptions

GARBAGE: list[bytes] = []


def fault_engine(**settings: Any) -> FaultEngine:
    engine = load("fault", settings, send_raw=GARBAGE.append)
    assert isinstance(engine, FaultEngine)
    return engine


@pytest.fixture
def engine() -> FaultEngine:
    GARBAGE.clear()
    return fault_engine()


def utterance(text: str = "hello", **given: Any) -> Utterance:
    job = {"voice": "tone", "reference": None, "sample_rate": 24_000, "seed": 0}
    options = {key: given.pop(key) for key in list(given) if key in FaultOptions.__struct_fields__}
    return Utterance(text=text, options=FaultOptions(**options), **(job | given))


def pieces(engine: FaultEngine, text: str = "hello", **given: Any) -> list[Piece]:
    return list(engine.synthesize(utterance(text, **given)))


def samples(engine: FaultEngine, text: str = "hello", **given: Any) -> np.ndarray:
    return np.concatenate([piece.samples for piece in pieces(engine, text, **given)])


def test_the_tone_has_the_length_that_was_asked_for(engine: FaultEngine) -> None:
    assert len(samples(engine, seconds=0.2)) == 4_800
    assert len(samples(engine, seconds=1.7, sample_rate=32_000)) == 54_400
    assert len(samples(engine, seconds=0.0)) == 0
    assert len(samples(engine, "长" * 100)) == 6 * 24_000


def test_a_long_tone_comes_in_pieces_without_a_seam(engine: FaultEngine) -> None:
    long = pieces(engine, seconds=3.0, segments=2)
    assert len(long) > 4 and [piece.ends_segment for piece in long].count(True) == 2
    whole = np.concatenate([piece.samples for piece in long])
    assert np.max(np.abs(np.diff(whole))) < 0.3 * 2 * np.pi * 900 / 24_000


def test_a_tone_sounds_the_same_beside_others_and_after_each_suspension() -> None:
    alone = samples(fault_engine(), seconds=2.0, segments=3)
    engine = fault_engine(slots=3)
    first = engine.begin(utterance(seconds=2.0, segments=3))
    others = [engine.begin(utterance(f"other {n}", seconds=9.0, rtf=0.001)) for n in range(2)]
    heard: list[np.ndarray] = []
    for _ in range(100):
        heard += [
            event.piece.samples for event in engine.advance() if isinstance(event, Spoken) and event.handle is first
        ]
        if len(heard) == 6:
            break
        engine.suspend(first)
        assert not any(event.handle is first for event in engine.advance())
        engine.resume(first)
    assert np.array_equal(np.concatenate(heard), alone)
    assert all(other.work_s for other in others)


def test_jobs_side_by_side_take_their_own_time_and_share_the_work() -> None:
    engine = fault_engine(slots=4)
    jobs = [engine.begin(utterance(f"{n}", seconds=0.1 * (n + 1), rtf=1.0)) for n in range(4)]
    begun, ends = time.monotonic(), dict[Handle, float]()
    while len(ends) < 4:
        idle_s = engine.idle_s()
        assert idle_s is not None
        time.sleep(idle_s)
        ends |= {event.handle: time.monotonic() - begun for event in engine.advance() if not isinstance(event, Spoken)}
    took = [ends[job] for job in jobs]
    assert took == sorted(took) and all(0.1 * (n + 1) <= took[n] for n in range(4))
    assert took[3] < 0.9  # side by side, and not one after another
    assert sum(job.work_s for job in jobs) == pytest.approx(took[3], abs=0.1)


def test_every_other_request_sounds_different(engine: FaultEngine) -> None:
    reference = Reference(np.zeros(1, np.float32), 16_000, "text", "digest")
    variants: list[dict[str, Any]] = [
        {},
        {"text": "hellp"},
        {"seed": 1},
        {"voice": "tone-high"},
        {"voice": "tone-low"},
        {"reference": reference, "voice": None},
        {"reference": Reference(np.zeros(1, np.float32), 16_000, "text", "other"), "voice": None},
    ]
    spoken = [samples(engine, seconds=0.2, **variant).tobytes() for variant in variants]
    assert len(set(spoken)) == len(variants)
    assert [samples(engine, seconds=0.2, **variant).tobytes() for variant in variants] == spoken


def test_a_thousand_texts_are_a_thousand_sounds(engine: FaultEngine) -> None:
    pcm = {(samples(engine, f"text {n}", seconds=0.01) * 32_767).astype(np.int16).tobytes() for n in range(1_000)}
    assert len(pcm) == 1_000


def test_a_slow_synthesis_takes_its_time_and_moves(engine: FaultEngine) -> None:
    begun = time.monotonic()
    job = engine.begin(utterance(seconds=0.2, rtf=1.0))
    seen = set()
    while engine.idle_s() is not None:
        engine.advance()
        seen.add(job.done)
        time.sleep(0.01)
    assert time.monotonic() - begun >= 0.2 and len(seen) >= 3 and job.expected == 10


def test_going_wrong_in_mid_stream_leaves_what_was_spoken_before(engine: FaultEngine) -> None:
    heard: list[Piece] = []
    with pytest.raises(RuntimeError):
        for piece in engine.synthesize(utterance(fault="raise", after_segments=2, seconds=0.3)):
            heard.append(piece)
    assert [piece.segment for piece in heard] == [0, 1] and heard[0].segments == 3


def test_nonsense_goes_out_raw_and_the_job_goes_on(engine: FaultEngine) -> None:
    assert len(samples(engine, fault="garbage", seconds=0.2)) == 4_800
    assert len(GARBAGE) == 3


def test_a_leak_of_gpu_memory_needs_a_gpu(engine: FaultEngine) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has one")
    with pytest.raises(EngineError, match="needs a GPU") as raised:
        samples(engine, fault="leak_vram")
    assert raised.value.code == "bad_request" and not raised.value.fatal


@pytest.mark.parametrize("fault", ["leak_outside", "cache_vram", "use_vram", "oom_vram", "illegal_access"])
def test_every_fault_of_a_gpu_is_refused_without_one(engine: FaultEngine, fault: str) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has one")
    with pytest.raises(EngineError, match=rf"{fault} needs a GPU") as raised:
        samples(engine, fault=fault)
    assert raised.value.code == "bad_request" and not raised.value.fatal
    assert len(samples(engine, seconds=0.1)) == 2_400 and engine.memory() == MemoryFigures()


def test_a_model_in_gpu_memory_needs_a_gpu() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has one")
    with pytest.raises(RuntimeError, match=r"\[engine.fault\] vram_mib = 100 needs a GPU"):
        load("fault", {"vram_mib": 100}, send_raw=GARBAGE.append)


@pytest.mark.parametrize(("fault", "moves"), [("beat_still", False), ("runaway", True)])
def test_a_job_without_an_end_leaves_the_others_theirs(fault: str, moves: bool) -> None:
    engine = fault_engine(slots=2)
    endless = engine.begin(utterance(fault=fault))
    other = engine.begin(utterance(seconds=0.3, rtf=1.0))
    engine.advance()
    assert (endless.done, endless.expected) == (1, 10)
    ended = False
    while not ended:
        ended = any(event.handle is other and not isinstance(event, Spoken) for event in engine.advance())
    assert (endless.done > 10 * 10) == moves
    engine.cancel(endless)
    assert engine.idle_s() is None


def test_samples_that_are_not_numbers(engine: FaultEngine) -> None:
    spoken = pieces(engine, fault="nan", after_segments=1, seconds=0.2)
    assert [bool(np.isnan(piece.samples).any()) for piece in spoken] == [False, True]


def test_children_live_on_in_groups_of_their_own_while_the_job_goes_on(
    engine: FaultEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        assert len(samples(engine, fault="fork_child", seconds=0.1)) == 2_400
        same, other = (int(word) for word in capfd.readouterr().out.removeprefix("children: ").split())
        assert os.getpgid(same) == os.getpgid(0) and os.getpgid(other) == os.getsid(other) == other
        assert [child.poll() for child in engine._children] == [None, None]
    finally:
        for child in engine._children:
            child.kill()
            child.wait()


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"nonesuch.*espeak, fault"):
        load("nonesuch", {}, send_raw=lambda _: None)
