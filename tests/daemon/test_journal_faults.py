"""The journal on disks that are full, read-only, locked or damaged: it reports it, loses nothing, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import schema
from glmtts.daemon.storage.store import Store

from .journal_rig import Rig, end, python, row, run

MEANS = "Durable jobs are refused meanwhile; other requests are served."


def can_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
    )


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces for a disk of its own")


def on_a_disk(code: str, options: str) -> str:
    """Run ``code`` with a file system of its own at ``DISK``."""
    with tempfile.TemporaryDirectory() as disk:
        mount = f'mount -t tmpfs -o {options} none {disk} && exec "$@"'
        script = ["unshare", "-m", "sh", "-c", mount, "sh"]
        return run(f"DISK = Path({disk!r})\n{code}", wrapper=script)


def content(folder: Path) -> dict[str, bytes]:
    """The content of the files, without those that every reader makes anew: the index of the log, and an empty log."""
    files = [path for path in folder.glob("journal.db*") if not path.name.endswith("-shm")]
    return {path.name: data for path in files if (data := path.read_bytes()) or path.name == "journal.db"}


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


@needs_mount
def test_a_journal_waits_for_its_disk_and_is_not_written_to_the_one_below(tmp_path: Path) -> None:
    code = """
with Rig(DISK / "state") as rig:
    rig.add(row("a-1"))
    subprocess.run(["mount", "--move", DISK, ELSEWHERE], check=True)
    print(rig.add(row("a-2")).problem)
    assert not any(DISK.iterdir())
    subprocess.run(["mount", "--move", ELSEWHERE, DISK], check=True)
    rig.until(inputs.JournalChanged, lambda changed: not changed.problem)
    rig.add(row("a-3"))
with Rig(DISK / "state") as rig:
    assert [job.job for job in rig.opened.rows] == ["a-1", "a-3"]
"""
    assert "the disk on which it was is not mounted" in on_a_disk(f"ELSEWHERE = {str(tmp_path)!r}\n{code}", "size=8m")


def test_a_lock_that_another_daemon_has_taken_is_respected(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1"))
        (tmp_path / "journal.lock").unlink()
        other = schema.hold(tmp_path / "journal.lock")
        assert f"another daemon (pid {os.getpid()}) keeps its journal here" in rig.add(row("a-2")).problem
        os.close(other)
        assert rig.until(inputs.JournalChanged, lambda changed: not changed.problem) == inputs.JournalChanged("")
        assert rig.add(row("a-3")).problem == ""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the SQL of its standard input on the journal, to lock it."""
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    connection.execute(line)
    print("done", flush=True)
"""
    with python(code, str(tmp_path / "journal.db")) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def execute(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_a_lock_of_another_process_is_waited_for_in_bounds_and_reported(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with Rig(tmp_path, busy_s=0.1) as rig:
        for job in ("a-1", "a-2", "a-3"):
            rig.add(row(job))
        execute(holder, "BEGIN EXCLUSIVE")
        problem = rig.add(row("b-1")).problem
        assert "another process holds a lock" in problem and "fuser -v" in problem and MEANS in problem
        assert rig.until(inputs.JournalChanged).problem == problem
        # Ends are kept, reported once, and written later; the journal can be read.
        assert rig.end("a-1").problem == problem
        rig.journal.start(effects.JournalStart("a-2", 2))
        found = rig.found("a-1")
        assert found is not None and found.state == "waiting"
        assert rig.add(row("b-2")).problem == problem
        behind = rig.journal.figures()
        assert behind.failures >= 1 and behind.lag_s > 0.0 and behind.rows == 3
        execute(holder, "COMMIT")
        assert rig.until(inputs.JournalChanged) == inputs.JournalChanged("")
        assert rig.until(inputs.JournalEnded) == inputs.JournalEnded("a-1")
        assert rig.add(row("b-3")).problem == "" and rig.seen == []
        assert rig.journal.figures().lag_s == 0.0 and rig.journal.figures().rows == 4
        found = rig.found("a-1")
        assert found is not None and found.state == "done"
    with Rig(tmp_path) as rig:
        assert [(job.job, job.attempts) for job in rig.opened.rows] == [("a-2", 2), ("a-3", 0), ("b-3", 0)]


def test_a_journal_that_is_locked_at_the_start_hands_its_jobs_over_later(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1"))
    execute(holder, "BEGIN EXCLUSIVE")
    with Rig(tmp_path, busy_s=0.05) as rig:
        assert "another process holds a lock" in rig.opened.problem and rig.opened.rows == []
        execute(holder, "COMMIT")
        assert rig.until(inputs.JournalChanged) == inputs.JournalChanged("", [row("a-1")])


def test_ends_that_can_t_be_written_before_the_end_are_logged(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with Rig(tmp_path, busy_s=0.05) as rig:
        rig.add(row("a-1"))
        execute(holder, "BEGIN EXCLUSIVE")
        assert rig.end("a-1").problem != ""
        rig.journal.close()
        rig.journal.collect()
        assert rig.warnings == ["the ends of 1 durable jobs were not written: the next daemon runs them again"]
        execute(holder, "COMMIT")


FILL = """
with Rig(DISK) as rig:
    rig.add(row("a-1")); rig.add(row("a-2"))
    filler = (DISK / "filler").open("wb", buffering=0)
    try:
        while filler.write(b"x" * 65536): pass
    except OSError: pass
    try:
        while filler.write(b"x" * 512): pass
    except OSError: pass
    problems = [rig.add(row(f"b-{n}", recording=b"x" * 300_000)).problem for n in range(3)]
    changed = rig.until(inputs.JournalChanged).problem
    ended = rig.end("a-1", keep_bytes=0).problem
    read = rig.found("a-2") is not None
    filler.close()
    os.unlink(DISK / "filler")
    back = rig.until(inputs.JournalChanged, lambda c: not c.problem)
    written = rig.until(inputs.JournalEnded, lambda e: not e.problem).job
    more = rig.add(row("c-1", recording=b"x" * 300_000)).problem
with Rig(DISK) as rig:
    rows = [job.job for job in rig.opened.rows]
print(json.dumps([problems, changed, ended, read, len(back.rows), written, more, rows]))
"""


@needs_mount
def test_a_full_disk_is_reported_and_nothing_is_lost_when_there_is_room_again() -> None:
    problems, changed, ended, read, handed, written, more, rows = json.loads(on_a_disk(FILL, "size=1m"))
    assert changed == problems[0] and "the disk is full" in changed and "df -h" in changed and MEANS in changed
    assert set(problems) == {changed} and ended in ("", changed) and read
    assert (handed, written, more, rows) == (0, "a-1", "", ["a-2", "c-1"])


START_FULL = """
filler = (DISK / "filler").open("wb", buffering=0)
try:
    while filler.write(b"x" * 4096): pass
except OSError: pass
with Rig(DISK / "state") as rig:
    print(json.dumps([rig.opened.problem, rig.add(row("a-1")).problem]))
    filler.close()
    os.unlink(DISK / "filler")
    print(json.dumps([rig.until(inputs.JournalChanged).problem, rig.add(row("a-2")).problem]))
"""


@needs_mount
def test_a_daemon_that_starts_on_a_full_disk_keeps_a_journal_when_there_is_room() -> None:
    refused, served = (json.loads(line) for line in on_a_disk(START_FULL, "size=1m").splitlines())
    assert "the disk is full" in refused[0] and refused[0] == refused[1] and served == ["", ""]


READ_ONLY = """
with Rig(DISK) as rig:
    rig.add(row("a-1")); rig.add(row("a-2"))
subprocess.run(["mount", "-o", "remount,ro", DISK], check=True)
with Rig(DISK) as rig:
    print(json.dumps([rig.opened.problem, rig.add(row("b-1")).problem]))
    subprocess.run(["mount", "-o", "remount,rw", DISK], check=True)
    print(json.dumps([job.job for job in rig.until(inputs.JournalChanged).rows]))
    print(json.dumps(rig.add(row("b-2")).problem))
"""


@needs_mount
def test_a_read_only_file_system_is_reported_and_its_jobs_come_when_it_is_writable() -> None:
    problems, rows, added = (json.loads(line) for line in on_a_disk(READ_ONLY, "size=8m").splitlines())
    assert problems[0] == problems[1] and "the journal is read-only" in problems[0] and "mount" in problems[0]
    assert rows == ["a-1", "a-2"] and added == ""


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    code = """
import resource, sys
with Rig(Path(sys.argv[1])) as rig:
    rig.add(row("a-1"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    print(rig.add(row("b-1", recording=b"x" * 500_000)).problem)
    assert rig.until(inputs.JournalChanged).problem
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert rig.until(inputs.JournalChanged, lambda c: not c.problem).rows == []
    assert rig.add(row("b-2", recording=b"x" * 500_000)).problem == ""
    assert rig.found("b-1") is None
"""
    assert "limit on file sizes" in run(code, str(tmp_path))


def test_a_daemon_without_descriptors_says_so(tmp_path: Path) -> None:
    code = """
import resource, sys
hold = []
Rig(Path(sys.argv[1])).close()
rig = None
import threading
read, write = os.pipe2(os.O_NONBLOCK)
journal = Journal(Path(sys.argv[1]), write, on_warning=print, retry_s=(0.02, 0.1))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True: hold.append(os.dup(read))
except OSError: pass
print(journal.open().problem)
for fd in hold: os.close(fd)
while not any(isinstance(c, inputs.JournalChanged) and not c.problem for c in journal.collect()):
    select.select([read], [], [], 5)
journal.close()
"""
    words = run(code, str(tmp_path))
    assert "no descriptor is left" in words and "LimitNOFILE" in words


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("PRAGMA user_version = 99", "a later version of the daemon wrote it (schema 99, this one knows 2)"),
        ("PRAGMA application_id = 7", "a database of another program"),
    ],
)
def test_a_file_of_a_later_version_or_of_another_program_is_not_touched(tmp_path: Path, sql: str, words: str) -> None:
    Rig(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as connection:
        connection.execute(sql)
    before = content(tmp_path)
    with Rig(tmp_path) as rig:
        assert words in rig.opened.problem
    assert content(tmp_path)["journal.db"] == before["journal.db"]


@pytest.mark.parametrize("name", ["state", "state/results"])
def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    with Rig(tmp_path / "state") as rig:
        assert rig.opened.problem.startswith(f"{file}") and MEANS in rig.opened.problem
        assert "this, or a part of its path, is not a folder" in rig.opened.problem
        file.unlink()
        rig.until(inputs.JournalChanged, lambda changed: not changed.problem)


UNPRIVILEGED = """
import sys
os.setgid(65534); os.setuid(65534)
folder = Path(sys.argv[1])
with Rig(folder) as rig:
    print(rig.opened.problem)
    if folder.exists():
        folder.chmod(0o700)
        assert rig.until(inputs.JournalChanged).problem == ""
        assert rig.add(row("a-1")).problem == ""
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("mode", [0o500, 0o000, None])
def test_a_folder_that_the_daemon_s_user_may_not_write_or_make_is_reported(mode: int | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="glmtts-journal-"))
    try:
        folder.chmod(0o755)
        if mode is None:
            words = run(UNPRIVILEGED, str(folder / "home" / "state"))
            assert f"nor {folder / 'home'})" in words and "Make it" in words and f"Give it {folder}" not in words
        else:
            (folder / "state").mkdir()
            os.chown(folder / "state", 65_534, 65_534)
            (folder / "state").chmod(mode)
            words = run(UNPRIVILEGED, str(folder / "state"))
            assert "the daemon's user may not write there" in words and f"Give it {folder / 'state'}" in words
    finally:
        shutil.rmtree(folder)


def test_an_add_that_was_refused_is_not_run_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit may reach the disk though its flush has failed; the client was told that the job was refused."""
    real = Store.transaction

    @contextlib.contextmanager
    def committed_though_it_failed(store: Store) -> Iterator[None]:
        with real(store):
            yield
        monkeypatch.setattr(Store, "transaction", real)
        raise sqlite3.OperationalError("disk I/O error")

    with Rig(tmp_path) as rig:
        monkeypatch.setattr(Store, "transaction", committed_though_it_failed)
        assert rig.add(row("a-1", key="k")).problem != ""
        assert rig.until(inputs.JournalChanged, lambda c: not c.problem).rows == []
        assert rig.add(row("a-2", key="k")) == inputs.JournalAdded("a-2")
    with Rig(tmp_path) as rig:
        assert [job.job for job in rig.opened.rows] == ["a-2"]


def test_an_unexpected_error_is_reported_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1"))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "end", lambda *_: 1 // 0)
            rig.journal.end(end("a-1"))
            assert "ZeroDivisionError" in rig.until(inputs.JournalChanged).problem
        assert rig.until(inputs.JournalEnded, lambda e: not e.problem).job == "a-1"
