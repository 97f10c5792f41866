"""A journal that an earlier version has written is taken up by this one, with every job in it.

`journals/schema-N.sql` is what a version of that schema has left: for a new one in schema.py, add its dump here.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage import schema

from .journal_rig import Rig, row

LEFT_BEHIND = Path(__file__).with_name("journals")


def left_by(schema: int, folder: Path) -> None:
    """Put a journal of this schema in its place."""
    file = folder / "journal.db"
    with sqlite3.connect(file) as connection:
        connection.executescript((LEFT_BEHIND / f"schema-{schema}.sql").read_text(encoding="utf-8"))
    connection.close()


def schema_of(folder: Path) -> int:
    connection = sqlite3.connect(folder / "journal.db")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    finally:
        connection.close()
    return int(version)


def test_of_each_schema_that_there_was_there_is_a_journal_to_try() -> None:
    there = sorted(file.name for file in LEFT_BEHIND.glob("*.sql"))
    assert there == [f"schema-{number}.sql" for number in range(1, schema.VERSION + 1)]


@pytest.mark.parametrize("version", range(1, schema.VERSION + 1))
def test_a_job_that_waited_under_an_earlier_version_goes_on_and_what_had_ended_is_found(
    tmp_path: Path, version: int
) -> None:
    left_by(version, tmp_path)
    with Rig(tmp_path) as rig:
        assert rig.opened.problem == ""
        (waiting,) = rig.opened.rows
        assert (waiting.job, waiting.request.text, waiting.request.key) == ("b-1", "A job that waits. 你好。", "book 7")
        assert waiting.recording is not None and bytes(waiting.recording) == b"RIFF of a recording"
        usage = [inputs.UsageRow("uid:1", 20_000, inputs.Spoken(2, 35, 3.5))]
        assert rig.opened.usage == (usage if version >= 4 else [])
        ended = rig.found("b-2")
        assert ended is not None and ended.state == "done" and ended.event is not None
        assert rig.add(row("b-3")).problem == ""
    assert schema_of(tmp_path) == schema.VERSION


def test_a_later_schema_is_reached_step_by_step_and_a_step_that_fails_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With steps that this version does not have: the next one's author finds the road tried."""
    left_by(1, tmp_path)
    steps = (*schema._STEPS[:1], ("ALTER TABLE jobs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",))
    bad = (*steps, ("CREATE TABLE more (seq INTEGER)", "INSERT INTO nowhere VALUES (1)"))
    monkeypatch.setattr(schema, "_STEPS", bad)
    monkeypatch.setattr(schema, "VERSION", 3)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        schema.connect(tmp_path / "journal.db", 1.0)
    assert schema_of(tmp_path) == 2, "the step before it is done, and it is not half done"
    connection = sqlite3.connect(tmp_path / "journal.db")
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    connection.close()
    monkeypatch.setattr(schema, "_STEPS", (*steps, ("CREATE TABLE more (seq INTEGER)",)))
    connection = schema.connect(tmp_path / "journal.db", 1.0)
    assert connection.execute("SELECT job, colour FROM jobs ORDER BY seq").fetchall() == [
        ("b-1", "red"),
        ("b-2", "red"),
    ]
    connection.close()
    assert schema_of(tmp_path) == 3


def test_usage_is_added_up_over_daemons_and_days_that_are_too_old_go(tmp_path: Path) -> None:
    one = inputs.Spoken(1, 5, 0.5)
    for day in (1, 2, 2):
        with Rig(tmp_path) as rig:
            rig.journal.keep_usage(effects.KeepUsage([inputs.UsageRow("uid:1", day, one)], day))
    with Rig(tmp_path) as rig:
        assert rig.opened.usage == [inputs.UsageRow("uid:1", 2, inputs.Spoken(2, 10, 1.0))]
