"""Outputs and results: a file is complete, or it does not exist."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmtts.daemon.storage.outputs import (
    MARK_PREFIX,
    TEMPORARY_PREFIX,
    OutputExistsError,
    OutputFailedError,
    check_absent,
    delivered,
    instance_of,
    replace,
    settle,
    sweep,
    write_new,
)

INSTANCE = "0123ab"
JOB = f"{INSTANCE}cd-1"
MARK = f"{MARK_PREFIX}{JOB}"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_has_the_permissions_that_the_daemon_s_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a.wav", b"", JOB)
    finally:
        os.umask(before)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    for attempt in (lambda: check_absent(path), lambda: write_new(path, b"new", JOB)):
        with pytest.raises(OutputExistsError, match=r"a\.wav exists already"):
            attempt()
    assert names(tmp_path) == ["a.wav"]
    assert kind != "file" or path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["..", ".hidden", "a\0b", "x" * 201])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputFailedError):
        write_new(tmp_path / name, b"x", JOB)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails the write half-way, as a full disk does."""
    program = (
        "import sys, signal, resource; from pathlib import Path; from glmtts.daemon.storage import outputs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: outputs.write_new(Path(sys.argv[1]), bytes(1 << 20), '0-1')\n"
        "except outputs.OutputFailedError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "limit on file sizes" in done.stdout and names(tmp_path) == []


# --- an attempt that died, and the next one at the same job

#: Ends the process with SIGKILL in a call of os, before or after it is done.
KILLED = """
import os, sys
from pathlib import Path
from glmtts.daemon.storage import outputs
path, call, count, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
real, calls = getattr(os, call), 0
def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == count and when == "before":
        os.kill(os.getpid(), 9)
    result = real(*args, **kwargs)
    if calls == count:
        os.kill(os.getpid(), 9)
    return result
setattr(os, call, deadly)
outputs.write_new(path, b"first attempt", "0123abcd-1")
"""


def killed(path: Path, call: str, count: int, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), call, str(count), when], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("call", "count", "when", "is_there"),
    [
        ("write", 1, "before", False),
        ("write", 1, "after", False),
        ("fsync", 1, "before", False),
        ("fsync", 1, "after", False),
        ("rename", 1, "before", False),
        ("rename", 1, "after", False),
        ("link", 1, "before", False),
        ("link", 1, "after", True),
        ("fsync", 2, "before", True),
        ("fsync", 2, "after", True),
    ],
)
def test_wherever_an_attempt_is_killed_the_next_one_delivers_one_complete_file(
    tmp_path: Path, call: str, count: int, when: str, is_there: bool
) -> None:
    path = tmp_path / "a.wav"
    killed(path, call, count, when)
    assert path.exists() == is_there
    sweep(tmp_path, {JOB}, INSTANCE)
    assert delivered(path, JOB) == (b"first attempt" if is_there else None)
    expected = b"first attempt" if is_there else b"second attempt"
    assert write_new(path, b"second attempt", JOB) == expected
    assert path.read_bytes() == expected and names(tmp_path) == [MARK, "a.wav"]
    settle(path, JOB)
    assert names(tmp_path) == ["a.wav"] and path.stat().st_nlink == 1


def test_the_file_of_another_job_is_not_mistaken_for_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_new(path, b"theirs", "0123abcd-2")
    assert delivered(path, JOB) is None
    with pytest.raises(OutputExistsError):
        write_new(path, b"ours", JOB)
    assert path.read_bytes() == b"theirs" and names(tmp_path) == [f"{MARK_PREFIX}0123abcd-2", "a.wav"]


def test_a_file_that_replaced_ones_own_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_new(path, b"ours", JOB)
    path.unlink()
    path.write_bytes(b"ours")
    with pytest.raises(OutputExistsError):
        write_new(path, b"ours", JOB)
    assert names(tmp_path) == ["a.wav"]
    path.unlink()
    path.symlink_to(tmp_path / MARK)
    (tmp_path / MARK).write_bytes(b"")
    assert delivered(path, JOB) is None


def test_the_partial_file_of_an_earlier_attempt_makes_room_before_the_next_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path / "a.wav", "link", 1, "before")
    there: list[list[str]] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        there.append(names(tmp_path))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    write_new(tmp_path / "a.wav", b"second attempt", JOB)
    assert len(there[0]) == 1 and there[0][0].startswith(TEMPORARY_PREFIX)


@pytest.mark.parametrize("job", ["", "..", "../0-1", "0-1/x", "0-1\n", "G-1", "0", "0-1" + "0" * 20])
def test_a_text_that_is_not_a_jobs_id_is_never_a_part_of_a_path(tmp_path: Path, job: str) -> None:
    attempts: list[Callable[[Path, str], object]] = [delivered, settle, lambda path, job: write_new(path, b"x", job)]
    for attempt in attempts:
        with pytest.raises(ValueError, match="not a job's id"):
            attempt(tmp_path / "a.wav", job)
    assert names(tmp_path) == []


def test_a_start_removes_what_its_own_instance_left_and_nothing_else(tmp_path: Path) -> None:
    """Several daemons may write in one folder, in containers that do not see each other's processes."""
    killed(tmp_path / "a.wav", "fsync", 1, "before")
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(TEMPORARY_PREFIX)
    of_others = f"{INSTANCE[::-1]}00-7"
    for job in (JOB, f"{INSTANCE}cd-2", f"{INSTANCE}cd-3", of_others):
        write_new(tmp_path / f"{job}.wav", b"x", job)
    strange = [f"{MARK_PREFIX}strange", f"{TEMPORARY_PREFIX}x", f"{TEMPORARY_PREFIX}{of_others}-1"]
    for name in strange:
        (tmp_path / name).write_bytes(b"")
    assert sweep(tmp_path, {JOB, f"{INSTANCE}cd-3"}, INSTANCE) == 2
    speech = [f"{job}.wav" for job in (JOB, f"{INSTANCE}cd-2", f"{INSTANCE}cd-3", of_others)]
    marks = [f"{MARK_PREFIX}{job}" for job in (JOB, f"{INSTANCE}cd-3", of_others)]
    assert names(tmp_path) == sorted([*strange, *speech, *marks])
    assert sweep(tmp_path / "nowhere", set(), INSTANCE) == 0


def test_an_instance_keeps_its_name(tmp_path: Path) -> None:
    name = instance_of(tmp_path)
    assert instance_of(tmp_path) == name != instance_of(tmp_path / "nowhere")
    (tmp_path / "instance").unlink()
    (tmp_path / "instance").symlink_to("/dev/zero")
    assert len(instance_of(tmp_path)) == 6


@pytest.mark.parametrize("forged", ["a device", "a pipe", "a secret", "a second name of a secret"])
def test_a_forged_mark_proves_nothing(tmp_path: Path, forged: str) -> None:
    """Other users may write in the folder: a mark that they make is no sign that the job has spoken."""
    secret, path = tmp_path / "secret", tmp_path / "a.wav"
    secret.write_bytes(b"private")
    match forged:
        case "a device":
            path.symlink_to("/dev/zero")
        case "a pipe":
            os.mkfifo(path)
        case "a secret":
            path.symlink_to(secret)
        case _:
            os.link(secret, path)
    os.link(path, tmp_path / MARK, follow_symlinks=False)
    assert delivered(path, JOB) is None
    with pytest.raises(OutputExistsError):
        write_new(path, b"speech", JOB)
    assert secret.read_bytes() == b"private"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_file_of_another_user_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_new(path, b"theirs", JOB)
    os.chown(path, 65_534, -1)
    assert delivered(path, JOB) is None


def test_writing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    write_new(tmp_path / "a.wav", b"x", JOB)
    with pytest.raises(OutputExistsError):
        write_new(tmp_path / "a.wav", b"x", "0123abcd-2")
    replace(tmp_path / "b.wav", b"x")
    assert len(names(Path("/proc/self/fd"))) == before


@pytest.mark.parametrize("write", [lambda path: write_new(path, b"x", JOB), lambda path: replace(path, b"x")])
@pytest.mark.parametrize(
    ("call", "count", "number", "words"),
    [
        ("fsync", 1, errno.EIO, "an error|Input/output"),
        ("fsync", 2, errno.ENOSPC, "disk is full; free some space in|No space"),
        ("rename", 1, errno.ENOSPC, "disk is full|No space"),
        ("open", 1, errno.ENOENT, "does not exist; see .audio. outputs|No such"),
        ("open", 1, errno.EACCES, "may not write in|Permission denied"),
    ],
)
def test_a_write_that_fails_leaves_nothing_and_is_explained(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], object],
    call: str,
    count: int,
    number: int,
    words: str,
) -> None:
    real, calls = getattr(os, call), 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises((OutputFailedError, OSError), match=words):
            write(tmp_path / "a.wav")
    assert calls >= count and names(tmp_path) == []
    write(tmp_path / "a.wav")


def test_a_result_replaces_the_one_of_an_earlier_attempt_and_settling_twice_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "0123abcd-1.wav"
    replace(path, b"first")
    replace(path, b"second")
    for _ in range(2):
        settle(path, JOB)
        settle(tmp_path / "nowhere" / "a.wav", JOB)
    assert path.read_bytes() == b"second" and names(tmp_path) == [path.name]


def test_a_folder_that_became_a_file_is_named_before_anything_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    with pytest.raises(OutputFailedError, match="outputs is not a folder; see"):
        check_absent(tmp_path / "outputs" / "a.wav")


def test_a_folder_that_became_another_user_s_is_named_before_anything_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "lstat", refuse)
    monkeypatch.setattr(Path, "stat", lambda path, **_: refuse(path))
    with pytest.raises(OutputFailedError, match="the daemon's user may not write in"):
        check_absent(tmp_path / "a.wav")
