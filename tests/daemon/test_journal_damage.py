"""The journal whose files are damaged, removed, moved or replaced: it writes nothing over them, and loses no job."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import schema

from .journal_rig import MEANS, Rig, content, end, row, run


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """The folder of a killed daemon: 30 jobs in the file, three transactions and more in the log."""
    code = """
import os, signal, sys
rig = Rig(Path(sys.argv[1]))
for number in range(30):
    rig.add(row(f"a-{number}", recording=b"x" * 3000))
rig.close()
rig = Rig(Path(sys.argv[1]))
for number in range(30, 36):
    rig.add(row(f"a-{number}", recording=b"x" * 3000))
print("written", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(AssertionError):
        run(code, str(tmp_path))
    assert (tmp_path / "journal.db-wal").stat().st_size > 20_000
    return tmp_path


def truncated(folder: Path) -> None:
    os.truncate(folder / "journal.db", 3 * 4096)


def emptied(folder: Path) -> None:
    os.truncate(folder / "journal.db", 0)


def gone_beside_its_log(folder: Path) -> None:
    (folder / "journal.db").unlink()


def no_database(folder: Path) -> None:
    (folder / "journal.db").write_bytes(b"these are the journals of Captain Scott\n" * 500)


def pages_overwritten(folder: Path) -> None:
    (folder / "journal.db-wal").unlink()
    with (folder / "journal.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096 * 12))


def log_overwritten(folder: Path) -> None:
    (folder / "journal.db-wal").write_bytes(os.urandom(20_000))


def log_wrong_in_the_middle(folder: Path) -> None:
    with (folder / "journal.db-wal").open("r+b") as file:
        file.seek(32 + 24 + 2000)
        file.write(b"\xff" * 16)


DAMAGES: list[Callable[[Path], None]] = [
    truncated,
    emptied,
    gone_beside_its_log,
    no_database,
    pages_overwritten,
    log_overwritten,
    log_wrong_in_the_middle,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_left_as_it_is_until_it_is_moved_away(
    crashed: Path, damage: Callable[[Path], None]
) -> None:
    damage(crashed)
    before = content(crashed)
    with Rig(crashed) as rig:
        problem = rig.opened.problem
        assert problem.startswith(f"{crashed}/journal.db: the journal is damaged: ") and MEANS in problem
        assert "Move journal.db, journal.db-wal and journal.db-shm away" in problem
        assert rig.add(row("b-1")).problem == problem
        assert rig.look("a-1").problem == problem
        while rig.journal.figures().failures < 4:
            assert rig.add(row("b-2")).problem == problem
        assert content(crashed) == before
        (crashed / "away").mkdir()
        for path in crashed.glob("journal.db*"):
            path.rename(crashed / "away" / path.name)
        assert rig.until(inputs.JournalChanged) == inputs.JournalChanged("")
        assert rig.add(row("b-3")).problem == ""
        assert content(crashed / "away") == before


def test_damage_that_is_met_at_work_is_not_written_over(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for number in range(200):
            rig.journal.add(effects.JournalAdd(row(f"a-{number}", text="text " * 100)))
            rig.journal.end(end(f"a-{number}"))
        for _ in range(200):
            assert rig.until(inputs.JournalEnded).problem == ""
    with Rig(tmp_path) as rig:
        # Ended jobs are not in memory, and the log has the newest row.
        assert rig.opened == inputs.JournalChanged("") and rig.add(row("b-1")).problem == ""
        with (tmp_path / "journal.db").open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(4096 * 8)
            file.write(b"\xff" * (size - 4096 * 8))
        before = content(tmp_path)
        assert len(before["journal.db-wal"]) > 4096
        found = [rig.look(f"a-{number}") for number in range(200)]
        problem = next(answer.problem for answer in found if answer.problem)
        assert "the journal is damaged" in problem
        assert rig.until(inputs.JournalChanged).problem == problem
        assert "the journal is damaged" in rig.add(row("b-2")).problem
        assert content(tmp_path) == before


def test_a_log_that_was_cut_by_the_power_is_no_damage(crashed: Path) -> None:
    log = crashed / "journal.db-wal"
    whole = log.read_bytes()
    page_bytes = struct.unpack_from(">I", whole, 8)[0]
    assert schema.log_problem(log) == "", "a crash alone is no damage"
    for cut in (0, 10, 32, 32 + 24 + page_bytes // 2, len(whole) - page_bytes - 24, len(whole) - 100):
        log.write_bytes(whole[:cut])
        assert schema.log_problem(log) == ""
    # The last page never came, though the end of its transaction did.
    log.write_bytes(whole[:-page_bytes] + bytes(page_bytes))
    assert schema.log_problem(log) == ""
    log.write_bytes(bytes(len(whole)))
    assert schema.log_problem(log) == ""


def backup(file: Path, to: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as source, contextlib.closing(sqlite3.connect(to)) as copy:
        source.backup(copy)


def _move_away(folder: Path) -> None:
    for path in folder.glob("journal.db*"):
        path.rename(folder / path.name.replace("journal", "old"))


def _remove(*names: str) -> Callable[[Path], None]:
    def lose(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return lose


@pytest.mark.parametrize(
    "lose",
    [
        _move_away,
        _remove("journal.db"),
        _remove("journal.db-wal"),
        _remove("journal.db", "journal.db-wal", "journal.db-shm", "journal.lock"),
        shutil.rmtree,
    ],
    ids=["moved", "file", "log", "all", "folder"],
)
@pytest.mark.parametrize("idle", [True, False])
def test_no_job_is_lost_with_files_that_are_removed_in_use(
    tmp_path: Path, lose: Callable[[Path], None], idle: bool
) -> None:
    folder = tmp_path / "state"
    with Rig(folder) as rig:
        rig.add(row("ended", key="k"))
        rig.add(row("a-1", recording=b"voice"))
        rig.end("ended")
        lose(folder)
        if idle:
            rig.journal.look()
        else:
            assert rig.add(row("a-2")) == inputs.JournalAdded("a-2")
        rig.found("a-1")
        assert "written anew with all jobs" in rig.warnings[-1] and not rig.journal.figures().failures
        assert rig.add(row("a-3", key="k")).known == ("ended", "content of ended")
        assert not (folder / "journal.db").stat().st_mode & 0o077
        # As if it was killed now: another process reads what is on the disk.
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
    for place in (copy, folder):
        with Rig(place) as rig:
            assert [job.job for job in rig.opened.rows] == (["a-1"] if idle else ["a-1", "a-2"])
            assert rig.opened.rows[0].recording == b"voice"
            found = rig.found("ended")
            assert found is not None and found.state == "done"


def test_jobs_are_refused_while_the_folder_can_t_be_made_again_and_kept_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Rig(folder) as rig:
        rig.add(row("a-1"))
        shutil.rmtree(folder)
        folder.write_text("not a folder")
        problem = rig.add(row("a-2")).problem
        assert "is not a folder" in problem and MEANS in problem
        # The journal can still be read.
        assert rig.found("a-1") is not None
        folder.unlink()
        assert rig.until(inputs.JournalChanged, lambda changed: not changed.problem) == inputs.JournalChanged("")
        rig.add(row("a-3"))
    with Rig(folder) as rig:
        assert [job.job for job in rig.opened.rows] == ["a-1", "a-3"]


def test_a_journal_that_is_replaced_gets_the_jobs_that_have_not_ended(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1"))
        backup(rig.file, tmp_path / "backup")
        rig.add(row("a-2", recording=b"voice"))
        (tmp_path / "backup").rename(rig.file)
        assert "was moved or replaced while it was in use" in rig.add(row("a-3")).problem
        assert rig.until(inputs.JournalChanged, lambda changed: not changed.problem) == inputs.JournalChanged("")
    with Rig(tmp_path) as rig:
        assert [(job.job, job.recording) for job in rig.opened.rows] == [("a-1", None), ("a-2", b"voice")]
