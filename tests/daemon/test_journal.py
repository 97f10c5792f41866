"""The journal on a disk that works: an accepted job is on disk, and every request is answered."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import store
from glmtts.daemon.storage.journal import Journal
from glmtts.daemon.storage.results import ResultLostError, read_result
from glmtts.daemon.storage.store import Store
from glmtts.daemon.storage.writer import Writer
from glmtts.protocol.codec import encode_map
from glmtts.protocol.events import Error
from glmtts.protocol.requests import Cancel, ListJobs, Wait

from .journal_rig import DAY_S, TO, Rig, done, end, row, steady


def test_a_job_of_the_daemon_before_is_handed_over_whole_and_once(tmp_path: Path) -> None:
    jobs = [
        row("a-1", key="k", options={"rate": 120}, deadline_in_s=1e9),
        row("a-2", recording=memoryview(b"RIFF" * 1000), client="uid:1/bea", created=1e9 + 1),
        row("a-3"),
    ]
    with Rig(tmp_path / "state") as rig:
        assert rig.opened == inputs.JournalChanged("")
        assert [rig.add(job) for job in jobs] == [inputs.JournalAdded(job.job) for job in jobs]
        rig.journal.start(effects.JournalStart("a-2", 1))
        assert rig.end("a-3") == inputs.JournalEnded("a-3")
    jobs[1].attempts, jobs[1].recording = 1, b"RIFF" * 1000
    jobs[0].age_s, jobs[1].age_s, jobs[0].deadline_in_s = 90.0, 89.0, 1e9 - 90
    with Rig(tmp_path / "state", now=1e9 + 90) as rig:
        assert rig.opened == inputs.JournalChanged("", jobs[:2])
        assert rig.seen == [] and rig.warnings == []


def test_a_client_finds_its_own_jobs_and_its_customers_only(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1", client="uid:1"))
        rig.add(row("a-2", client="uid:1/bea"))
        seen = {
            (job, client): rig.found(job, client) is not None
            for job in ("a-1", "a-2", "a-3")
            for client in ("uid:1", "uid:1/bea", "uid:2", "uid:", None)
        }
        assert {key for key, found in seen.items() if found} == {
            *(("a-1", "uid:1"), ("a-1", None), ("a-2", "uid:1"), ("a-2", "uid:1/bea"), ("a-2", None))
        }
        for request in (Wait(id="w", v=1, job="a-1"), Cancel(id="c", v=1, job="a-1")):
            rig.journal.find(effects.JournalFind(TO, request, "uid:1"))
            answer = rig.until(inputs.JournalFound)
            assert answer.request is request and answer.row == row("a-1")
        rig.journal.find(effects.JournalFind(TO, ListJobs(id="l", v=1), None))
        assert "names no job" in rig.until(inputs.JournalFound).problem


def test_the_same_key_is_the_same_job_for_24_hours(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        assert rig.add(row("a-1", key="k")).known is None
        assert rig.add(row("a-3", key="k", client="uid:2")).known is None
        assert rig.end("a-1", keep_s=9 * DAY_S).problem == ""
    with Rig(tmp_path) as rig:
        rig.now += DAY_S - 1
        assert rig.add(row("b-1", key="k", created=rig.now)).known == ("a-1", "content of a-1")
        rig.now += 1
        assert rig.add(row("b-2", key="k", created=rig.now)).known is None
        rig.now += 1
        assert rig.add(row("b-3", key="k", created=rig.now)).known == ("b-2", "content of b-2")
        assert rig.found("a-1") is not None and rig.found("b-1") is None


def test_two_adds_with_one_key_in_one_transaction_are_one_job(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for number in range(20):
            rig.journal.add(effects.JournalAdd(row(f"a-{number}", key="k")))
        answers = [rig.until(inputs.JournalAdded) for _ in range(20)]
        assert [answer.known for answer in answers] == [None, *[("a-0", "content of a-0")] * 19]


def test_a_row_that_is_no_text_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for job, text in (("a-1", "fine"), ("a-2", "\ud800"), ("a-3", "fine")):
            rig.journal.add(effects.JournalAdd(row(job, text=text)))
        problems = {answer.job: answer.problem for answer in (rig.until(inputs.JournalAdded) for _ in range(3))}
        assert problems["a-1"] == problems["a-3"] == "" and "a-2" not in problems["a-2"] != ""
        rig.journal.end(
            effects.JournalEnd("a-1", "failed", Error(id="", code="x", message="\udc80", retryable=False), "", 2e9, 0)
        )
        assert rig.until(inputs.JournalEnded).problem == ""
        found = rig.found("a-1")
        assert found is not None and isinstance(found.event, Error) and found.event.message == "\\udc80"


def test_the_end_of_an_unknown_job_is_answered_and_logged(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        assert rig.end("a-1").problem == ""
        assert len(rig.warnings) == 1 and "job a-1 has ended, and is not in" in rig.warnings[0]


def test_the_file_of_a_cancelled_job_is_removed_at_its_end(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for job in ("a-1", "a-2"):
            (tmp_path / "results" / job).write_bytes(b"speech")
            rig.add(row(job))
        rig.end("a-1")
        rig.found("a-1")
        assert [path.name for path in (tmp_path / "results").iterdir()] == ["a-2"]


def test_a_start_sweeps_what_belongs_to_no_job_and_nothing_else(tmp_path: Path) -> None:
    results = tmp_path / "results"
    with Rig(tmp_path) as rig:
        for name in ("live.wav", "live", "ended.wav", "stray.wav", "gone.wav", ".glmtts-tmp-1-1-x", "ended.flac"):
            (results / name).write_bytes(b"speech")
        (results / "folder").mkdir()
        rig.add(row("live"))
        rig.add(row("ended"))
        rig.end("ended", result=str(results / "ended.wav"))
    with Rig(tmp_path) as rig:
        assert {path.name for path in results.iterdir()} == {"live.wav", "live", "ended.wav", "folder"}
        rig.found("live")
        assert rig.warnings == [f"4 files in {results} belonged to no job and were removed"]


def test_results_of_a_journal_that_was_moved_away_are_kept_and_good_when_it_is_back(tmp_path: Path) -> None:
    results, moved = tmp_path / "results", tmp_path / "moved"
    moved.mkdir()
    with Rig(tmp_path) as rig:
        (results / "done.wav").write_bytes(b"speech")
        rig.add(row("done"))
        rig.end("done", result=str(results / "done.wav"))
    for file in tmp_path.glob("journal.db*"):
        file.rename(moved / file.name)
    with Rig(tmp_path) as rig:
        rig.found("done")
        (warning,) = rig.warnings
    (aside,) = tmp_path.glob("results.*")
    assert str(aside) in warning and (aside / "done.wav").read_bytes() == b"speech" and not any(results.iterdir())
    for file in tmp_path.glob("journal.db*"):
        file.unlink()
    for file in moved.iterdir():
        file.rename(tmp_path / file.name)
    results.rmdir()
    aside.rename(results)
    with Rig(tmp_path) as rig:
        found = rig.found("done")
        assert found is not None and Path(found.result).read_bytes() == b"speech" and rig.warnings == []


def test_what_was_taken_is_written_before_the_end(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for number in range(500):
            rig.journal.add(effects.JournalAdd(row(f"a-{number}")))
            rig.journal.end(end(f"a-{number}"))
    assert {answer.job for answer in rig.seen if isinstance(answer, inputs.JournalAdded) and not answer.problem} == {
        f"a-{number}" for number in range(500)
    }
    assert sum(isinstance(answer, inputs.JournalEnded) for answer in rig.seen) == 500
    with Rig(tmp_path) as rig:
        assert rig.opened.rows == [] and rig.found("a-499") is not None


def test_another_daemon_on_the_same_folder_is_named(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.add(row("a-1"))
        with Rig(tmp_path) as other:
            problem = other.opened.problem
            assert f"another daemon (pid {os.getpid()})" in problem and "state_dir" in problem
            assert other.add(row("b-1")).problem == problem
            rig.journal.close()
            assert [job.job for job in other.until(inputs.JournalChanged, lambda c: not c.problem).rows] == ["a-1"]


@pytest.mark.parametrize("bytes_", [0, 100])
def test_a_result_that_can_not_be_read_is_explained(tmp_path: Path, bytes_: int) -> None:
    path = tmp_path / "a-1.wav"
    path.write_bytes(b"x" * bytes_)
    assert read_result(path, 100) == b"x" * bytes_
    with pytest.raises(ResultLostError, match="at most -1 are read"):
        read_result(path, -1)
    path.unlink()
    with pytest.raises(ResultLostError, match="keep_durable_mib"):
        read_result(path)
    path.mkdir()
    with pytest.raises(ResultLostError, match=r"a-1\.wav"):
        read_result(path)
    path.rmdir()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ResultLostError, match="can't be read"):
        read_result(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ResultLostError, match="not a regular file"):
        read_result(path)


def test_a_state_folder_may_have_any_name_and_may_be_moved_with_its_results(tmp_path: Path) -> None:
    folder = tmp_path / "100 % ?mode=ro #1 日记" / os.fsdecode(b"not\xffunicode")
    folder.mkdir(parents=True)
    (folder / "journal.db").write_text("no database")
    with Rig(folder) as rig:
        assert "not\\udcffunicode" in rig.opened.problem.encode().decode()
    (folder / "journal.db").unlink()
    with Rig(folder) as rig:
        (folder / "results" / "a-1").write_bytes(b"speech")
        rig.add(row("a-1"))
        rig.end("a-1", result=str(folder / "results" / "a-1"))
    folder.rename(tmp_path / "new")
    with Rig(tmp_path / "new") as rig:
        assert rig.opened.problem == "" and rig.opened.rows == []
        result = tmp_path / "new" / "results" / "a-1"
        assert rig.found("a-1") == row("a-1", state="done", event=done("a-1"), result=str(result))
        assert result.read_bytes() == b"speech"


def test_jobs_and_results_go_when_they_expire_and_not_before(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        # More than one transaction removes.
        files = [tmp_path / "results" / f"a-{number}.wav" for number in range(200)]
        for number, file in enumerate(files):
            file.write_bytes(b"speech")
            rig.journal.add(effects.JournalAdd(row(f"a-{number}")))
            rig.journal.end(end(f"a-{number}", result=str(file), keep_s=10 + (number >= 150)))
        for _ in files:
            assert rig.until(inputs.JournalEnded).problem == ""
        assert all(file.exists() for file in files)
        rig.now += 10
        rig.add(row("b-1"))
        while rig.found("a-149") is not None or any(file.exists() for file in files[:150]):
            pass
        assert rig.found("a-0") is None and rig.found("a-150") is not None and rig.found("b-1") is not None
        assert [file.exists() for file in files] == [False] * 150 + [True] * 50


def test_an_idle_journal_removes_what_expires_by_itself(tmp_path: Path) -> None:
    with Rig(tmp_path, wall=time.time) as rig:
        result = tmp_path / "results" / "a-1.wav"
        result.write_bytes(b"speech")
        rig.add(row("a-1", created=time.time()))
        rig.end("a-1", result=str(result), keep_s=0.05)
        deadline = time.monotonic() + 10
        while result.exists():
            assert time.monotonic() < deadline
            os.sched_yield()


def test_an_idle_journal_wakes_for_the_clock_alone(tmp_path: Path) -> None:
    now = [1e9]
    writer = Writer(Store(tmp_path, timeline=steady(lambda: now[0])), (0.02, 0.1))
    writer.turn()
    assert writer.pause_s() is None
    writer.turn([effects.JournalAdd(row("a-1"))], ends={"a-1": end("a-1", keep_s=7)})
    assert writer.pause_s() == 7
    writer.turn([effects.JournalAdd(row("a-2"))], ends={"a-2": end("a-2", keep_s=DAY_S)})
    now[0] += 7
    writer.turn()
    assert writer.pause_s() == 60, "the machine may be suspended"
    writer.close()


def test_the_oldest_results_make_room_and_their_jobs_stay(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for number in range(100):
            file = tmp_path / "results" / f"a-{number}.wav"
            file.write_bytes(b"x" * 100)
            rig.add(row(f"a-{number}"))
            rig.end(f"a-{number}", result=str(file), keep_s=DAY_S + number, keep_bytes=1_000)
        found = {number: rig.found(f"a-{number}") for number in (0, 89, 90, 99)}
        assert {file.name for file in (tmp_path / "results").iterdir()} == {f"a-{n}.wav" for n in range(90, 100)}
        assert [job.result != "" for job in found.values() if job] == [False, False, True, True]
        # The limit was lowered: the newest stays, since it may be about to be read.
        rig.add(row("b-1"))
        rig.end("b-1", keep_bytes=0)
        rig.found("b-1")
        assert [path.name for path in (tmp_path / "results").iterdir()] == ["a-99.wav"]


def test_on_a_full_disk_a_client_s_results_make_room_for_new_ones_and_for_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, others = tmp_path / "results", 0

    def disk(_: object) -> SimpleNamespace:
        free = 5_000 - others - sum(file.stat().st_size for file in results.iterdir())
        return SimpleNamespace(f_bavail=free, f_frsize=1, f_blocks=1_000_000, f_files=0, f_favail=0)

    with Rig(tmp_path) as rig:
        monkeypatch.setattr(os, "statvfs", disk)

        def keep(job: str, client: str) -> None:
            (results / job).write_bytes(b"x" * 100)
            rig.add(row(job, client=client))
            rig.end(job, result=str(results / job), keep_s=1e9, keep_free=1_000)
            rig.found(job)  # the journal is done with it

        keep("b-1", "uid:2")
        for number in range(60):
            keep(f"a-{number}", "uid:1")
        left = {file.name for file in results.iterdir()}
        # A tenth of the disk would be more than what is kept free.
        assert len(left) == 39 and {"b-1", "a-59"} <= left
        # Another program fills the disk: it does not cost all results that there are.
        others = 10_000
        for number in range(60, 63):
            keep(f"a-{number}", "uid:1")
        assert 30 <= len(list(results.iterdir())) < 39


def test_no_other_user_reads_texts_and_results(tmp_path: Path) -> None:
    def modes() -> dict[str, int]:
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}

    before = os.umask(0)
    try:
        with Rig(tmp_path / "state") as rig:
            rig.add(row("a-1"))
            first = modes()
    finally:
        os.umask(before)
    (tmp_path / "state" / "journal.db").chmod(0o644)
    (tmp_path / "state" / "results").chmod(0o755)
    with Rig(tmp_path / "state"):
        assert modes() == first
    files = ("journal.db", "journal.db-wal", "journal.db-shm", "journal.lock")
    assert first == dict.fromkeys(files, 0o600) | {"results": 0o700}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o750


def test_a_row_of_another_version_is_ended_and_the_others_survive(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for job in ("a-1", "a-2", "a-3", "a-4"):
            rig.add(row(job))
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        later = {"op": "synthesize", "id": "x", "v": 1, "text": "x", "emotion": "glad"}
        other.execute("UPDATE jobs SET request = ? WHERE job = 'a-1'", (encode_map(later),))
        other.execute("UPDATE jobs SET format = 'hologram' WHERE job = 'a-3'")
    with Rig(tmp_path) as rig:
        assert [job.job for job in rig.opened.rows] == ["a-2", "a-4"]
        found = rig.look("a-1")
        assert "can't be read" in found.problem and "emotion" in found.problem and "a-1" in found.problem
        assert [line.split(":")[0] for line in rig.warnings] == [
            f"the journal's row of job {job} can't be read" for job in ("a-1", "a-3")
        ]
    with Rig(tmp_path) as rig:
        assert [job.job for job in rig.opened.rows] == ["a-2", "a-4"] and rig.warnings == []


def test_more_jobs_than_may_wait_for_the_disk_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_disk, release = threading.Event(), threading.Event()

    def slow(_store: Store, _job: str) -> None:
        at_the_disk.set()
        release.wait(20)

    monkeypatch.setattr(Store, "find", slow)
    look_up = effects.JournalFind(TO, Wait(id="w", v=1, job="x"), None)
    with Rig(tmp_path, max_queued=10, max_queued_bytes=1 << 20) as rig:
        rig.journal.find(look_up)
        assert at_the_disk.wait(20)
        for number in range(12):
            rig.journal.add(effects.JournalAdd(row(f"a-{number}")))
            rig.journal.find(look_up)
            rig.journal.start(effects.JournalStart(f"a-{number}", 1))
            rig.journal.end(end(f"a-{number}"))
        refused = [rig.until(inputs.JournalAdded) for _ in range(2)]
        assert [answer.job for answer in refused] == ["a-10", "a-11"]
        assert all("the disk is behind: 10 jobs" in answer.problem for answer in refused)
        assert all("10 look-ups wait" in rig.until(inputs.JournalFound).problem for _ in range(2))
        release.set()
        assert [rig.until(inputs.JournalAdded).problem for _ in range(10)] == [""] * 10
        assert [rig.until(inputs.JournalEnded).problem for _ in range(12)] == [""] * 12
        big = row("b-1", recording=bytes(2 << 20))
        assert rig.add(big).problem == "", "one that is larger than the limit is taken when nothing waits"


def test_a_disk_that_does_not_answer_delays_neither_start_nor_end_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(Store, "open", lambda _: answers.wait(20))
    warnings: list[str] = []
    with Path(os.devnull).open("wb") as wakeup:
        journal = Journal(tmp_path, wakeup.fileno(), on_warning=warnings.append)
        calls: list[float] = []
        problem = journal.open(0.05, on_wait=lambda: calls.append(time.monotonic()), on_wait_every_s=0.01).problem
        assert len(calls) >= 2, "the service manager hears that the start continues"
        assert "the disk has not answered" in problem and "journal.db" in problem and "dmesg" in problem
        journal.close(0.05)
        assert len(warnings) == 1 and "closed before all was written" in warnings[0]
        answers.set()
        journal.close(20)
        assert len(warnings) == 1, "the thread has ended"


def test_rows_writes_and_size_are_known_without_a_look_at_the_disk(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        assert rig.journal.figures().rows == 0
        for job in ("a-1", "a-2", "a-3"):
            rig.add(row(job, key=f"key of {job}"))
        assert rig.add(row("a-4", key="key of a-1")).known == ("a-1", "content of a-1")
        assert "a-1 in the journal already" in rig.add(row("a-1")).problem
        rig.end("a-1")
        figures = rig.journal.figures()
        assert figures.rows == 3 and figures.writes >= 4 and figures.write_s > 0.0
        assert figures.bytes > 4_096 and (figures.failures, figures.lag_s) == (0, 0.0)
    with Rig(tmp_path, now=1e9 + 2 * DAY_S) as rig:
        # The next turn removes what has expired, if the first did not.
        rig.add(row("a-4", created=1e9 + 2 * DAY_S))
        rig.add(row("a-5", created=1e9 + 2 * DAY_S))
        assert rig.journal.figures().rows == 4


def test_the_file_gives_room_back_after_a_rush_of_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_FREE_PAGES_KEPT", 64)
    now = [1e9]
    writer = Writer(Store(tmp_path, timeline=steady(lambda: now[0])), (0.02, 0.1))
    adds = [effects.JournalAdd(row(f"a-{number}", recording=bytes(200_000))) for number in range(20)]
    writer.turn()
    writer.turn(adds, ends={add.row.job: end(add.row.job, keep_s=10) for add in adds})
    now[0] += 10
    while (pause_s := writer.pause_s()) is not None and pause_s <= 0:
        writer.turn()
    writer.close()
    assert (tmp_path / "journal.db").stat().st_size < 500_000
