"""daemon/engines/fault/engine.py: the tone that the tests of everything else are measured by. Deaths: tests/process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmtts.daemon.engines import load
from glmtts.daemon.engines.base import Engine, EngineError, MemoryFigures, Piece, Reference, Utterance
from glmtts.daemon.engines.fault.engine import FaultEngine
from glmtts.daemon.engines.options import FaultOptions

GARBAGE: list[bytes] = []


@pytest.fixture
def engine() -> Engine:
    GARBAGE.clear()
    return load("fault", {}, send_raw=GARBAGE.append)


def pieces(engine: Engine, text: str = "hello", **given: Any) -> list[Piece]:
    job = {"voice": "tone", "reference": None, "sample_rate": 24_000, "seed": 0}
    options = {key: given.pop(key) for key in list(given) if key in FaultOptions.__struct_fields__}
    return list(engine.synthesize(Utterance(text=text, options=FaultOptions(**options), **(job | given))))


def samples(engine: Engine, text: str = "hello", **given: Any) -> np.ndarray:
    return np.concatenate([piece.samples for piece in pieces(engine, text, **given)])


def test_the_tone_has_the_length_that_was_asked_for(engine: Engine) -> None:
    assert len(samples(engine, seconds=0.2)) == 4_800
    assert len(samples(engine, seconds=1.7, sample_rate=32_000)) == 54_400
    assert len(samples(engine, seconds=0.0)) == 0
    assert len(samples(engine, "长" * 100)) == 6 * 24_000


def test_a_long_tone_comes_in_pieces_without_a_seam(engine: Engine) -> None:
    long = pieces(engine, seconds=3.0, segments=2)
    assert len(long) > 4 and [piece.ends_segment for piece in long].count(True) == 2
    whole = np.concatenate([piece.samples for piece in long])
    assert np.max(np.abs(np.diff(whole))) < 0.3 * 2 * np.pi * 900 / 24_000


def test_a_tone_suspended_for_another_resumes_where_it_was(engine: Engine) -> None:
    options = FaultOptions(seconds=2.0, segments=3)
    heard = []
    for piece in engine.synthesize(Utterance("hello", "tone", None, 24_000, 0, options)):
        heard.append(piece.samples)
        samples(engine, "other", seconds=0.3, fault="leak_ram", mib=1)
    assert np.array_equal(np.concatenate(heard), samples(engine, seconds=2.0, segments=3))


def test_every_other_request_sounds_different(engine: Engine) -> None:
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


def test_a_thousand_texts_are_a_thousand_sounds(engine: Engine) -> None:
    pcm = {(samples(engine, f"text {n}", seconds=0.01) * 32_767).astype(np.int16).tobytes() for n in range(1_000)}
    assert len(pcm) == 1_000


def test_a_slow_synthesis_takes_its_time_and_beats(engine: Engine) -> None:
    beats: list[int] = []
    begun = time.monotonic()
    pieces(engine, seconds=0.2, rtf=1.0, beat=lambda done, _: beats.append(done))
    assert time.monotonic() - begun >= 0.2 and len(beats) >= 3


def test_going_wrong_in_mid_stream_leaves_what_was_spoken_before(engine: Engine) -> None:
    heard: list[Piece] = []
    utterance = Utterance("x", None, None, 24_000, 0, FaultOptions(fault="raise", after_segments=2, seconds=0.3))
    with pytest.raises(RuntimeError):
        for piece in engine.synthesize(utterance):
            heard.append(piece)
    assert [piece.segment for piece in heard] == [0, 1] and heard[0].segments == 3


def test_nonsense_goes_out_raw_and_the_job_goes_on(engine: Engine) -> None:
    assert len(samples(engine, fault="garbage", seconds=0.2)) == 4_800
    assert len(GARBAGE) == 3


def test_a_leak_of_gpu_memory_needs_a_gpu(engine: Engine) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has one")
    with pytest.raises(EngineError, match="needs a GPU") as raised:
        samples(engine, fault="leak_vram")
    assert raised.value.code == "bad_request" and not raised.value.fatal


@pytest.mark.parametrize("fault", ["leak_outside", "cache_vram", "use_vram", "oom_vram", "illegal_access"])
def test_every_fault_of_a_gpu_is_refused_without_one(engine: Engine, fault: str) -> None:
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


@pytest.mark.parametrize(("fault", "last"), [("beat_still", 1), ("runaway", 91)])
def test_a_job_that_beats_without_an_end_ends_when_it_is_cancelled(engine: Engine, fault: str, last: int) -> None:
    beats: list[tuple[int, int]] = []
    end: dict[str, Any] = {"beat": lambda *beat: beats.append(beat), "cancelled": lambda: len(beats) >= 10}
    assert pieces(engine, fault=fault, **end) == []
    assert beats[0] == (1, 10) and beats[-1] == (last, 10) and len(beats) == 10


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
