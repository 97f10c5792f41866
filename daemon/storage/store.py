"""The journal's rows: a row for each durable job, written and read by one thread."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec import UNSET

from glmtts.protocol.codec import encode
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.events import Error
from glmtts.protocol.requests import KEY_HOLDS_S

from ..core.effects import JournalEnd
from ..core.inputs import JournalRemoved, JournalRow, Spoken, UsageRow
from ..core.shares import Shares
from . import rows, schema, usage_rows
from .problems import JournalError, is_damage, message, printable
from .results import Results
from .rows import UnreadableRowError
from .timeline import Mark, Timeline

#: The most ended jobs that are remembered: those with a result or a key, and those without.
MAX_ENDED, MAX_BARE = 75_000, 25_000
#: How often the timeline is noted, in seconds, in transactions that are written anyway.
_MARK_EVERY_S = 60.0
_NEVER = float("-inf")
#: Free pages that the file keeps for later rows, and how many of the others are returned to the disk at a time.
_FREE_PAGES_KEPT, _FREE_PAGES_GIVEN_BACK = 4_096, 512

#: The place of a file that is not there.
_GONE = (0, 0)


class Store:
    """Owns the file ``journal.db`` in a folder, its lock, and the results beside it.

    Every method may raise sqlite3.Error, OSError or JournalError (see problems.py), and changes nothing then. All but
    :meth:`open`, :meth:`close` and :meth:`find` belong into a :meth:`transaction`.
    """

    def __init__(self, folder: Path, busy_s: float = 2.0, timeline: Timeline | None = None) -> None:
        self.file = folder / "journal.db"
        #: The file's path, for messages.
        self.shown = printable(self.file)
        self.results = Results(folder / "results")
        #: Ended jobs with a result or a key, and those without; and the bytes of results.
        self.kept, self.bare, self.results_of = Shares(), Shares(), Shares()
        #: Rows and results that were removed early by this transaction or the last.
        self.removed: list[JournalRemoved] = []
        self._undo: list[tuple[Shares, str, int]] = []
        self.timeline = timeline or Timeline()
        #: When the timeline was last noted, by itself; None before it was opened.
        self._marked_at: float | None = None
        #: The number of jobs, ended ones included.
        self.rows = 0
        #: Jobs that have not ended and are not in the file that has replaced the journal.
        self.rescued: list[JournalRow] = []
        #: Whether there was no journal before the first attempt to open it.
        self.is_new = False
        self._folder = folder
        self._busy_s = busy_s
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        #: The device and inode of the file; and those of its log and index, as far as they were seen.
        self._place = _GONE
        self._places_beside = [_GONE, _GONE]

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def result_bytes(self) -> int:
        """The size of all results together."""
        return self.results_of.total

    @property
    def bytes(self) -> int:
        """The size of the journal's files on disk, without results."""
        size = 0
        for file in (self.file, self.file.with_name(f"{self.file.name}-wal")):
            with contextlib.suppress(OSError):
                size += file.stat().st_size
        return size

    def open(self) -> None:
        """Open the journal, or make it."""
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._hold()
        self.results.make()
        self.is_new = self.is_new or not self.file.exists()
        connection = schema.connect(self.file, self._busy_s)
        try:
            self._place, self._places_beside = _place(self.file), [_GONE, _GONE]
            self.bare, self.kept, self.results_of = (
                _shares(connection, f"SELECT client, {what} FROM jobs WHERE {where} GROUP BY client")
                for what, where in (
                    ("count(*)", schema.BARE),
                    ("count(*)", schema.KEPT),
                    ("sum(result_bytes)", schema.WITH_RESULT),
                )
            )
            (self.rows,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
            if self._marked_at is None:
                self.timeline.open(_mark(connection))
                self._marked_at = _NEVER
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self, error: Exception | None = None, *, for_good: bool = False) -> None:
        """Close the file, because of ``error`` if there was one: a damaged file is not changed.

        The lock that keeps other daemons out is held unless it is ``for_good``.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            if error is not None and is_damage(error):
                schema.close_untouched(connection, self.file)
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        if for_good and self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self) -> None:
        """Hold the lock of the journal; its file may have been removed."""
        file = self._folder / "journal.lock"
        if self._lock is not None:
            held = os.fstat(self._lock)
            if _place(file) == (held.st_dev, held.st_ino):
                return
        # The old lock is held until the new one is.
        lock = schema.hold(file)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = lock

    def heal(self) -> str:
        """Write the journal anew if its files were removed: the open connection still has everything.

        Returns a line for the log, or ``""`` where there was nothing to do. After an exception the connection is still
        open, unless the journal was replaced, or belongs to another daemon now.
        """
        if self._connection is None:
            return ""
        place = _place(self.file)
        beside = [_place(file) for file in schema.files_beside(self.file)]
        # They come into being with the first use of the file.
        known = [before if before != _GONE else now for before, now in zip(self._places_beside, beside, strict=True)]
        removed = place == _GONE or beside != known
        if place not in (_GONE, self._place):
            if not self.file.is_file():
                raise IsADirectoryError(errno.EISDIR, "something that is no file is in its place", str(self.file))
            with contextlib.suppress(sqlite3.Error):
                self.rescued, _ = self.unfinished()
            self.close()
            raise self._replaced()
        if removed:
            self._check_disk()
            # Not the folders above it: they may be on a disk that is mounted later.
            self._folder.mkdir(mode=0o750, exist_ok=True)
        try:
            self._hold()
        except JournalError:
            # Another daemon writes there.
            self.close()
            raise
        self._places_beside = known
        if not removed:
            return ""
        schema.rewrite(self._connection, self.file)
        self._connection = None
        self.open()
        return f"files of {self.shown} were removed while it was in use, and are written anew with all jobs"

    def _check_disk(self) -> None:
        """Raise JournalError if the folder would be on another disk: its own is not mounted, and may come back."""
        there = self._folder if self._folder.exists() else self._folder.parent
        if not there.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        if there.stat().st_dev != self._place[0]:
            what = f"the disk on which it was is not mounted at {there} any more"
            raise JournalError(message(self.file, what, "Mount it again, or restart the daemon to use the other one."))

    def _replaced(self) -> JournalError:
        remedy = (
            "Stop the daemon before you replace it: jobs that have not ended are added to the new one, the others are "
            "in the old one alone."
        )
        return JournalError(message(self.file, "the journal was moved or replaced while it was in use", remedy))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything done inside is on disk when it ends, or nothing is."""
        connection = self._sql
        if _place(self.file) != self._place:
            raise self._replaced()
        before = self.rows
        self._undo, self.removed = [], []
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            self.rows, self.removed = before, []
            for shares, client, amount in self._undo:
                shares.add(client, -amount)
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise

    # --- in a transaction

    def _count(self, shares: Shares, client: str, amount: int) -> None:
        shares.add(client, amount)
        self._undo.append((shares, client, amount))

    def _rows_like(self, key: str | None, result: str) -> Shares:
        return self.kept if result or key is not None else self.bare

    def add(self, row: JournalRow) -> tuple[str, str] | None:
        """Add a row; or return (id, content) of the job that has its idempotency key, and add nothing.

        Raises ValueError for a row that no journal can hold.
        """
        key = None if row.request.key is UNSET else row.request.key
        if key is not None and (known := self._with_key(row, key)) is not None:
            return known
        now = self.timeline.now()
        # One that comes from another file of the journal has an age, and its date may be of another clock.
        created = now - row.age_s if row.age_s else self.timeline.of_date(row.created)
        deadline_at = None if row.deadline_in_s is None else now + row.deadline_in_s
        values = (
            *(row.job, row.client, row.user, key, encode(row.request), row.content, row.text_length),
            *(row.format, row.sample_rate, created, deadline_at, row.attempts, row.state),
        )
        try:
            cursor = self._sql.execute(
                "INSERT INTO jobs (job, client, user, key, request, content, text_length, format, sample_rate, created,"
                " deadline_at, attempts, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        except sqlite3.IntegrityError:
            raise ValueError(f"there is a job {row.job} in the journal already") from None
        if row.recording is not None:
            self._sql.execute("INSERT INTO recordings VALUES (?, ?)", (cursor.lastrowid, row.recording))
        self.rows += 1
        return None

    def _with_key(self, row: JournalRow, key: str) -> tuple[str, str] | None:
        found = self._sql.execute(
            "SELECT seq, job, content, created, result, expires_at FROM jobs WHERE client = ? AND key = ?",
            (row.client, key),
        ).fetchone()
        if found is None:
            return None
        seq, job, content, created, result, expires_at = found
        if self.timeline.sure() - created < KEY_HOLDS_S:
            return job, content
        if expires_at is not None and not result:
            self._count(self.kept, row.client, -1)
            self._count(self.bare, row.client, 1)
        self._sql.execute("UPDATE jobs SET key = NULL WHERE seq = ?", (seq,))
        return None

    def start(self, job: str, attempts: int) -> None:
        """Note the number of attempts at a job that were begun."""
        self._sql.execute("UPDATE jobs SET attempts = ? WHERE job = ? AND expires_at IS NULL", (attempts, job))

    def end(self, end: JournalEnd) -> bool:
        """Note how a job ended, unless an end is noted; returns False if there is no such job."""
        result, size = self.results.measured(end.result)
        values = (end.state, rows.encoded(end), result, size, self.timeline.now() + end.keep_s, end.job)
        found = self._sql.execute(
            "UPDATE jobs SET state = ?, event = ?, result = ?, result_bytes = ?, expires_at = ?"
            " WHERE job = ? AND expires_at IS NULL",
            values,
        ).rowcount
        if found:
            seq, client, key, request = self._sql.execute(
                "SELECT seq, client, key, request FROM jobs WHERE job = ?", (end.job,)
            ).fetchone()
            if (short := rows.shortened(request)) is not None:
                self._sql.execute("UPDATE jobs SET request = ? WHERE seq = ?", (short, seq))
            self._sql.execute("DELETE FROM recordings WHERE seq = ?", (seq,))
            self._count(self._rows_like(key, result), client, 1)
            self._count(self.results_of, client, size)
            return True
        return self._sql.execute("SELECT 1 FROM jobs WHERE job = ?", (end.job,)).fetchone() is not None

    def count(self, usage: dict[tuple[str, int], Spoken], oldest: int) -> None:
        """Add to what clients had spoken, as :func:`.usage_rows.add` does."""
        usage_rows.add(self._sql, usage, oldest)

    def forget(self, jobs: Iterable[str]) -> None:
        """Remove living jobs."""
        for job in jobs:
            self._sql.execute("DELETE FROM recordings WHERE seq = (SELECT seq FROM jobs WHERE job = ?)", (job,))
            self.rows -= self._sql.execute("DELETE FROM jobs WHERE job = ? AND expires_at IS NULL", (job,)).rowcount

    def note_time(self) -> None:
        """Note where a later daemon goes on with the timeline: now and then, and when the wall clock was set."""
        assert self._marked_at is not None
        if (self.timeline.look() or self.timeline.now() - self._marked_at >= _MARK_EVERY_S) and (
            mark := self.timeline.mark()
        ):
            self._sql.execute(
                "INSERT OR REPLACE INTO clock (id, boot, boot_s, wall, time) VALUES (1, ?, ?, ?, ?)",
                (mark.boot, mark.boot_s, mark.wall, mark.time),
            )
            self._marked_at = mark.time

    def add_rescued(self) -> None:
        """Add the jobs of a replaced journal that have not ended."""
        for row in self.rescued:
            # The other file may be an earlier copy, which has some of them.
            with contextlib.suppress(ValueError):
                self.add(row)

    def prove(self) -> None:
        """Make this transaction write to the disk, which proves that the disk can be written to."""
        self._sql.execute(f"PRAGMA user_version = {schema.VERSION}")

    def unfinished(self) -> tuple[list[JournalRow], list[str]]:
        """The jobs that have not ended, the oldest first; rows that can't be read are ended, each with a message."""
        expires_at = self.timeline.now() + KEY_HOLDS_S
        found, problems = [], []
        query = f"SELECT seq, data, {rows.COLUMNS} FROM jobs LEFT JOIN recordings USING (seq) WHERE expires_at IS NULL"
        for seq, recording, *columns in self._sql.execute(f"{query} ORDER BY seq").fetchall():
            try:
                row = rows.read(columns, self.timeline, self.results)
                row.recording = recording
                found.append(row)
            except UnreadableRowError as error:
                problems.append(str(error))
                message = "the daemon was replaced by one of another version, which can't read this job; send it again"
                event = Error.of("", ErrorCode.UNAVAILABLE, message, job=rows.text(columns[0]))
                self._sql.execute(
                    "UPDATE jobs SET state = 'failed', event = ?, expires_at = ? WHERE seq = ?",
                    (encode(event), expires_at, seq),
                )
                self._sql.execute("DELETE FROM recordings WHERE seq = ?", (seq,))
                (client, key) = self._sql.execute("SELECT client, key FROM jobs WHERE seq = ?", (seq,)).fetchone()
                self._count(self._rows_like(key, ""), rows.text(client), 1)
        return found, problems

    def expire(self, now: float, limit: int) -> tuple[list[str], bool]:
        """Remove at most ``limit`` rows that have expired or are too many, and return free pages to the disk.

        Of rows that are too many, those of the client that has most go first, its oldest first.

        Returns:
            The notes of the result files to remove, and whether there is more to do.
        """
        found = self._sql.execute(
            "SELECT seq, client, key, result, result_bytes FROM jobs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
            (now, limit),
        ).fetchall()
        for row in found:
            self._remove(*row)
        useless = [result for _, _, _, result, _ in found if result]
        left = limit - len(found)
        for table, shares, most, condition in (
            ("journal_bare", self.bare, MAX_BARE, schema.BARE),
            ("journal", self.kept, MAX_ENDED, schema.KEPT),
        ):
            while left and (row := self._first_out(shares, most, condition)):
                self._note_removed(table, row[1], shares)
                self._remove(*row)
                useless += [row[3]] if row[3] else []
                left -= 1
        given_back = self._give_back()
        return useless, not left or given_back

    def _first_out(self, shares: Shares, most: int, condition: str) -> tuple[Any, ...] | None:
        """While clients hold more than ``most`` together: the oldest row of the one that holds most."""
        while shares.total > most:
            client = shares.greatest()
            row: tuple[Any, ...] | None = self._sql.execute(
                "SELECT seq, client, key, result, result_bytes FROM jobs"
                f" WHERE client = ? AND {condition} ORDER BY expires_at, seq LIMIT 1",
                (client,),
            ).fetchone()
            if row is not None:
                return row
            # Another program has changed the file.
            self._count(shares, client, -shares.of(client))
        return None

    def _remove(self, seq: int, client: str, key: str | None, result: str, size: int) -> None:
        """Remove the row of an ended job."""
        self._sql.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
        self._count(self._rows_like(key, result), client, -1)
        self._count(self.results_of, client, -size)
        self.rows -= 1

    def _note_removed(self, table: str, client: str, shares: Shares) -> None:
        last = self.removed[-1] if self.removed else None
        if last is not None and (last.table, last.client) == (table, client):
            last.count += 1
        else:
            self.removed.append(JournalRemoved(table, client, 1, len(shares) > 1))

    def _give_back(self) -> bool:
        """Return some of the file's free pages to the disk; returns whether there may be more."""
        (free,) = self._sql.execute("PRAGMA freelist_count").fetchone()
        if free <= _FREE_PAGES_KEPT:
            return False
        self._sql.execute(f"PRAGMA incremental_vacuum({_FREE_PAGES_GIVEN_BACK})").fetchall()
        (left,) = self._sql.execute("PRAGMA freelist_count").fetchone()
        # A file that was rebuilt with another tool may not shrink.
        return bool(left < free)

    def shrink(self, keep_bytes: int, limit: int) -> tuple[list[str], bool]:
        """Drop at most ``limit`` results while all have more than ``keep_bytes`` together.

        The client whose results take most loses its oldest first. The newest of all stays, since it is about to be
        sent. Returns as :meth:`expire` does.
        """
        if self.result_bytes <= keep_bytes:
            return [], False
        dropped: list[str] = []
        newest = self._sql.execute(
            f"SELECT seq FROM jobs WHERE {schema.WITH_RESULT} ORDER BY expires_at DESC, seq DESC LIMIT 1"
        ).fetchone()
        while len(dropped) < limit and (row := self._first_out(self.results_of, keep_bytes, schema.WITH_RESULT)):
            seq, client, key, result, size = row
            if (seq,) == newest:
                break
            self._sql.execute("UPDATE jobs SET result = '', result_bytes = 0 WHERE seq = ?", (seq,))
            self._note_removed("durable_results", client, self.results_of)
            self._count(self.results_of, client, -size)
            if key is None:
                self._count(self.kept, client, -1)
                self._count(self.bare, client, 1)
            dropped.append(result)
        return dropped, len(dropped) == limit

    # --- reading

    def usage(self) -> list[UsageRow]:
        """What clients had spoken."""
        return usage_rows.read(self._sql)

    def next_expiry(self) -> float | None:
        """When the next row expires."""
        (found,) = self._sql.execute("SELECT min(expires_at) FROM jobs WHERE expires_at IS NOT NULL").fetchone()
        return None if found is None else float(found)

    def result_names(self) -> set[str]:
        """The notes of all result files."""
        return {name for (name,) in self._sql.execute("SELECT result FROM jobs WHERE result <> ''")}

    def find(self, job: str) -> JournalRow | None:
        """The row of a job, without its recording. Raises UnreadableRowError too."""
        found = self._sql.execute(f"SELECT {rows.COLUMNS} FROM jobs WHERE job = ?", (job,)).fetchone()
        return None if found is None else rows.read(found, self.timeline, self.results)

    @property
    def _sql(self) -> sqlite3.Connection:
        if self._connection is None:
            raise JournalError(message(self.file, "the journal is not open", "Please report it."))
        return self._connection


def _mark(connection: sqlite3.Connection) -> Mark | None:
    """The moment that the last daemon has noted; without one, the acceptance of the newest job."""
    found = connection.execute("SELECT boot, boot_s, wall, time FROM clock").fetchone()
    if found is None:
        (newest,) = connection.execute("SELECT max(created) FROM jobs").fetchone()
        found = None if newest is None else ("", 0.0, newest, newest)
    return None if found is None else Mark(*found)


def _place(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return _GONE
    return status.st_dev, status.st_ino


def _shares(connection: sqlite3.Connection, query: str) -> Shares:
    """How much each client holds, by a query for the clients and their amounts."""
    shares = Shares()
    for client, amount in connection.execute(query):
        shares.add(rows.text(client), amount)
    return shares
