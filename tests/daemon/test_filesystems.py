"""A state folder on the network is recognised before SQLite meets it, and errors of locks lead to a local disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from glmtts.daemon.config import parse
from glmtts.daemon.doctor import files
from glmtts.daemon.storage import filesystems
from glmtts.daemon.storage.problems import explain

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:50 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/local rw - xfs /dev/sdb1 rw
32 21 0:51 / /mnt/two\\040words rw - fuse.sshfs me@host: rw
33 21 0:52 / /mnt/c rw - 9p drvfs rw
34 21 0:53 / /over rw - ext4 /dev/sdc1 rw
35 21 0:54 / /over rw - cifs //server/share rw
36 21 0:55 / /homes rw - ext4 /dev/sdd1 rw
damaged
"""


@pytest.fixture(autouse=True)
def _mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    monkeypatch.setattr(filesystems, "_MOUNTS", table)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/.local/state/glmtts", "nfs4"),
        ("/home", "nfs4"),
        ("/home/local/x", ""),
        ("/homes/me", ""),
        ("/mnt/two words/x", "fuse.sshfs"),
        ("/mnt/c/Users", "9p"),
        ("/over/x", "cifs"),
        ("/var/lib/glmtts", ""),
    ],
)
def test_the_mount_that_a_folder_is_on_decides(path: str, kind: str) -> None:
    assert filesystems.network_filesystem(Path(path)) == kind


def test_the_doctor_names_a_state_folder_on_the_network() -> None:
    settings = parse('[daemon]\nstate_dir = "/home/me/state"')
    found = [check for check in files.state(settings) if check.state == "warning" and "network" in check.seen]
    assert [check.seen for check in found] == ["/home/me/state: on the network (nfs4)"]
    assert "local disk" in found[0].mend
    assert len(files.state(parse('[daemon]\nstate_dir = "/homes/state"'))) == 1


def sqlite(code: int, name: str, words: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error


@pytest.mark.parametrize(
    "error",
    [
        sqlite(15, "SQLITE_PROTOCOL", "locking protocol"),
        sqlite(3850, "SQLITE_IOERR_LOCK", "disk I/O error"),
        sqlite(2058, "SQLITE_IOERR_UNLOCK", "disk I/O error"),
        sqlite(5386, "SQLITE_IOERR_SHMMAP", "disk I/O error"),
        sqlite(4618, "SQLITE_IOERR_SHMOPEN", "disk I/O error"),
        sqlite(22, "SQLITE_NOLFS", "large file support is disabled"),
        OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    ],
)
def test_errors_of_locks_lead_to_a_local_disk(error: Exception, tmp_path: Path) -> None:
    words = explain(error, tmp_path / "journal.db")
    assert "the journal can't be locked" in words
    assert "take one on a local disk for the daemon's state ([daemon] state_dir)" in words
    assert "report it" not in words and "smartctl" not in words


def test_an_error_of_reading_on_the_network_blames_the_server_and_not_a_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("glmtts.daemon.storage.problems.network_filesystem", lambda _: "nfs4")
    words = explain(sqlite(10, "SQLITE_IOERR", "disk I/O error"), tmp_path / "journal.db")
    assert "on the network (nfs4)" in words
    assert "smartctl" not in words
    assert "nfs4" in explain(sqlite(5, "SQLITE_BUSY", "database is locked"), tmp_path / "journal.db")
