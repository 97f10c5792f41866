"""Registered voices survive crashes, full disks and bad names: the old or the new one is there, complete."""

from __future__ import annotations

import hashlib
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

from glmtts.daemon.core.inputs import StoredVoice
from glmtts.daemon.storage import voices
from glmtts.daemon.storage.outputs import put
from glmtts.daemon.storage.recording_files import recording_ending
from glmtts.daemon.storage.voices import VoiceError, VoiceStore, check_recording
from glmtts.protocol.control import VoiceAdd
from glmtts.protocol.errors import ErrorCode


def recording(seconds: float = 1.5, frequency: float = 220.0) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        samples = (int(9_000 * math.sin(2 * math.pi * frequency * i / 16_000)) for i in range(int(seconds * 16_000)))
        writer.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


WAV = recording(0.1)
SHA = hashlib.sha256(WAV).hexdigest()[:12]
OTHER = recording(0.1, 330.0)


def add(store: VoiceStore, name: str = "anna", data: bytes = WAV, replace: bool = False) -> StoredVoice:
    request = VoiceAdd(id="r", v=1, name=name, text="你好。", language="zh", description="a voice", replace=replace)
    return store.add(request, data, seconds=1.5, sample_rate=16_000)


def refused(store: VoiceStore, name: str = "anna", data: bytes = WAV, replace: bool = False) -> VoiceError:
    with pytest.raises(VoiceError) as caught:
        add(store, name, data, replace)
    return caught.value


def test_a_voice_is_there_after_a_restart_until_it_is_removed(tmp_path: Path) -> None:
    assert VoiceStore(tmp_path / "none").load_all() == {}
    added = add(VoiceStore(tmp_path / "state" / "voices"))
    store = VoiceStore(tmp_path / "state" / "voices")
    assert store.load_all() == {"anna": added}
    assert store.damaged == {}
    assert Path(added.path).read_bytes() == WAV
    assert (added.text, added.language, added.description) == ("你好。", "zh", "a voice")
    described = json.loads((Path(added.path).parent / "voice.json").read_text())
    assert {"text", "language", "description", "sha256", "seconds", "sample_rate", "added"} <= described.keys()
    store.remove("anna")
    assert list(store.folder.iterdir()) == []
    with pytest.raises(VoiceError) as caught:
        store.remove("anna")
    assert caught.value.code is ErrorCode.VOICE_NOT_FOUND


def test_a_voice_is_read_by_its_owner_and_group_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        added = add(VoiceStore(tmp_path / "voices"))
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "voices", Path(added.path).parent, Path(added.path))
    ]
    assert modes == [0o750, 0o750, 0o640]


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


def test_a_replaced_recording_stays_readable_for_the_jobs_that_have_its_path(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.load_all()
    old = add(store)
    error = refused(store, data=OTHER)
    assert error.code is ErrorCode.BAD_REQUEST and "replace" in error.message
    assert refused(store, data=b"hello", replace=True).code is ErrorCode.BAD_AUDIO
    assert store.load_all() == {"anna": old}
    new = add(store, data=OTHER, replace=True)
    assert store.load_all() == {"anna": new}
    assert (Path(old.path).read_bytes(), Path(new.path).read_bytes()) == (WAV, OTHER)
    assert VoiceStore(tmp_path).load_all() == {"anna": new}
    assert sorted(path.name for path in Path(new.path).parent.iterdir()) == [Path(new.path).name, "voice.json"]


@pytest.mark.parametrize("failing", ["voice.json", "recording-"])
def test_a_full_disk_leaves_the_old_voice_and_no_part_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = VoiceStore(tmp_path)
    old = add(store)

    def full(path: Path, data: bytes, mode: int) -> None:
        if failing in path.name:
            raise OSError(28, "No space left on device", str(path))
        put(path, data, mode)

    monkeypatch.setattr(voices, "put", full)
    for name, replace in (("anna", True), ("bob", False)):
        error = refused(store, name, OTHER, replace)
        assert error.code is ErrorCode.OUTPUT_FAILED
        assert "No space left" in error.message
    assert [path.name for path in tmp_path.iterdir()] == ["anna"]
    assert sorted(path.name for path in Path(old.path).parent.iterdir()) == [Path(old.path).name, "voice.json"]
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


def test_a_start_leaves_alone_what_another_instance_makes_in_the_same_folder(tmp_path: Path) -> None:
    theirs, ours = tmp_path / ".adding-bbbbbb-1", tmp_path / ".adding-aaaaaa-1"
    for folder in (theirs, ours):
        folder.mkdir()
    store = VoiceStore(tmp_path)
    store.instance = "aaaaaa"
    store.load_all()
    assert theirs.exists() and not ours.exists()


def test_damaged_voices_are_reported_and_can_be_replaced_and_the_others_work(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    good = add(store)
    for name in ("short", "gone", "json", "empty", "escape"):
        add(store, name)
    (tmp_path / "short" / f"recording-{SHA}.wav").write_bytes(WAV[:-1])
    (tmp_path / "gone" / f"recording-{SHA}.wav").unlink()
    (tmp_path / "json" / "voice.json").write_text("{")
    (tmp_path / "empty" / "voice.json").unlink()
    escape = tmp_path / "escape" / "voice.json"
    escape.write_text(escape.read_text().replace('"recording-', '"../anna/recording-'))
    (tmp_path / "a.b").mkdir()
    (tmp_path / "a file").touch()
    assert store.load_all() == {"anna": good}
    assert store.damaged.keys() == {"short", "gone", "json", "empty", "escape", "a.b"}
    assert all(store.damaged.values())
    add(store, "short", replace=True)
    assert list(store.load_all()) == ["anna", "short"]


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
def test_the_format_of_a_recording_follows_from_its_first_bytes(data: bytes, ending: str) -> None:
    assert recording_ending(data) == ending


def test_a_voice_of_an_earlier_version_whose_transcript_says_nothing_is_named_at_the_start(tmp_path: Path) -> None:
    """Every job with it would fail."""
    store = VoiceStore(tmp_path)
    for name in ("anna", "bob"):
        folder = Path(add(store, name).path).parent
        described = json.loads((folder / "voice.json").read_text())
        described["text"] = "..." if name == "anna" else "ｏｋ\x0c"
        (folder / "voice.json").write_text(json.dumps(described))
    assert {name: voice.text for name, voice in store.load_all().items()} == {"bob": "ok\n"}
    assert "its transcript: there is no letter or digit" in store.damaged["anna"]


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
    assert bad(b"").message.startswith("the recording is empty")
    assert bad(WAV[:30] + b"\xff" * 100).code is ErrorCode.BAD_AUDIO


def interpreter(folder: Path, script: str) -> str:
    """A program in the place of the interpreter."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("kill -SEGV $$", ErrorCode.BAD_AUDIO, "killed by SIGSEGV"),
        ("kill -KILL $$", ErrorCode.UNAVAILABLE, "perhaps because memory is short"),
        ("exec sleep 600", ErrorCode.BAD_AUDIO, "could not be decoded within 0.5 s"),
        ("echo no module named soundfile >&2; exit 1", ErrorCode.UNAVAILABLE, "soundfile"),
        ("", ErrorCode.UNAVAILABLE, "can't be run"),
    ],
)
def test_a_decoder_that_crashes_or_hangs_condemns_the_recording_and_a_missing_one_does_not(
    tmp_path: Path, script: str, code: ErrorCode, words: str
) -> None:
    python = interpreter(tmp_path, script) if script else str(tmp_path / "none")
    error = bad(WAV, python, timeout_s=0.5)
    assert error.code is code and words in error.message
