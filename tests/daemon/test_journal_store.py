"""daemon/storage/store.py against a model: whatever is done in whatever order, the rows are what a dict would hold."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from glmtts.daemon.core.inputs import JournalRow
from glmtts.daemon.storage.store import Store
from glmtts.protocol.requests import KEY_HOLDS_S

from .journal_rig import done, end, row, steady

JOBS = st.integers(0, 12).map("j-{}".format)
KEYS = st.one_of(st.none(), st.sampled_from(["k", "l"]))
CLIENTS = st.sampled_from(["uid:1", "uid:2", "uid:1/bea"])


class BrokenOff(Exception):
    """Ends a transaction in the middle."""


class StoreMachine(RuleBasedStateMachine):
    """``rows`` is the model: every row with when it expires (None: lives) and the size of its file."""

    @initialize()
    def begin(self) -> None:
        # In memory where that can be: this is about what is written, and not about the disk.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="glmtts-store-", dir=memory))
        self.rows: dict[str, JournalRow] = {}
        self.expires: dict[str, float] = {}
        self.sizes: dict[str, int] = {}
        self.keys: dict[tuple[str, str], JournalRow] = {}
        self.now = 1e9
        self.store = Store(self.folder, timeline=steady(lambda: self.now))
        self.store.open()

    def teardown(self) -> None:
        self.store.close(for_good=True)
        shutil.rmtree(self.folder)

    @rule(
        job=JOBS,
        client=CLIENTS,
        key=KEYS,
        recording=st.one_of(st.none(), st.binary(max_size=9_000)),
        fails=st.booleans(),
    )
    def add(self, job: str, client: str, key: str | None, recording: bytes | None, fails: bool) -> None:
        wishes = {} if key is None else {"key": key}
        new = row(job, client=client, created=self.now, recording=recording, **wishes)
        known = None if key is None else self.keys.get((client, key))
        if known is not None and self.now - known.created >= KEY_HOLDS_S:
            known = None
        try:
            with self.store.transaction():
                answer = self.store.add(new)
                if fails:
                    raise BrokenOff
        except BrokenOff:
            return
        except ValueError:
            assert job in self.rows and known is None
            return
        assert answer == (None if known is None else (known.job, known.content))
        if known is None:
            assert job not in self.rows
            self.rows[job] = new
            if key is not None:
                self.keys[client, key] = new

    @rule(job=JOBS, attempts=st.integers(1, 3))
    def start(self, job: str, attempts: int) -> None:
        with self.store.transaction():
            self.store.start(job, attempts)
        if job in self.rows and job not in self.expires:
            self.rows[job].attempts = attempts

    @rule(
        job=JOBS,
        size=st.one_of(st.none(), st.integers(0, 500)),
        lives_s=st.sampled_from([10.0, KEY_HOLDS_S, 3e5]),
        fails=st.booleans(),
    )
    def end(self, job: str, size: int | None, lives_s: float, fails: bool) -> None:
        path = self.folder / "results" / f"{job}.wav"
        ends = job in self.rows and job not in self.expires
        if ends and size is not None:
            path.write_bytes(bytes(size))
        effect = end(job, result="" if size is None else str(path), keep_s=lives_s)
        try:
            with self.store.transaction():
                found = self.store.end(effect)
                if fails:
                    raise BrokenOff
        except BrokenOff:
            if ends:
                path.unlink(missing_ok=True)
            return
        assert found == (job in self.rows)
        if ends:
            self.expires[job] = self.now + lives_s
            ended = self.rows[job]
            ended.state, ended.event, ended.result, ended.recording = "done", done(job), "", None
            if size is not None:
                ended.result, self.sizes[job] = str(path), size

    @rule(pass_s=st.sampled_from([1.0, 100.0, KEY_HOLDS_S / 2, KEY_HOLDS_S]), limit=st.integers(1, 4))
    def expire(self, pass_s: float, limit: int) -> None:
        self.now += pass_s
        more = True
        while more:
            with self.store.transaction():
                useless, more = self.store.expire(self.now, limit)
            assert len(useless) <= limit and self.store.results.remove(useless) == []
        for job in [job for job, at in self.expires.items() if at <= self.now]:
            del self.expires[job]
            self.sizes.pop(job, None)
            gone = self.rows.pop(job)
            self.keys = {key: holder for key, holder in self.keys.items() if holder is not gone}

    @rule(keep_bytes=st.integers(0, 1_000), limit=st.integers(1, 4))
    def shrink(self, keep_bytes: int, limit: int) -> None:
        more = True
        while more:
            with self.store.transaction():
                useless, more = self.store.shrink(keep_bytes, limit)
            assert self.store.results.remove(useless) == []
        seq = {job: place for place, job in enumerate(self.rows)}
        oldest = sorted(self.sizes, key=lambda job: (self.expires[job], seq[job]))
        newest = oldest[-1] if oldest else ""
        # Of clients that hold the same, any may lose first.
        gone = [job for job in oldest if self._noted(job) == ""]
        while sum(self.sizes.values()) > keep_bytes:
            held: Counter[str] = Counter()
            owned: Counter[str] = Counter()
            for job in oldest:
                held[self.rows[job].client] += self.sizes[job]
                owned[self._owner(job)] += self.sizes[job]
            may: dict[str, str] = {}
            for job in oldest:
                client, owner = self.rows[job].client, self._owner(job)
                alike = (held[other] for other in held if other.partition("/")[0] == owner)
                if owned[owner] == max(owned.values()) and held[client] == max(alike):
                    may.setdefault(client, job)
            loses = next((job for job in may.values() if job in gone), newest)
            if loses == newest:
                assert newest in may.values()
                break
            oldest.remove(loses)
            gone.remove(loses)
            del self.sizes[loses]
            self.rows[loses].result = ""
        assert not gone

    def _noted(self, job: str) -> str:
        found = self.store.find(job)
        assert found is not None
        return found.result

    def _owner(self, job: str) -> str:
        return self.rows[job].client.partition("/")[0]

    @precondition(lambda self: self.rows)
    @rule()
    def forget(self) -> None:
        job = next(iter(self.rows))
        with self.store.transaction():
            self.store.forget([job])
        if job not in self.expires:
            gone = self.rows.pop(job)
            self.keys = {key: holder for key, holder in self.keys.items() if holder is not gone}

    @rule()
    def reopen(self) -> None:
        self.store.close(for_good=True)
        self.store = Store(self.folder, timeline=steady(lambda: self.now))
        self.store.open()

    def _kept(self, row: JournalRow) -> bool:
        return bool(row.result) or row in self.keys.values()

    @invariant()
    def the_rows_are_those_of_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.transaction():
            unfinished, problems = self.store.unfinished()
        assert problems == []
        for there in self.rows.values():
            there.age_s = self.now - there.created
        assert unfinished == [job for job in self.rows.values() if job.job not in self.expires]
        for number in range(13):
            found, model = self.store.find(f"j-{number}"), self.rows.get(f"j-{number}")
            assert (found is None) == (model is None)
            if found is not None and model is not None:
                found.recording = model.recording
                assert found == model
        counted = {
            "bare": Counter(r.client for job, r in self.rows.items() if job in self.expires and not self._kept(r)),
            "kept": Counter(r.client for job, r in self.rows.items() if job in self.expires and self._kept(r)),
        }
        for client in ("uid:1", "uid:2", "uid:1/bea"):
            assert self.store.bare.of(client) == counted["bare"][client]
            assert self.store.kept.of(client) == counted["kept"][client]
            own = [size for job, size in self.sizes.items() if self.rows[job].client == client]
            assert self.store.results_of.of(client) == sum(own)
        assert self.store.result_bytes == sum(self.sizes.values())
        assert self.store.next_expiry() == min(self.expires.values(), default=None)
        files = {path.name for path in (self.folder / "results").iterdir()}
        assert files == {f"{job}.wav" for job in self.sizes}


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)


def test_a_proof_that_the_journal_can_be_written_to_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open()
    log = tmp_path / "journal.db-wal"
    before = log.stat().st_size
    for _ in range(3):
        with store.transaction():
            store.prove()
        assert log.stat().st_size > before
        before = log.stat().st_size
    store.close(for_good=True)
