"""Speech that is made faster or slower: its pitch, its length, and that no listener hears where pieces meet."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtts.daemon.engines.base import EngineError
from glmtts.daemon.worker.speed import TimeStretcher

RATE = 24_000
#: A voice's pulses, 150 a second, under a slow swell as of syllables.
SECONDS = 3.0
_T = np.arange(round(SECONDS * RATE)) / RATE
VOICE = (
    0.2 * (1.2 + np.sin(2 * np.pi * 4 * _T)) * sum(np.sin(2 * np.pi * 150 * n * _T) / n for n in range(1, 9))
).astype(np.float32)


def stretched(speed: float, *cuts: int) -> np.ndarray:
    stretcher = TimeStretcher(RATE, speed)
    parts = [stretcher.add(part) for part in np.split(VOICE, sorted(cuts))]
    return np.concatenate([*parts, stretcher.finish()])


def pitch(samples: np.ndarray) -> float:
    """In Hz, by autocorrelation of the middle."""
    middle = samples[len(samples) // 2 :][:4_096]
    likeness = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    lags = np.arange(RATE // 400, RATE // 80)
    return float(RATE / lags[np.argmax(likeness[lags])])


@pytest.mark.parametrize("speed", [0.5, 0.75, 1.5, 2.0])
def test_the_pitch_stays_the_length_is_right_and_nothing_clicks(speed: float) -> None:
    samples = stretched(speed, 10_000, 50_000)
    assert pitch(samples) == pytest.approx(150, rel=0.01)
    assert len(samples) / RATE == pytest.approx(SECONDS / speed, rel=0.01)
    # A click is a jump that the voice itself does not have.
    assert np.abs(np.diff(samples)).max() < 1.5 * np.abs(np.diff(VOICE)).max()


@settings(max_examples=20, deadline=None)
@given(speed=st.sampled_from([0.5, 1.3, 2.0]), cuts=st.lists(st.integers(0, len(VOICE)), max_size=8))
def test_pieces_of_any_length_sound_as_one(speed: float, cuts: list[int]) -> None:
    assert np.array_equal(stretched(speed, *cuts), stretched(speed))


def test_pieces_come_out_while_others_go_in() -> None:
    stretcher, heard = TimeStretcher(RATE, 1.5), 0
    for number, part in enumerate(np.split(VOICE, 30), 1):
        heard += len(stretcher.add(part))
        assert heard >= number * len(part) / 1.5 - 0.06 * RATE


def test_without_the_library_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsonic", None)
    with pytest.raises(EngineError, match="libsonic") as refused:
        TimeStretcher(RATE, 1.5)
    assert refused.value.code == "bad_request"
