"""Results: what is written to disk, and what is printed of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtts.client import Chunk, GlmttsError, Speech

from .scripted_daemon import done


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    target.write_bytes(b"old")
    assert Speech.of(done("j1", "r1"), b"new audio").save(target) == target
    assert target.read_bytes() == b"new audio"
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_speech_that_the_daemon_wrote_says_where_it_is(tmp_path: Path) -> None:
    speech = Speech.of(done("j1", "r1", path="/out/a.wav", bytes=44), b"")
    assert (speech.path, speech.bytes, speech.audio, speech.duration_s) == ("/out/a.wav", 44, b"", 1.0)
    with pytest.raises(GlmttsError, match=r"/out/a\.wav"):
        speech.save(tmp_path / "a.wav")


def test_printing_a_result_does_not_print_its_audio() -> None:
    assert len(repr(Speech.of(done("j1", "r1"), bytes(100_000)))) < 300
    assert len(repr(Chunk(seq=0, samples=bytes(9_600), format="pcm_s16le", sample_rate=24_000, channels=1))) < 100


def test_a_chunk_knows_how_long_it_plays() -> None:
    assert Chunk(seq=0, samples=bytes(9_600), format="pcm_s16le", sample_rate=24_000, channels=1).duration_s == 0.2
    assert Chunk(seq=0, samples=bytes(9_600), format="pcm_f32le", sample_rate=24_000, channels=1).duration_s == 0.1


@pytest.mark.parametrize("name", ["a.mp3", "a.OGG", "a.m4a"])
def test_speech_is_not_saved_under_a_name_that_says_another_format(tmp_path: Path, name: str) -> None:
    speech = Speech.of(done("j1", "r1"), b"RIFF")
    with pytest.raises(GlmttsError, match=r"is not saved as .*; use \.wav"):
        speech.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.wav", "a.WAVE", "a", "v1.2", "a.xyz", ".mp3"])
def test_speech_is_saved_under_any_other_name(tmp_path: Path, name: str) -> None:
    assert Speech.of(done("j1", "r1"), b"RIFF").save(tmp_path / name).read_bytes() == b"RIFF"
