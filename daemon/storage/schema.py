"""The journal's file: locked by one daemon, checked before it is written to, and brought to the current schema.

Damage is found before anything writes to the file, because SQLite itself would overwrite part of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sqlite3
import struct
from pathlib import Path
from urllib.parse import quote

from .outputs import sync_folder
from .problems import JournalError, damaged, message

#: "GTTS": tells the file from the databases of other programs (and so does file(1)).
APPLICATION_ID = 0x47545453

#: Ended jobs without a result or a key, those with one, and those with a result: conditions of indexes, which SQLite
#: uses for a query that has the same words.
BARE = "expires_at IS NOT NULL AND result = '' AND key IS NULL"
KEPT = "expires_at IS NOT NULL AND (result <> '' OR key IS NOT NULL)"
WITH_RESULT = "result <> ''"

#: Entry N brings a file of version N to version N + 1. A change of the schema is one more entry, never a change of an
#: earlier one.
_STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY,
            job TEXT NOT NULL UNIQUE,
            client TEXT NOT NULL,
            user TEXT NOT NULL,
            key TEXT,
            request BLOB NOT NULL,
            content TEXT NOT NULL,
            text_length INTEGER NOT NULL,
            format TEXT NOT NULL,
            sample_rate INTEGER,
            created REAL NOT NULL,
            deadline_at REAL,
            attempts INTEGER NOT NULL,
            state TEXT NOT NULL,
            event BLOB,
            result TEXT NOT NULL DEFAULT '',
            result_bytes INTEGER NOT NULL DEFAULT 0,
            expires_at REAL
        )""",
        "CREATE UNIQUE INDEX jobs_key ON jobs (client, key) WHERE key IS NOT NULL",
        # A job has ended when it can expire.
        "CREATE INDEX jobs_unfinished ON jobs (seq) WHERE expires_at IS NULL",
        "CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE expires_at IS NOT NULL",
        "CREATE INDEX jobs_results ON jobs (expires_at, seq, result_bytes) WHERE result <> ''",
        # A table of their own: a recording has up to 16 MiB, and a query over the jobs must not read it.
        "CREATE TABLE recordings (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    ),
    (
        # The oldest row of each client: without a result or a key, with one, and with a result.
        f"CREATE INDEX jobs_bare ON jobs (client, expires_at) WHERE {BARE}",
        f"CREATE INDEX jobs_kept ON jobs (client, expires_at) WHERE {KEPT}",
        f"CREATE INDEX jobs_results_of ON jobs (client, expires_at, seq, result_bytes) WHERE {WITH_RESULT}",
    ),
    (
        # One row: a moment by the clocks of timeline.py, by whose time all columns are dated.
        """CREATE TABLE clock (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            boot TEXT NOT NULL,
            boot_s REAL NOT NULL,
            wall REAL NOT NULL,
            time REAL NOT NULL
        )""",
    ),
    (
        # What each client had spoken on each day, counted from 1970-01-01.
        """CREATE TABLE usage (
            client TEXT NOT NULL,
            day INTEGER NOT NULL,
            jobs INTEGER NOT NULL,
            characters INTEGER NOT NULL,
            audio_s REAL NOT NULL,
            PRIMARY KEY (client, day)
        ) WITHOUT ROWID""",
    ),
)
VERSION = len(_STEPS)

#: Bytes that the write-ahead log keeps after a large transaction.
_WAL_KEPT_BYTES = 16 << 20
_SQLITE_MAGIC = b"SQLite format 3\0"


def hold(lock: Path) -> int:
    """Lock the journal for this daemon; returns the descriptor that holds it. Raises JournalError, OSError."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        remedy = "Stop it, or give this one a folder of its own in [daemon] state_dir: two would run every job twice."
        raise JournalError(message(lock, f"another daemon (pid {holder}) keeps its journal here", remedy)) from None
    except OSError:
        os.close(fd)
        raise
    # Shown by a daemon that finds the file locked; a full disk may have no room for it.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def connect(file: Path, busy_s: float) -> sqlite3.Connection:
    """Open the journal, or make it, and bring it to the current schema. Raises JournalError, sqlite3.Error, OSError.

    This must be the process's only connection to the file: closing any descriptor of a file gives up SQLite's locks.

    Args:
        busy_s: how long to wait for a lock of another process.
    """
    if not _prepare(file):
        with contextlib.closing(_connect(file, "ro", busy_s)) as reader:
            _check(reader, file)
    connection = _connect(file, "rw", busy_s)
    try:
        _set_up(connection, file)
    except BaseException:
        connection.close()
        raise
    return connection


def close_untouched(connection: sqlite3.Connection, file: Path) -> None:
    """Close a connection to a damaged file without changing the file.

    The last connection to close writes the log into the file, so a read-only one is opened to be the last.
    """
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(file, "ro", 0.0)) as reader:
        with contextlib.suppress(sqlite3.Error):
            reader.execute("SELECT 1 FROM jobs LIMIT 1").fetchone()
        connection.close()
    with contextlib.suppress(sqlite3.Error):
        connection.close()


def files_beside(file: Path) -> list[Path]:
    """The journal's write-ahead log and its index."""
    return [file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")]


def rewrite(connection: sqlite3.Connection, file: Path) -> None:
    """Write the content of an open connection to ``file``, because its files were removed, and close the connection.

    Raises sqlite3.Error, OSError; the connection is then open, and ``file`` as it was.
    """
    fresh = file.with_name(f"{file.name}.new")
    for left in (fresh, fresh.with_name(f"{fresh.name}-journal"), *files_beside(fresh)):
        left.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.closing(_connect(fresh, "rw", 0.0)) as copy:
            connection.backup(copy)
        os.fsync(fd)
    finally:
        os.close(fd)
    for left in files_beside(file):
        left.unlink(missing_ok=True)
    fresh.rename(file)
    sync_folder(file.parent)
    # Before the new file is opened: the last connection to close removes the log and the index by their names.
    connection.close()


def _prepare(file: Path) -> bool:
    """Check the bytes where SQLite does not; returns whether the file is new. Raises JournalError, OSError."""
    log = Path(f"{file}-wal")
    log_bytes = log.stat().st_size if log.exists() else 0
    if log_bytes and (not file.exists() or not file.stat().st_size):
        raise damaged(file, f"it is empty or gone, but {log.name} beside it is not")
    # Opened here for its mode, and because SQLite does not report why it can't open a file.
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(fd)
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o600)
        if status.st_size and os.pread(fd, 16, 0) != _SQLITE_MAGIC:
            raise damaged(file, "it does not begin like a database")
    finally:
        os.close(fd)
    if log_bytes and (problem := log_problem(log)):
        raise damaged(file, problem)
    if not status.st_size:
        sync_folder(file.parent)
    return not status.st_size


def _connect(file: Path, mode: str, busy_s: float) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(file.absolute()))}?mode={mode}"
    # Transactions are begun and ended by name; python's own are in the way.
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_s)


def _check(reader: sqlite3.Connection, file: Path) -> None:
    """Check the file's program, its version, and that the table of jobs is whole."""
    (tables,) = reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = reader.execute("PRAGMA application_id").fetchone()
    (version,) = reader.execute("PRAGMA user_version").fetchone()
    if not tables and not version:
        return  # its daemon was killed before it made the tables
    if application != APPLICATION_ID:
        remedy = "Move it away, or set another folder in [daemon] state_dir."
        raise JournalError(message(file, "this is a database of another program, not a journal", remedy))
    if version > VERSION:
        remedy = f"Run that version again, or move {file.name} away with its jobs."
        what = f"a later version of the daemon wrote it (schema {version}, this one knows {VERSION})"
        raise JournalError(message(file, what, remedy))
    words = [str(word) for (word,) in reader.execute("PRAGMA quick_check('jobs')")]
    if words != ["ok"]:
        raise damaged(file, "; ".join(words[:3])[:300])


def _set_up(connection: sqlite3.Connection, file: Path) -> None:
    # Has to be set before the first table is made.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        remedy = "Set a folder on a local disk in [daemon] state_dir."
        raise JournalError(message(file, f"its file system can't hold a write-ahead log (mode {mode})", remedy))
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number in range(version, VERSION):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _STEPS[number]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")


_LOG_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_LOG_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_LOG_VERSION = 3_007_000


def log_problem(log: Path) -> str:
    """The damage in a write-ahead log that loses committed transactions, or ``""``.

    SQLite reads a log up to the first wrong checksum (https://www.sqlite.org/fileformat2.html, section 4) and silently
    drops the rest. After a crash the rest is one transaction, which was not reported as committed. If it holds the
    ends of two or more, the earlier ones were.
    """
    if log.stat().st_size < _LOG_HEADER.size:
        return ""
    with log.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _LOG_HEADER.unpack_from(data)
        if not any(header):
            return ""  # only its size had reached the disk: nothing was committed yet
        magic, version, page_bytes, _, *salts = header[:6]
        order = _LOG_MAGIC.get(magic)
        sums = (0, 0)
        if order is not None:
            sums = _checksum(data[:24], order, sums)
        if order is None or version != _LOG_VERSION or sums != header[6:]:
            return f"{log.name} does not begin like a write-ahead log"
        frame_bytes = _FRAME_HEADER.size + page_bytes
        frames = []
        for at in range(_LOG_HEADER.size, len(data) - frame_bytes + 1, frame_bytes):
            _, commits, *rest = _FRAME_HEADER.unpack_from(data, at)
            if rest[:2] != salts:
                break  # the rest is left from an earlier use of the log
            frames.append((at, bool(commits), tuple(rest[2:])))
        ahead = sum(commits for _, commits, _ in frames)
        for at, commits, expected in frames:
            if ahead < 2:
                break  # the last transaction: its commit was not reported
            body = at + _FRAME_HEADER.size
            sums = _checksum(data[at : at + 8] + data[body : body + page_bytes], order, sums)
            if sums != expected:
                return f"{log.name} has a wrong checksum before the end of {ahead} transactions"
            ahead -= commits
        return ""


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word, following in zip(words, words, strict=True):
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + following + first) & 0xFFFFFFFF
    return first, second
