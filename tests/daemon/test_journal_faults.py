"""The journal on disks that are full, read-only or locked: it reports it, loses nothing, and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import schema
from glmtts.daemon.storage.schema import VERSION
from glmtts.daemon.storage.store import Store

from .journal_rig import MEANS, Rig, content, end, python, row, run


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
        (
            "PRAGMA user_version = 99",
            f"a later version of the daemon wrote it (schema 99, this one knows {VERSION})",
        ),
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
