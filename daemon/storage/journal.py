"""The journal of durable jobs: an accepted job is on disk, and survives the daemon.

One thread writes. Everything that arrives while it waits for the disk goes into its next transaction, so that one wait
serves many jobs. writer.py is that thread's work, store.py the rows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from ..core import effects, inputs
from ..core.shares import SharedRows
from .problems import message
from .store import MAX_BARE, MAX_ENDED, Store
from .timeline import Timeline
from .writer import Writer, found

#: The bytes that each add that waits counts beside its own: no more of them wait than the limit of their number.
_BYTES_OF_ADD = 16 << 10


class JournalFigures(Struct, frozen=True):
    """The journal for the metrics. ``lag_s`` is the age of the oldest record that is not on disk yet."""

    rows: int = 0
    bytes: int = 0
    result_bytes: int = 0
    writes: int = 0
    write_s: float = 0.0
    failures: int = 0
    lag_s: float = 0.0


class Journal:
    """Owns the journal in a folder, and the thread that writes it. Its methods never wait for the disk, save ``open``.

    Adds and look-ups wait in queues with limits: when one is full, the newest of the client that has most there is
    refused. Starts and ends need none: a job has one of each at most, and while
    nothing can be written no durable job is accepted, so there are never more than living jobs.
    """

    def __init__(
        self,
        folder: Path,
        wakeup_fd: int,
        *,
        on_warning: Callable[[str], None],
        timeline: Timeline | None = None,
        max_queued: int = 4_096,
        max_queued_bytes: int = 64 << 20,
        busy_s: float = 2.0,
        retry_s: tuple[float, float] = (0.25, 5.0),
    ) -> None:
        """
        Args:
            wakeup_fd: written to when there are answers to collect.
            on_warning: takes a line for the log; called in the loop.
            timeline: the time by which everything is dated and judged.
            max_queued: adds, and look-ups, that may wait for the disk.
            max_queued_bytes: texts and recordings of the adds that may wait.
            busy_s: how long to wait for another process's lock.
            retry_s: the first and the longest pause before a retry.
        """
        self._wakeup_fd = wakeup_fd
        self._on_warning = on_warning
        self._max_queued, self._max_queued_bytes = max_queued, max_queued_bytes
        self._store = Store(folder, busy_s, timeline)
        self._writer = Writer(self._store, retry_s)
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        #: Set once it is known whether the journal can be used.
        self._decided = threading.Event()
        # All that follows is shared under the lock, which is held for a few assignments only.
        self._lock = threading.Condition(threading.Lock())
        self._closed = False
        self._adds: dict[str, effects.JournalAdd] = {}
        self._adds_of: SharedRows[str] = SharedRows()
        self._finds: dict[int, effects.JournalFind] = {}
        self._finds_of: SharedRows[int] = SharedRows()
        self._find_numbers = itertools.count()
        self._starts: dict[str, int] = {}
        self._ends: dict[str, effects.JournalEnd] = {}
        self._usage: list[effects.KeepUsage] = []
        self._looks = False
        self._results: list[inputs.Input] = []
        #: When the oldest record arrived that the thread has not taken, and the oldest that it has not written.
        self._waits_since: float | None = None
        self._taken_since: float | None = None
        self._figures = JournalFigures()
        self._warnings: list[str] = []

    # --- in the loop

    def open(
        self, timeout_s: float = 30.0, *, on_wait: Callable[[], None] = lambda: None, on_wait_every_s: float = 5.0
    ) -> inputs.JournalChanged:
        """Open the journal, and return the unfinished jobs of an earlier daemon, or the problem.

        Args:
            timeout_s: how long to wait for the disk.
            on_wait: called at once, and every ``on_wait_every_s`` while it waits.
        """
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        while not self._decided.is_set() and (left := deadline - time.monotonic()) > 0:
            on_wait()
            self._decided.wait(min(left, on_wait_every_s))
        if not self._decided.is_set():
            what = f"the disk has not answered for {timeout_s:g} s"
            remedy = "Check 'dmesg', and which processes use the disk."
            return inputs.JournalChanged(message(self._store.file, what, remedy))
        with self._lock:
            first = next(result for result in self._results if isinstance(result, inputs.JournalChanged))
            self._results.remove(first)
        return first

    def add(self, effect: effects.JournalAdd) -> None:
        """Write a job; JournalAdded follows when it is on disk."""
        row = effect.row
        size = len(row.request.text) + (0 if row.recording is None else len(row.recording))
        with self._lock:
            self._adds[row.job] = effect
            self._adds_of.add(row.client, row.job, size + _BYTES_OF_ADD)
            while len(self._adds) > 1 and self._too_many_adds():
                self._refuse_add()
            self._has_work()

    def _too_many_adds(self) -> bool:
        waiting = self._adds_of
        return waiting.count > self._max_queued or self._adds_bytes > self._max_queued_bytes

    @property
    def _adds_bytes(self) -> int:
        return self._adds_of.shares.total - self._adds_of.count * _BYTES_OF_ADD

    def _refuse_add(self) -> None:
        """Refuse the newest add of the client whose adds have most bytes."""
        problem = (
            f"the disk is behind: {len(self._adds) - 1} jobs wait to be written to {self._store.shown}, and yours have "
            "most bytes of all; send the job again in a moment"
        )
        client, job = self._adds_of.last_in()
        shared = len(self._adds_of.shares) > 1
        self._adds_of.remove(client, job)
        del self._adds[job]
        removed = inputs.JournalRemoved("journal_queue", client, 1, shared)
        self._hand_back([inputs.JournalAdded(job, problem), removed])

    def start(self, effect: effects.JournalStart) -> None:
        """Note that an attempt begins."""
        with self._lock:
            self._starts[effect.job] = effect.attempts
            self._has_work()

    def end(self, effect: effects.JournalEnd) -> None:
        """Note how a job ended; JournalEnded follows when that is on disk."""
        with self._lock:
            self._ends.setdefault(effect.job, effect)
            self._has_work()

    def keep_usage(self, effect: effects.KeepUsage) -> None:
        """Add to what clients had spoken."""
        with self._lock:
            self._usage.append(effect)
            self._has_work()

    def find(self, effect: effects.JournalFind) -> None:
        """Look a job up; JournalFound follows."""
        client, number = effect.client or "", next(self._find_numbers)
        with self._lock:
            self._finds[number] = effect
            self._finds_of.add(client, number)
            if len(self._finds) > self._max_queued:
                client, number = self._finds_of.last_in()
                shared = len(self._finds_of.shares) > 1
                self._finds_of.remove(client, number)
                problem = (
                    f"{len(self._finds) - 1} look-ups wait for the disk of {self._store.shown}, and most of them are "
                    "yours; ask again later"
                )
                answer = found(self._finds.pop(number), problem=problem)
                self._hand_back([answer, inputs.JournalRemoved("lookups", client, 1, shared)])
            self._lock.notify_all()

    def look(self) -> None:
        """Look whether the files are still there, and write them anew if not."""
        with self._lock:
            self._looks = True
            self._lock.notify_all()

    def collect(self) -> list[inputs.Input]:
        """The answers since the last call, in their order."""
        with self._lock:
            results, self._results = self._results, []
        self._log_warnings()
        return results

    def figures(self) -> JournalFigures:
        """The journal's figures, without a look at the disk."""
        with self._lock:
            figures, since = self._figures, [at for at in (self._taken_since, self._waits_since) if at is not None]
        return structs.replace(figures, lag_s=time.monotonic() - min(since)) if since else figures

    def tables(self, keep_bytes: int) -> dict[str, dict[str, Any]]:
        """What clients hold of the journal, for ``limits``: rows, and bytes of results, by owner."""
        store, found = self._store, {}
        for name, shares, most in (
            ("journal", store.kept, MAX_ENDED),
            ("journal_bare", store.bare, MAX_BARE),
            ("durable_results", store.results_of, keep_bytes),
        ):
            # A copy, since the thread may change it meanwhile.
            owners = shares.owners()
            share = most // max(1, len(owners))
            held = sum(owners.values())
            found[name] = {"held": held, "most": most, "clients": len(owners), "share": share, "owners": owners}
        return found

    def close(self, timeout_s: float = 5.0) -> None:
        """Write the waiting records, for at most ``timeout_s``, and close. The last answers can still be collected."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._lock:
                self._warnings.append(
                    f"the journal is closed before all was written: the disk has not answered for {timeout_s:g} s; the "
                    "next daemon runs the durable jobs again whose end is not on disk"
                )
        self._log_warnings()

    def _log_warnings(self) -> None:
        with self._lock:
            warnings, self._warnings = self._warnings, []
        for warning in warnings:
            self._on_warning(warning)

    # --- in either, with the lock held

    def _has_work(self) -> None:
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        self._lock.notify_all()

    def _hand_back(self, results: list[inputs.Input]) -> None:
        self._results += results
        # A full pipe wakes the loop as well, and a closed one belongs to a daemon that ends.
        with contextlib.suppress(OSError):
            os.write(self._wakeup_fd, b"\0")

    # --- in the thread

    def _run(self) -> None:
        writer = self._writer
        while self._wait():
            with self._lock:
                adds, finds, starts, ends = self._adds, self._finds, self._starts, self._ends
                self._adds, self._finds, self._starts, self._ends = {}, {}, {}, {}
                usage, self._usage = self._usage, []
                self._adds_of, self._finds_of = SharedRows(), SharedRows()
                self._looks = False
                self._taken_since, self._waits_since = self._taken_since or self._waits_since, None
            try:
                writer.count(usage)
                writer.turn(list(adds.values()), list(finds.values()), starts, ends)
            except Exception as error:
                # A bug, since the writer answers every failure; the next turn may succeed.
                writer.warnings.append(f"the journal met an error: {type(error).__name__}: {error}")
            self._publish()
            if writer.problem is not None:
                self._decided.set()
        writer.close()
        self._publish()

    def _wait(self) -> bool:
        """Wait for work; returns False at the end, when all work is done."""
        with self._lock:
            while not (self._adds or self._finds or self._starts or self._ends or self._usage or self._looks):
                if self._closed:
                    return False
                pause_s = self._writer.pause_s()
                if pause_s is not None and pause_s <= 0:
                    return True
                self._lock.wait(pause_s)
            return True

    def _publish(self) -> None:
        writer, store = self._writer, self._store
        figures = JournalFigures(
            store.rows, store.bytes, store.result_bytes, writer.writes, writer.write_s, writer.failures
        )
        answers, writer.answers = writer.answers, []
        warnings, writer.warnings = writer.warnings, []
        with self._lock:
            self._figures = figures
            if not writer.behind:
                self._taken_since = None
            if answers or warnings:
                self._warnings += warnings
                self._hand_back(answers)
