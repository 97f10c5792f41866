"""A client that fills the journal loses its own rows and results, and no other client's, over a restart too."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import store as module
from glmtts.daemon.storage.store import Store
from glmtts.daemon.storage.writer import Writer
from glmtts.protocol.requests import GetJob

from .journal_rig import TO, Rig, end, row, steady

NEIGHBOUR, HOSTILE = "uid:3", "uid:2"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 20)
    monkeypatch.setattr(module, "MAX_BARE", 10)


class Disk:
    """A journal's store, without its thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder, timeline=steady(lambda: 1e9))
        self.store.open()
        self.removed: list[inputs.JournalRemoved] = []
        self._ends = 0

    def ended(self, job: str, client: str, *, key: str = "", size: int | None = None, tidy: bool = True) -> None:
        """A job of a client ends, with or without a key and a result."""
        wishes: dict[str, Any] = {"key": key} if key else {}
        path = self.folder / "results" / job
        if size is not None:
            path.write_bytes(bytes(size))
        self._ends += 1
        with self.store.transaction():
            assert self.store.add(row(job, client=client, **wishes)) is None
            self.store.end(end(job, result="" if size is None else str(path), keep_s=1e9 + self._ends))
            if tidy:
                self.store.expire(1e9, 64)
        self.removed += self.store.removed

    def shrink(self, keep_bytes: int) -> None:
        with self.store.transaction():
            self.store.shrink(keep_bytes, 64)
        self.removed += self.store.removed

    def has(self, job: str) -> bool:
        return self.store.find(job) is not None

    def has_result(self, job: str) -> bool:
        found = self.store.find(job)
        return found is not None and found.result != ""

    def restart(self) -> None:
        self.store.close(for_good=True)
        self.store = Store(self.folder)
        self.store.open()


@pytest.mark.usefixtures("small")
def test_cancelled_jobs_without_a_key_remove_neither_results_nor_keys(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.ended("book", NEIGHBOUR, size=10)
    disk.ended("order", NEIGHBOUR, key="4711")
    disk.ended("failed", NEIGHBOUR)
    for number in range(50):
        disk.ended(f"flood-{number}", HOSTILE)
        if number == 25:
            disk.restart()
    assert disk.has_result("book") and disk.has("order") and disk.has("failed")
    left = [number for number in range(50) if disk.has(f"flood-{number}")]
    assert left == list(range(41, 50)), "the oldest of the client that has most go first"
    assert {(gone.table, gone.client, gone.shared) for gone in disk.removed} == {("journal_bare", HOSTILE, True)}
    assert sum(gone.count for gone in disk.removed) == 41


@pytest.mark.usefixtures("small")
def test_keyed_jobs_of_one_client_remove_its_own(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.ended("book", NEIGHBOUR, key="book", size=10)
    for number in range(50):
        disk.ended(f"flood-{number}", f"{HOSTILE}/customer-{number}", key=f"k{number}", size=1)
    assert disk.has_result("book")
    assert sum(disk.has(f"flood-{number}") for number in range(50)) == 19, "customers count together as their gateway"


def test_results_make_room_in_the_share_that_takes_most(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.ended("old", NEIGHBOUR, size=100)
    for number in range(9):
        disk.ended(f"flood-{number}", HOSTILE, size=100)
    disk.shrink(1_000)
    assert not disk.removed
    disk.ended("new", NEIGHBOUR, size=100)
    disk.restart()
    disk.shrink(1_000)
    assert disk.has_result("old") and disk.has_result("new") and not disk.has_result("flood-0")
    assert disk.has("flood-0"), "the job is remembered, and says why its result is gone"
    assert [(gone.table, gone.client, gone.count) for gone in disk.removed] == [("durable_results", HOSTILE, 1)]


def test_a_result_larger_than_all_room_costs_no_other_client_one(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.ended("old", NEIGHBOUR, size=100)
    disk.ended("huge", HOSTILE, size=5_000)
    disk.shrink(1_000)
    assert disk.has_result("huge"), "it is about to be sent"
    disk.ended("next", NEIGHBOUR, size=100)
    disk.shrink(1_000)
    assert disk.has_result("old") and disk.has_result("next") and not disk.has_result("huge")


@pytest.mark.usefixtures("small")
def test_the_core_hears_who_has_lost_what_and_only_when_it_is_on_disk(tmp_path: Path) -> None:
    writer = Writer(Store(tmp_path, timeline=steady(lambda: 1e9)), (0.02, 0.1))
    writer.turn()
    writer.turn([effects.JournalAdd(row("mine", client=NEIGHBOUR))], ends={"mine": end("mine")})
    jobs = [f"flood-{number}" for number in range(30)]
    adds = [effects.JournalAdd(row(job, client=HOSTILE)) for job in jobs]
    writer._ends_since_tidy = 1_000
    writer.turn(adds, ends={job: end(job) for job in jobs})
    removed = [answer for answer in writer.answers if isinstance(answer, inputs.JournalRemoved)]
    assert removed == [inputs.JournalRemoved("journal_bare", HOSTILE, 21, True)]
    writer.close()


@pytest.mark.usefixtures("small")
def test_a_transaction_that_fails_removes_nothing_and_counts_nothing(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    for number in range(10):
        disk.ended(f"a-{number}", HOSTILE)
    with pytest.raises(ZeroDivisionError), disk.store.transaction():
        disk.store.add(row("b"))
        disk.store.end(end("b"))
        disk.store.expire(1e9, 64)
        raise ZeroDivisionError
    assert disk.has("a-0") and not disk.store.removed
    assert (disk.store.bare.total, disk.store.bare.of(HOSTILE), disk.store.rows) == (10, 10, 10)


def test_a_client_that_fills_the_queues_in_front_of_the_disk_is_the_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_disk, release = threading.Event(), threading.Event()

    def slow(_store: Store, _job: str) -> None:
        at_the_disk.set()
        release.wait(20)

    def look_up(client: str) -> effects.JournalFind:
        return effects.JournalFind(TO, GetJob(id="g", v=1, job="x"), client)

    monkeypatch.setattr(Store, "find", slow)
    with Rig(tmp_path, max_queued=10) as rig:
        rig.journal.find(look_up(HOSTILE))
        assert at_the_disk.wait(20)
        for number in range(10):
            rig.journal.add(effects.JournalAdd(row(f"flood-{number}", client=HOSTILE)))
            rig.journal.find(look_up(HOSTILE))
        rig.journal.add(effects.JournalAdd(row("mine", client=NEIGHBOUR)))
        rig.journal.find(look_up(NEIGHBOUR))
        refused = rig.until(inputs.JournalAdded)
        assert (refused.job, "yours have most bytes" in refused.problem) == ("flood-9", True)
        turned_away = rig.until(inputs.JournalFound)
        assert (turned_away.client, "most of them are yours" in turned_away.problem) == (HOSTILE, True)
        lost = {rig.until(inputs.JournalRemoved).table for _ in range(2)}
        assert lost == {"journal_queue", "lookups"}
        release.set()
        assert rig.until(inputs.JournalAdded, lambda added: added.job == "mine").problem == ""
