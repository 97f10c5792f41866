"""daemon/engines/espeak/engine.py: real speech from the embedded engine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from glmtts.daemon.engines import load
from glmtts.daemon.engines.base import EngineBase, EngineError, Piece, Utterance
from glmtts.daemon.engines.options import EspeakOptions

RATE = 22_050
CHINESE = "今天天气不错，我们去公园散步吧。"
ENGLISH = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineBase]:
    engine = load("espeak", {}, send_raw=lambda _: None)
    yield engine
    engine.close()


def utterance(text: str, voice: str | None = None, **options: int) -> Utterance:
    return Utterance(text, voice, None, RATE, 0, EspeakOptions(**options))


def speak(engine: EngineBase, text: str, voice: str | None = None, **options: int) -> np.ndarray:
    return np.concatenate([piece.samples for piece in engine.synthesize(utterance(text, voice, **options))])


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()


@pytest.mark.parametrize(("text", "least", "most"), [(CHINESE, 2.0, 6.0), (ENGLISH, 1.5, 4.5), ("你好", 0.3, 1.5)])
def test_speech_has_the_length_and_the_loudness_of_speech(
    engine: EngineBase, text: str, least: float, most: float
) -> None:
    samples = speak(engine, text)
    assert least < len(samples) / RATE < most
    assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.5
    assert samples.dtype == np.float32 and np.max(np.abs(samples)) <= 1.0
    spectrum = np.abs(np.fft.rfft(samples))
    voice_band = spectrum[int(80 * len(samples) / RATE) : int(4_000 * len(samples) / RATE)]
    assert np.sum(voice_band**2) > 0.9 * np.sum(spectrum**2)


def test_chinese_is_spoken_in_mandarin_and_english_in_english(engine: EngineBase) -> None:
    """English voices spell "Chinese letter" for each character: far longer, and useless."""
    assert digest(speak(engine, CHINESE)) == digest(speak(engine, CHINESE, "cmn"))
    assert digest(speak(engine, ENGLISH)) == digest(speak(engine, ENGLISH, "en-us"))
    assert len(speak(engine, CHINESE, "en-us")) > 1.5 * len(speak(engine, CHINESE))


def test_an_english_word_in_a_chinese_sentence_is_heard(engine: EngineBase) -> None:
    without, within = speak(engine, "我喜欢和。"), speak(engine, "我喜欢 machine learning 和。")
    assert len(within) - len(without) > 0.4 * RATE


def test_the_same_text_sounds_the_same_after_whatever_was_spoken_before(engine: EngineBase) -> None:
    texts = [CHINESE, ENGLISH, CHINESE + ENGLISH]
    first = [digest(speak(engine, text)) for text in texts]
    assert len(set(first)) == 3
    speak(engine, "Grüße", "de", rate=300, pitch=90)
    for after in range(0, 40, 13):
        pieces = engine.synthesize(utterance(ENGLISH * 5))
        for _ in range(after):
            next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert [digest(speak(engine, text)) for text in reversed(texts)] == first[::-1]


def test_another_process_speaks_the_same_bytes(engine: EngineBase) -> None:
    program = (
        "import hashlib, sys; from glmtts.daemon.engines import load\n"
        "from glmtts.daemon.engines.base import Utterance\n"
        "engine = load('espeak', {}, send_raw=print)\n"
        "pieces = engine.synthesize(Utterance(sys.argv[1], None, None, 22050, 0, engine.options()))\n"
        "print(hashlib.sha256(b''.join(piece.samples.tobytes() for piece in pieces)).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, CHINESE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(speak(engine, CHINESE))


def test_speech_comes_while_it_is_made_sentence_by_sentence(engine: EngineBase) -> None:
    pieces = list(engine.synthesize(utterance(CHINESE + ENGLISH)))
    assert len(pieces) > 20 and max(len(piece.samples) for piece in pieces) <= RATE // 10
    assert [(piece.segment, piece.segments) for piece in pieces if piece.ends_segment] == [(0, 2), (1, 2)]
    assert [piece.segment for piece in pieces] == sorted(piece.segment for piece in pieces)


def test_a_cancelled_text_ends_at_once_and_leaves_no_thread(engine: EngineBase) -> None:
    taken: list[Piece] = []
    job = utterance(ENGLISH * 100)
    job.cancelled = lambda: len(taken) >= 5
    for piece in engine.synthesize(job):
        taken.append(piece)
    assert len(taken) == 5
    speak(engine, "ok")
    engine.close()
    assert "espeak" not in [thread.name for thread in threading.enumerate()]


def test_a_job_suspended_for_others_sounds_as_if_it_had_been_alone(engine: EngineBase) -> None:
    """The library's state is static: without an instance for each job, the others would be heard in this one."""
    text = (CHINESE + ENGLISH) * 3
    whole, other = digest(speak(engine, text)), digest(speak(engine, ENGLISH, "de", pitch=90))
    heard: list[np.ndarray] = []
    for piece in engine.synthesize(utterance(text)):
        heard.append(piece.samples)
        if piece.ends_segment:
            assert digest(speak(engine, ENGLISH, "de", pitch=90)) == other
    assert digest(np.concatenate(heard)) == whole


def test_jobs_suspended_one_after_another_are_all_spoken_to_their_ends(engine: EngineBase) -> None:
    texts = [ENGLISH * 2, CHINESE * 3, (CHINESE + ENGLISH) * 2, ENGLISH * 3]
    alone = [digest(speak(engine, text)) for text in texts]
    turns = [iter(engine.synthesize(utterance(text))) for text in texts]
    heard: list[list[np.ndarray]] = [[] for _ in texts]
    waiting = list(range(len(texts)))
    while waiting:
        for job in list(waiting):
            for piece in turns[job]:
                heard[job].append(piece.samples)
                if piece.ends_segment:
                    break
            else:
                waiting.remove(job)
    assert [digest(np.concatenate(pieces)) for pieces in heard] == alone


def test_a_job_suspended_keeps_nobody_waiting_even_if_it_is_long(engine: EngineBase) -> None:
    """Its thread is blocked, because nobody takes what it has made."""
    suspended = iter(engine.synthesize(utterance(ENGLISH * 100)))
    while not next(suspended).ends_segment:
        pass
    begun = time.monotonic()
    speak(engine, "hello")
    assert time.monotonic() - begun < 5.0
    suspended.close()  # type: ignore[attr-defined]
    engine.close()
    assert "espeak" not in [thread.name for thread in threading.enumerate()]


def test_jobs_suspended_leave_no_descriptor_no_mapping_and_no_memory(engine: EngineBase) -> None:
    def held() -> tuple[int, int, int]:
        engine.close()
        mappings = Path("/proc/self/maps").read_text().splitlines()
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * 4_096
        return len(list(Path("/proc/self/fd").iterdir())), sum("espeak" in line for line in mappings), rss

    def speak_with_others_suspended(depth: int) -> None:
        pieces = iter(engine.synthesize(utterance("One. Two.")))
        for piece in pieces:
            if piece.ends_segment and depth:
                speak_with_others_suspended(depth - 1)
                if depth % 2:
                    pieces.close()  # type: ignore[attr-defined]

    for _ in range(10):
        speak_with_others_suspended(3)
    before = held()
    for _ in range(40):
        speak_with_others_suspended(3)
    after = held()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 4 << 20


def test_a_library_that_vanished_ends_the_process_instead_of_crashing_it() -> None:
    """An upgrade of the package takes the files away under a running worker."""
    program = (
        "from glmtts.daemon.engines import load\n"
        "from glmtts.daemon.engines.base import EngineError, Utterance\n"
        "engine = load('espeak', {}, send_raw=print)\n"
        "engine._idle[0]._path = '/nowhere/gone.so'\n"
        "list(engine.synthesize(Utterance('ok', None, None, 22050, 0, engine.options())))\n"
        "try: next(engine.synthesize(Utterance('ok', None, None, 22050, 0, engine.options())))\n"
        "except EngineError as error: print(error.fatal, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True eSpeak NG can't be loaded again: /nowhere/gone.so")


def test_rate_and_pitch_are_heard(engine: EngineBase) -> None:
    normal = speak(engine, ENGLISH)
    assert len(speak(engine, ENGLISH, rate=350)) < 0.75 * len(normal) < len(normal)
    assert digest(speak(engine, ENGLISH, pitch=90)) != digest(normal)


@pytest.mark.parametrize(("written", "read"), [("٣", "3"), ("①", "1"), ("第⑫步", "第 12 步"), ("①②", "1 2")])
def test_a_number_is_heard_however_it_is_written(engine: EngineBase, written: str, read: str) -> None:
    assert digest(speak(engine, written)) == digest(speak(engine, read))


def test_markup_is_read_and_not_obeyed(engine: EngineBase) -> None:
    assert len(speak(engine, 'a <break time="9s"/> b [[aI]] c')) / RATE < 8


def test_odd_text_is_spoken_or_refused_and_never_breaks_the_engine(engine: EngineBase) -> None:
    for text in ("\ud800abc", "a\0b", "😀 smile", "e" * 2_000, "1" * 400, "مرحبا", "ﷺ"):
        try:
            assert len(speak(engine, text))
        except EngineError as error:
            assert error.code == "synthesis_failed"
    assert len(speak(engine, "still here"))


def test_the_voices_have_names_to_choose_by(engine: EngineBase) -> None:
    names = [voice.name for voice in engine.voices]
    assert names[0] == "auto" and len(names) == len(set(names)) > 100
    assert {"cmn", "en-us", "en-gb", "yue", "yue-latn-jyutping", "de", "fr-fr", "ja"} <= set(names)
    assert digest(speak(engine, "nei5 hou2", "yue")) != digest(speak(engine, "nei5 hou2", "yue-latn-jyutping"))


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        load("espeak", {}, send_raw=lambda _: None)
