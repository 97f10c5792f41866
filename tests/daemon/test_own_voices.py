"""Clients' own voices on disk: whose each is survives the daemon, and no name of a client is a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmtts.daemon.core.inputs import StoredVoice
from glmtts.daemon.storage import voices
from glmtts.daemon.storage.outputs import put
from glmtts.daemon.storage.own_voices import OwnVoiceStore
from glmtts.daemon.storage.voices import VoiceError
from glmtts.protocol.requests import VoiceAdd

from .test_voices import OTHER, WAV, recording

#: Customers' names as gateways send them.
OWNERS = ["uid:7/../../etc", "uid:7/x\0y", "uid:7/爱丽丝" * 20, "curve:00ff", "uid:7/.adding-x"]


def add(store: OwnVoiceStore, owner: str, name: str = "me", data: bytes = WAV) -> StoredVoice:
    request = VoiceAdd(id="r", v=1, name=name, text="你好。", language="zh", consent=True)
    return store.add(owner, request, data, seconds=1.5, sample_rate=16_000, keep_free=0)


def files(store: OwnVoiceStore) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_whose_a_voice_is_survives_the_daemon_whatever_the_clients_name(tmp_path: Path) -> None:
    store = OwnVoiceStore(tmp_path / "own")
    added = [add(store, owner) for owner in OWNERS]
    assert {Path(voice.path).parents[2] for voice in added} == {store.folder}
    assert len({voice.path for voice in added}) == len(OWNERS)
    after = OwnVoiceStore(tmp_path / "own")
    assert sorted(after.load_all(), key=lambda voice: voice.path) == sorted(added, key=lambda voice: voice.path)
    assert [(voice.bytes, voice.added > 1e9) for voice in added] == [(len(WAV), True)] * len(OWNERS)
    about = json.loads((Path(added[0].path).parent / "voice.json").read_text())
    assert (about["owner"], about["consent"]) == (OWNERS[0], True)
    for owner in OWNERS:
        after.remove(owner, "me")
    assert list(store.folder.iterdir()) == []


def test_a_voice_that_is_replaced_again_and_again_fills_no_disk(tmp_path: Path) -> None:
    store = OwnVoiceStore(tmp_path)
    for number in range(5):
        before = add(store, "uid:1", data=recording(0.1, 300.0 + number))
    # The one before it stays: a job that begins now may read it.
    last = add(store, "uid:1", data=OTHER)
    assert {path.name for path in files(store)} == {"voice.json", Path(last.path).name, Path(before.path).name}
    assert Path(last.path).read_bytes() == OTHER


def test_what_is_damaged_or_another_clients_is_not_loaded_and_can_be_added_anew(tmp_path: Path) -> None:
    store = OwnVoiceStore(tmp_path)
    mine, yours = add(store, "uid:1"), add(store, "uid:2")
    Path(mine.path).write_bytes(b"short")
    about = Path(yours.path).parent / "voice.json"
    about.write_text(about.read_text().replace("uid:2", "uid:1"))
    after = OwnVoiceStore(tmp_path)
    assert after.load_all() == []
    assert sorted(problem.partition(":")[0] for problem in after.damaged.values()) == [
        "its recording has 5 bytes, where 3244 were registered",
        "its voice.json names another client than the folder is for",
    ]
    assert add(after, "uid:1").path == mine.path
    assert [voice.owner for voice in OwnVoiceStore(tmp_path).load_all()] == ["uid:1"]


def test_links_in_the_folder_lead_nowhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = OwnVoiceStore(tmp_path / "own")
    voice = Path(add(store, "uid:1").path).parent
    other = Path(add(store, "uid:2").path).parents[1]
    voice.rename(elsewhere / "me")
    voice.symlink_to(elsewhere / "me")
    (store.folder / "etc").symlink_to("/etc")
    other.rename(elsewhere / "other")
    other.symlink_to(elsewhere / "other")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    after = OwnVoiceStore(store.folder)
    assert after.load_all() == []
    assert after.damaged[f"{voice.parent.name}/me"] == "its folder is a symbolic link"
    assert {"etc", other.name} <= after.damaged.keys() and len(after.damaged) == 3
    assert Path(add(after, "uid:1", data=OTHER).path).read_bytes() == OTHER and not voice.is_symlink()
    with pytest.raises(VoiceError, match="is a symbolic link; remove it"):
        add(after, "uid:2")
    assert before == {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    calls: list[Path] = []

    def full(path: Path, data: bytes, mode: int) -> None:
        calls.append(path)
        if len(calls) > written:
            raise OSError(28, "No space left on device", str(path))
        put(path, data, mode)

    monkeypatch.setattr(voices, "put", full)
    store = OwnVoiceStore(tmp_path)
    with pytest.raises(VoiceError, match="can't be written"):
        add(store, "uid:1")
    assert list(tmp_path.iterdir()) == []
