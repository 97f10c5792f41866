"""Registered voices survive crashes, full disks and bad names: the old or the new one is there, whole."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import struct
import sys
import wave
from pathlib import Path

import pytest

from glmtts.daemon.storage import voices
from glmtts.daemon.storage.voices import VoiceError, VoiceStore, check_recording, recording_ending
from glmtts.protocol.errors import ErrorCode


def recording(seconds: float = 1.5, frequency: float = 220.0) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        samples = (int(9_000 * math.sin(2 * math.pi * frequency * i / 16_000)) for i in range(int(seconds * 16_000)))
        writer.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


WAV = recording(0.1)
OTHER = recording(0.1, 330.0)


def add(store: VoiceStore, name: str = "anna", data: bytes = WAV, replace: bool = False) -> voices.RegisteredVoice:
    return store.add(
        name, data, "你好。", seconds=1.5, sample_rate=16_000, language="zh", description="a voice", replace=replace
    )


def refused(store: VoiceStore, name: str = "anna", data: bytes = WAV, replace: bool = False) -> VoiceError:
    with pytest.raises(VoiceError) as caught:
        add(store, name, data, replace)
    return caught.value


def test_a_voice_is_there_again_after_a_restart(tmp_path: Path) -> None:
    added = add(VoiceStore(tmp_path / "state" / "voices"))
    store = VoiceStore(tmp_path / "state" / "voices")
    assert store.load_all() == {"anna": added}
    assert store.damaged == {}
    assert added.recording.read_bytes() == WAV
    assert (added.text, added.language, added.description) == ("你好。", "zh", "a voice")
    described = json.loads((added.recording.parent / "voice.json").read_text())
    assert {"text", "language", "description", "sha256", "seconds", "sample_rate", "added"} <= described.keys()


def test_a_voice_is_read_by_its_owner_and_group_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        added = add(VoiceStore(tmp_path / "voices"))
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "voices", added.recording.parent, added.recording)
    ]
    assert modes == [0o750, 0o750, 0o640]


def test_no_folder_means_no_voices(tmp_path: Path) -> None:
    assert VoiceStore(tmp_path / "none").load_all() == {}


@pytest.mark.parametrize("name", ["anna", "小美", "a-b_c", "x" * 64])
def test_a_plain_name_is_accepted(tmp_path: Path, name: str) -> None:
    add(VoiceStore(tmp_path), name)
    assert list(VoiceStore(tmp_path).load_all()) == [name]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a.b", "a b", "a\n", "a\x00", "x" * 65, "\U00020000" * 64]
)
def test_a_name_that_could_be_a_path_is_refused_everywhere(tmp_path: Path, name: str) -> None:
    store = VoiceStore(tmp_path / "voices")
    assert refused(store, name).code is ErrorCode.BAD_REQUEST
    with pytest.raises(VoiceError) as caught:
        store.remove(name)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_kept_unless_replacing_is_asked_for(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    first = add(store)
    error = refused(store, data=OTHER)
    assert error.code is ErrorCode.BAD_REQUEST
    assert "replace" in error.message
    assert store.load_all() == {"anna": first}


def test_a_replaced_recording_stays_readable_for_the_jobs_that_have_its_path(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.load_all()
    old = add(store)
    new = add(store, data=OTHER, replace=True)
    assert store.load_all() == {"anna": new}
    assert (old.recording.read_bytes(), new.recording.read_bytes()) == (WAV, OTHER)
    assert VoiceStore(tmp_path).load_all() == {"anna": new}
    assert sorted(path.name for path in new.recording.parent.iterdir()) == [new.recording.name, "voice.json"]


def test_the_same_recording_can_be_given_a_new_text(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    add(store)
    store.add("anna", WAV, "Good morning.", seconds=1.5, sample_rate=16_000, replace=True)
    assert VoiceStore(tmp_path).load_all()["anna"].text == "Good morning."


@pytest.mark.parametrize("failing", ["voice.json", "recording-"])
def test_a_full_disk_leaves_the_old_voice_and_no_half_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = VoiceStore(tmp_path)
    old = add(store)
    write = voices._write

    def full(path: Path, data: bytes) -> None:
        if failing in path.name:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(voices, "_write", full)
    for name, replace in (("anna", True), ("bob", False)):
        error = refused(store, name, OTHER, replace)
        assert error.code is ErrorCode.OUTPUT_FAILED
        assert "No space left" in error.message
    assert [path.name for path in tmp_path.iterdir()] == ["anna"]
    assert sorted(path.name for path in old.recording.parent.iterdir()) == [old.recording.name, "voice.json"]
    assert VoiceStore(tmp_path).load_all() == {"anna": old}


def test_remains_of_a_crash_are_removed_at_the_next_start_and_not_while_running(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    added = add(store)
    store.load_all()
    remains = [tmp_path / ".adding-1", tmp_path / ".removed-1"]
    for folder in remains:
        folder.mkdir()
        (folder / "recording.wav").write_bytes(WAV)
    assert store.load_all() == {"anna": added}
    assert all(folder.exists() for folder in remains)
    assert VoiceStore(tmp_path).load_all() == {"anna": added}
    assert not any(folder.exists() for folder in remains)


def test_damaged_voices_are_told_and_the_others_speak(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    good = add(store)
    for name in ("short", "gone", "json", "empty", "escape"):
        add(store, name)
    (tmp_path / "short" / f"recording-{good.sha256[:12]}.wav").write_bytes(WAV[:-1])
    (tmp_path / "gone" / f"recording-{good.sha256[:12]}.wav").unlink()
    (tmp_path / "json" / "voice.json").write_text("{")
    (tmp_path / "empty" / "voice.json").unlink()
    escape = tmp_path / "escape" / "voice.json"
    escape.write_text(escape.read_text().replace('"recording-', '"../anna/recording-'))
    (tmp_path / "a.b").mkdir()
    (tmp_path / "a file").touch()
    assert store.load_all() == {"anna": good}
    assert store.damaged.keys() == {"short", "gone", "json", "empty", "escape", "a.b"}
    assert all(store.damaged.values())


def test_a_damaged_voice_can_be_replaced(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    good = add(store)
    good.recording.write_bytes(b"")
    assert store.load_all() == {}
    add(store, replace=True)
    assert list(store.load_all()) == ["anna"]


def test_a_removed_voice_is_gone(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    add(store)
    store.remove("anna")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VoiceError) as caught:
        store.remove("anna")
    assert caught.value.code is ErrorCode.VOICE_NOT_FOUND


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "voices").write_text("a file")
    store = VoiceStore(tmp_path / "voices")
    error = refused(store)
    assert error.code is ErrorCode.OUTPUT_FAILED
    assert str(tmp_path / "voices") in error.message
    assert store.load_all() == {}
    assert store.damaged


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (WAV, ".wav"),
        (b"RF64\xff\xff\xff\xffWAVE", ".wav"),
        (b"fLaC\x00", ".flac"),
        (b"OggS\x00", ".ogg"),
        (b"ID3\x04", ".mp3"),
        (b"\xff\xfb\x90\x00", ".mp3"),
        (b"\xff\xf3\x90\x00", ".mp3"),
        (b"\xff\xe3\x90\x00", ".mp3"),
        (b"\xff\xf1\x50\x80", ""),  # AAC
        (b"\xff\xfe\x00", ""),  # a byte order mark
        (b"RIFF\x00\x00\x00\x00AVI ", ""),
        (b"", ""),
        (b"\xff", ""),
        (b"hello", ""),
    ],
)
def test_the_kind_of_a_recording_is_told_by_its_first_bytes(data: bytes, ending: str) -> None:
    assert recording_ending(data) == ending


def test_what_is_no_recording_is_not_stored(tmp_path: Path) -> None:
    assert refused(VoiceStore(tmp_path), data=b"hello").code is ErrorCode.BAD_AUDIO
    assert list(tmp_path.iterdir()) == []


# --- the check, in a process of its own


def bad(data: bytes, python: str = sys.executable, timeout_s: float = 30.0) -> VoiceError:
    with pytest.raises(VoiceError) as caught:
        check_recording(data, python, 1.0, 30.0, timeout_s)
    return caught.value


def test_a_good_recording_is_measured() -> None:
    assert check_recording(recording(1.5), sys.executable, 1.0, 30.0, 30.0) == {
        "seconds": 1.5,
        "sample_rate": 16_000,
        "channels": 1,
    }


def test_a_recording_that_does_not_fit_is_refused_with_the_reason() -> None:
    error = bad(recording(0.5))
    assert error.code is ErrorCode.BAD_AUDIO
    assert "0.5" in error.message
    assert bad(b"hello").code is ErrorCode.BAD_AUDIO
    assert bad(WAV[:30] + b"\xff" * 100).code is ErrorCode.BAD_AUDIO


def interpreter(folder: Path, script: str) -> str:
    """A program in the place of the interpreter, to be what a broken one is."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_decoder_that_crashes_condemns_the_recording(tmp_path: Path) -> None:
    error = bad(WAV, interpreter(tmp_path, "kill -SEGV $$"))
    assert error.code is ErrorCode.BAD_AUDIO
    assert "signal 11" in error.message


def test_a_decoder_that_does_not_end_is_ended(tmp_path: Path) -> None:
    error = bad(WAV, interpreter(tmp_path, "exec sleep 600"), timeout_s=0.2)
    assert error.code is ErrorCode.BAD_AUDIO


def test_a_check_that_can_not_be_made_does_not_blame_the_recording(tmp_path: Path) -> None:
    assert bad(WAV, str(tmp_path / "none")).code is ErrorCode.UNAVAILABLE
    error = bad(WAV, interpreter(tmp_path, "echo no module named soundfile >&2; exit 1"))
    assert error.code is ErrorCode.UNAVAILABLE
    assert "soundfile" in error.message
