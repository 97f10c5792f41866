"""Whose the output files are, and the space that they leave: over restarts, and whoever removes files."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmtts.daemon.storage import free_space
from glmtts.daemon.storage.output_owners import OutputOwners
from glmtts.daemon.storage.outputs import OutputFailedError
from glmtts.daemon.worker.sinks import deliver
from glmtts.protocol.worker import Finished, Memory, SpeakJob

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def owners(folder: Path) -> OutputOwners:
    return OutputOwners(folder, folder.parent / "outputs.owners")


def disk(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 100_000 * MIB, inodes: int = 10_000) -> None:
    found = SimpleNamespace(
        f_bavail=free // 512, f_frsize=512, f_blocks=total // 512, f_files=1_000_000, f_favail=inodes
    )
    monkeypatch.setattr(os, "statvfs", lambda _: found)


def test_files_count_for_the_client_that_asked_for_them_after_a_restart_too(folder: Path) -> None:
    first = owners(folder)
    for name, client, size in (("a.wav", "uid:1", 100_000), ("b 'ö.wav", "uid:2/carol", 50_000), ("c.wav", "uid:1", 9)):
        Path(folder, name).write_bytes(bytes(size))
        first.note(name, client)
    Path(folder, "of others").write_bytes(bytes(1_000_000))
    # A small file takes blocks and an inode.
    expected = {"uid:1": 100_000 + (16 << 10), "uid:2/carol": 50_000}
    assert first.measure(0).by_client == expected
    again = owners(folder)
    assert again.measure(0).by_client == expected
    Path(folder, "a.wav").unlink()
    assert again.measure(0).by_client == {"uid:1": 16 << 10, "uid:2/carol": 50_000}


def test_a_damaged_or_missing_file_of_owners_loses_no_more_than_its_lines(folder: Path) -> None:
    file = folder.parent / "outputs.owners"
    assert owners(folder).measure(0).by_client == {}
    Path(folder, "a.wav").write_bytes(bytes(20_000))
    file.write_bytes(b'\xff\xfe\n[]\n["uid:1"]\n7\n["uid:1", "a.wav"]\n["uid:2", "a')
    assert owners(folder).measure(0).by_client == {"uid:1": 20_000}


def test_the_file_of_owners_stays_small_however_many_files_come_and_go(folder: Path) -> None:
    kept = owners(folder)
    for number in range(3_000):
        kept.note(f"{number}.wav", "uid:1")
    Path(folder, "2999.wav").write_bytes(b"")
    kept.measure(0)
    assert (folder.parent / "outputs.owners").read_text() == '["uid:1", "2999.wav"]\n'


def test_a_folder_that_is_gone_refuses_nothing(folder: Path) -> None:
    folder.rmdir()
    assert owners(folder).measure(0).free is None


def test_no_more_than_a_tenth_of_a_small_disk_is_kept_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, total, reserve, above in (
        (1_000, 100_000, 256, 744),
        (100, 100_000, 256, -156),
        (10, 60, 256, 4),
        (10, 60, 0, 10),
    ):
        disk(monkeypatch, free * MIB, total * MIB)
        assert free_space.above(tmp_path, reserve * MIB) == above * MIB
        disk(monkeypatch, free * MIB, total * MIB, inodes=900)
        assert free_space.above(tmp_path, reserve * MIB) == 0


def job(**keys: Any) -> SpeakJob:
    keys = {"output": None, "result": None} | keys
    return SpeakJob(
        job="b-1", text="a", voice=None, format="wav", sample_rate=None, stream=False, seed=0, options={}, **keys
    )


def finished() -> Finished:
    return Finished(
        job="b-1",
        sample_rate=24_000,
        audio_s=1.0,
        synthesis_s=1.0,
        first_audio_s=1.0,
        voice="",
        sha256="",
        chunks=0,
        bytes=0,
        path=None,
        memory=Memory(rss=1),
    )


def test_an_output_leaves_room_for_the_journal_and_a_result_half_of_that(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    result, output = str(folder.parent / "results" / "b-1"), str(folder / "a.wav")
    disk(monkeypatch, 300 * MIB)
    data = bytes(100 * MIB)
    with pytest.raises(OutputFailedError, match="disk_reserve_mib"):
        deliver(job(output=output, keep_free=256 * MIB), data, finished())
    assert not list(folder.iterdir())
    assert deliver(job(result=result, keep_free=256 * MIB), data, finished()) is None
    disk(monkeypatch, 200 * MIB)
    said = finished()
    assert deliver(job(result=result, keep_free=256 * MIB), data, said) == data and "disk_reserve_mib" in said.problem


def test_an_output_over_its_clients_room_is_not_written(folder: Path) -> None:
    output = str(folder / "a.wav")
    with pytest.raises(OutputFailedError, match="outputs_mib"):
        deliver(job(output=output, output_room=1_000), bytes(1_001), finished())
    assert not list(folder.iterdir())
    deliver(job(output=output, output_room=1_001), bytes(1_001), finished())
    assert Path(output).stat().st_size == 1_001
