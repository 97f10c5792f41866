"""The journal of durable jobs: what was accepted is on disk, whatever becomes of the daemon.

One thread writes, and writes all that has come while it was at the disk in one transaction: the disk is waited for once
for many jobs. What can't be written is refused at once, or kept until it can be.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from glmtts.protocol.requests import Cancel, GetJob, Wait

from .core import effects, inputs
from .journal_problems import JournalError, explain, keeps_connection, told
from .journal_store import KEY_HOLDS_S, Store, UnreadableRowError

#: Expired jobs and superfluous results that one transaction removes at most.
_TIDY_LIMIT = 64
#: The longest pause between two looks at the clock on the wall, which may be set.
_TIDY_PAUSE_S = 60.0
#: A journal that has worked for so long is tried again soon when it fails.
_STEADY_S = 30.0

_ERRORS = (sqlite3.Error, OSError, JournalError)


class _Batch(Struct):
    """What has come for the thread to do; starts and ends wait in the journal itself until they are on disk."""

    adds: list[effects.JournalAdd]
    finds: list[effects.JournalFind]


class Journal:
    """The journal in ``folder``. ``wakeup_fd`` is written to when there is something to collect.

    Adds and look-ups wait in queues with limits. Starts and ends do not need one: a job has one of each at most, and
    while nothing can be written no durable job is accepted, so there are never more than jobs that live.
    """

    def __init__(
        self,
        folder: Path,
        wakeup_fd: int,
        *,
        on_warning: Callable[[str], None],
        wall: Callable[[], float] = time.time,
        max_queued: int = 4_096,
        max_queued_bytes: int = 64 << 20,
        busy_s: float = 2.0,
        retry_s: tuple[float, float] = (0.25, 5.0),
    ) -> None:
        """``on_warning`` takes a line for the log, in the loop. ``wall`` is the time in seconds since 1970.

        At most ``max_queued`` adds with ``max_queued_bytes``, and as many look-ups, wait for the disk. Another's
        lock is waited for ``busy_s``; what has failed is tried again after the first of ``retry_s``, and ever later up
        to the second.
        """
        self._store = Store(folder, busy_s)
        self._wakeup_fd = wakeup_fd
        self._on_warning = on_warning
        self._wall = wall
        self._max_queued, self._max_queued_bytes = max_queued, max_queued_bytes
        self._retry_s = retry_s
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        # Shared with the loop, under the lock.
        self._lock = threading.Condition(threading.Lock())
        self._closed = False
        self._adds: list[effects.JournalAdd] = []
        self._adds_bytes = 0
        self._finds: list[effects.JournalFind] = []
        self._new_starts: dict[str, int] = {}
        self._new_ends: dict[str, effects.JournalEnd] = {}
        self._results: list[inputs.Input] = []
        self._warnings: list[str] = []
        self._decided = threading.Event()
        # The thread's own.
        self._starts: dict[str, int] = {}
        self._ends: dict[str, effects.JournalEnd] = {}
        self._answers: list[inputs.Input] = []
        self._said: list[str] = []
        #: Why the journal can't be used; ``""`` while it can be, None before anybody knows.
        self._problem: str | None = None
        self._told_ends: set[str] = set()
        #: Jobs whose add was answered with a problem, though their row may be on disk.
        self._uncertain: set[str] = set()
        self._handed_over = False
        self._working_since = float("-inf")
        self._retry_at = 0.0
        self._delay_s = retry_s[0]
        self._keep_bytes: int | None = None
        self._tidy_at = float("inf")

    # --- in the loop

    def open(self, timeout_s: float = 30.0) -> inputs.JournalChanged:
        """Open the journal, and hand over what an earlier daemon has left. Waits ``timeout_s`` for the disk at most."""
        self._thread.start()
        if not self._decided.wait(timeout_s):
            what = f"the disk has not answered for {timeout_s:g} s"
            return inputs.JournalChanged(told(self._store.file, what, "Look at 'dmesg', and at who uses the disk."))
        with self._lock:
            first = next(result for result in self._results if isinstance(result, inputs.JournalChanged))
            self._results.remove(first)
        return first

    def add(self, effect: effects.JournalAdd) -> None:
        """Write a job down; JournalAdded comes when it is on disk."""
        size = _size(effect)
        with self._lock:
            full = len(self._adds) >= self._max_queued or (
                self._adds and self._adds_bytes + size > self._max_queued_bytes
            )
            if not full:
                self._adds.append(effect)
                self._adds_bytes += size
                self._lock.notify_all()
                return
            problem = (
                f"the disk is behind: {len(self._adds)} jobs with {self._adds_bytes >> 20} MiB wait to be written to "
                f"{self._store.file}; send the job again in a moment"
            )
            self._hand_back([inputs.JournalAdded(effect.row.job, problem)])

    def start(self, effect: effects.JournalStart) -> None:
        """Note that an attempt begins."""
        with self._lock:
            self._new_starts[effect.job] = effect.attempts
            self._lock.notify_all()

    def end(self, effect: effects.JournalEnd) -> None:
        """Note how a job ended; JournalEnded comes when that is on disk."""
        with self._lock:
            self._new_ends.setdefault(effect.job, effect)
            self._lock.notify_all()

    def find(self, effect: effects.JournalFind) -> None:
        """Look a job up; JournalFound comes."""
        with self._lock:
            if len(self._finds) < self._max_queued:
                self._finds.append(effect)
                self._lock.notify_all()
                return
            problem = f"{len(self._finds)} look-ups wait for the disk of {self._store.file} already; ask again later"
            self._hand_back([_found(effect, problem=problem)])

    def collect(self) -> list[inputs.Input]:
        """What has come back since the last call, in its order."""
        with self._lock:
            results, self._results = self._results, []
            warnings, self._warnings = self._warnings, []
        for warning in warnings:
            self._on_warning(warning)
        return results

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what has come, in ``timeout_s`` at most, and close. What came back can still be collected."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._on_warning(
                f"the journal is closed in the middle: the disk has not answered for {timeout_s:g} s; durable jobs "
                "whose end is not on disk are spoken again by the next daemon"
            )

    # --- in either, with the lock held

    def _hand_back(self, results: list[inputs.Input]) -> None:
        self._results += results
        # A full pipe wakes the loop as well; without a loop nobody has to be woken.
        with contextlib.suppress(OSError):
            os.write(self._wakeup_fd, b"\0")

    # --- in the thread

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._turn(batch)
            except Exception as error:
                # A bug: said where somebody looks, and everybody is answered.
                self._fail(error)
                self._refuse(batch.adds)
            with self._lock:
                if self._said or self._answers:
                    self._warnings += self._said
                    self._hand_back(self._answers)
                    self._said, self._answers = [], []
                if self._problem is not None:
                    self._decided.set()
        if self._ends:
            with self._lock:
                self._warnings.append(
                    f"the ends of {len(self._ends)} durable jobs were not written: the next daemon speaks them again"
                )
        self._store.close(for_good=True)

    def _next(self) -> _Batch | None:
        """Wait until there is something to do; None at the end, when all was tried once."""
        with self._lock:
            while not (self._closed or self._adds or self._finds or self._new_starts or self._new_ends):
                pause_s = self._pause_s()
                if pause_s is not None and pause_s <= 0:
                    break
                self._lock.wait(pause_s)
            left = self._adds or self._finds or self._new_starts or self._new_ends
            if self._closed and not left and (self._problem == "" or not (self._ends or self._starts)):
                return None
            if self._closed and not left:
                if self._retry_at == float("-inf"):
                    return None
                self._retry_at = float("-inf")
            batch = _Batch(self._adds, self._finds)
            self._adds, self._finds, self._adds_bytes = [], [], 0
            self._starts.update(self._new_starts)
            for job, end in self._new_ends.items():
                self._ends.setdefault(job, end)
            self._new_starts, self._new_ends = {}, {}
            return batch

    def _pause_s(self) -> float | None:
        """How long nothing has to be done by itself; None: for ever."""
        if self._problem != "":
            return self._retry_at - time.monotonic()
        if self._tidy_at == float("inf"):
            return None
        return min(self._tidy_at - self._wall(), _TIDY_PAUSE_S)

    def _turn(self, batch: _Batch) -> None:
        if self._problem != "" and time.monotonic() >= self._retry_at:
            self._recover()
        if self._problem == "" and (batch.adds or self._starts or self._ends or self._tidy_at <= self._wall()):
            self._write(batch.adds)
        elif batch.adds:
            self._refuse(batch.adds)
        if self._problem:
            untold = [job for job in self._ends if job not in self._told_ends]
            self._answers += [inputs.JournalEnded(job, self._problem) for job in untold]
            self._told_ends.update(untold)
        self._answers += [self._find(effect) for effect in batch.finds]

    def _write(self, adds: list[effects.JournalAdd]) -> None:
        answers: list[inputs.Input] = []
        try:
            with self._store.transaction():
                answers += [self._add(effect.row) for effect in adds]
                unknown = self._write_pending()
                useless = self._tidy()
        except _ERRORS as error:
            # The commit may have reached the disk, though it was not said so.
            self._uncertain.update(effect.row.job for effect in adds)
            self._fail(error)
            self._refuse(adds)
            return
        self._answers += answers
        self._written(unknown)
        # After the rows: a crash between the two leaves files that the next daemon removes.
        self._said += self._store.results.remove(useless)

    def _recover(self) -> None:
        """Try whether the journal can be used, now or again."""
        rows: list[inputs.JournalRow] = []
        damaged: list[str] = []
        try:
            if not self._store.is_open:
                self._store.open()
            with self._store.transaction():
                self._store.prove()
                self._store.forget(self._uncertain)
                if not self._handed_over:
                    rows, damaged = self._store.unfinished(self._wall() + KEY_HOLDS_S)
                unknown = self._write_pending()
            if not self._handed_over:
                self._sweep(rows)
        except _ERRORS as error:
            self._fail(error)
            return
        self._handed_over = True
        self._uncertain.clear()
        self._problem = ""
        self._working_since = time.monotonic()
        self._tidy_at = float("-inf")
        self._said += damaged
        self._answers.append(inputs.JournalChanged("", rows))
        self._written(unknown)

    def _fail(self, error: Exception) -> None:
        """The journal can't be used from now on; try again in a while."""
        now = time.monotonic()
        if self._problem == "" and now - self._working_since >= _STEADY_S:
            self._delay_s = self._retry_s[0]
        self._retry_at = now + self._delay_s if self._retry_at != float("-inf") else self._retry_at
        self._delay_s = min(self._retry_s[1], self._delay_s * 2)
        problem = explain(error, self._store.file)
        if not keeps_connection(error):
            self._store.close(error)
        if problem != self._problem:
            self._problem = problem
            self._answers.append(inputs.JournalChanged(problem))

    def _refuse(self, adds: list[effects.JournalAdd]) -> None:
        self._answers += [inputs.JournalAdded(effect.row.job, self._problem or "") for effect in adds]

    def _add(self, row: inputs.JournalRow) -> inputs.JournalAdded:
        try:
            return inputs.JournalAdded(row.job, known=self._store.add(row))
        except (ValueError, OverflowError) as error:
            return inputs.JournalAdded(row.job, f"the job can't be written to {self._store.file}: {error}")

    def _write_pending(self) -> list[str]:
        """Write the starts and ends; returns the jobs that are not in the journal."""
        unknown = []
        for job, attempts in self._starts.items():
            self._store.start(job, attempts)
        for job, end in self._ends.items():
            if not self._store.end(end):
                unknown.append(job)
            self._keep_bytes = end.keep_bytes
            self._tidy_at = min(self._tidy_at, end.expires_at)
        if self._keep_bytes is not None and self._store.result_bytes > self._keep_bytes:
            self._tidy_at = float("-inf")
        return unknown

    def _written(self, unknown: list[str]) -> None:
        """What was pending is on disk."""
        self._said += [
            f"job {job} has ended, and is not in {self._store.file}: nobody can ask for its result after a restart"
            for job in unknown
        ]
        self._answers += [inputs.JournalEnded(job) for job in self._ends]
        self._starts.clear()
        self._ends.clear()
        self._told_ends.clear()

    def _tidy(self) -> list[str]:
        """Remove a bounded number of what is not kept any more; returns the names of files that are of no use now."""
        if self._tidy_at > self._wall():
            return []
        useless, more = self._store.expire(self._wall(), _TIDY_LIMIT)
        if self._keep_bytes is not None:
            dropped, still_more = self._store.shrink(self._keep_bytes, _TIDY_LIMIT)
            useless += dropped
            more = more or still_more
        self._tidy_at = float("-inf") if more else _never(self._store.next_expiry())
        return useless

    def _sweep(self, rows: list[inputs.JournalRow]) -> None:
        removed = self._store.results.sweep(self._store.result_names(), {row.job for row in rows})
        if removed:
            self._said.append(f"{removed} files in {self._store.results.folder} belonged to no job and were removed")

    def _find(self, effect: effects.JournalFind) -> inputs.JournalFound:
        request = effect.request
        if not isinstance(request, Wait | GetJob | Cancel):
            return _found(effect, problem=f"{type(request).__name__} names no job to look up")
        if not self._store.is_open:
            return _found(effect, problem=self._problem or "the journal is closed")
        try:
            row = self._store.find(request.job)
        except UnreadableRowError as error:
            return _found(effect, problem=str(error))
        except _ERRORS as error:
            self._fail(error)
            return _found(effect, problem=self._problem or "")
        if row is None or (effect.client is not None and effect.client not in (row.client, row.client.split("/")[0])):
            return _found(effect)
        return _found(effect, row)


def _found(
    effect: effects.JournalFind, row: inputs.JournalRow | None = None, *, problem: str = ""
) -> inputs.JournalFound:
    return inputs.JournalFound(effect.to, effect.request, effect.client, row, problem)


def _size(effect: effects.JournalAdd) -> int:
    row = effect.row
    return len(row.request.text) + (0 if row.recording is None else len(row.recording))


def _never(at: float | None) -> float:
    return float("inf") if at is None else at
