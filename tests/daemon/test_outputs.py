"""daemon/storage/outputs.py: a file is there whole, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glmtts.daemon.storage import outputs
from glmtts.daemon.storage.outputs import (
    MARK_PREFIX,
    OutputExistsError,
    OutputFailedError,
    check_absent,
    delivered,
    replace,
    settle,
    sweep,
    write_new,
)

JOB = "0123abcd-1"
MARK = f"{MARK_PREFIX}{JOB}"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_nothing_beside_it_once_it_is_settled(tmp_path: Path) -> None:
    write_new(tmp_path / "你好.wav", b"speech", JOB)
    assert names(tmp_path) == [MARK, "你好.wav"]
    settle(tmp_path / "你好.wav", JOB)
    assert (tmp_path / "你好.wav").read_bytes() == b"speech" and names(tmp_path) == ["你好.wav"]


def test_a_file_has_the_permissions_that_the_daemon_s_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a.wav", b"", JOB)
    finally:
        os.umask(before)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_there_is_never_replaced(tmp_path: Path, kind: str) -> None:
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
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputFailedError):
        write_new(tmp_path / name, b"x", JOB)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputFailedError, match=r"nowhere does not exist; see \[audio\] outputs"):
        write_new(tmp_path / "nowhere" / "a.wav", b"x", JOB)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails the write half-way, as a full disk does; the words are checked for both."""
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


def test_a_full_disk_is_told_in_plain_words() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("wb", buffering=0) as device, pytest.raises(OSError) as raised:
        device.write(b"x")
    assert "the disk is full; free some space in /speech" in outputs._explain(Path("/speech/a.wav"), raised.value)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputFailedError, match="may not write"):
        write_new(tmp_path / "a.wav", b"x", JOB)


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


def is_whole_or_absent(path: Path) -> bool:
    return not path.exists() or path.read_bytes() in {b"first attempt", b"second attempt"}


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
def test_wherever_an_attempt_is_killed_the_next_one_delivers_one_whole_file(
    tmp_path: Path, call: str, count: int, when: str, is_there: bool
) -> None:
    path = tmp_path / "a.wav"
    killed(path, call, count, when)
    assert path.exists() == is_there and is_whole_or_absent(path)
    sweep(tmp_path, {JOB})
    assert delivered(path, JOB) == (b"first attempt" if is_there else None)
    expected = b"first attempt" if is_there else b"second attempt"
    assert write_new(path, b"second attempt", JOB) == expected
    assert path.read_bytes() == expected and names(tmp_path) == [MARK, "a.wav"]
    settle(path, JOB)
    assert names(tmp_path) == ["a.wav"] and path.stat().st_nlink == 1


def test_a_file_of_another_job_is_not_taken_for_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_new(path, b"theirs", "0123abcd-2")
    assert delivered(path, JOB) is None
    with pytest.raises(OutputExistsError):
        write_new(path, b"ours", JOB)
    assert path.read_bytes() == b"theirs" and names(tmp_path) == [f"{MARK_PREFIX}0123abcd-2", "a.wav"]


def test_a_file_put_in_the_place_of_one_s_own_is_left_as_it_is(tmp_path: Path) -> None:
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


def test_the_mark_of_an_attempt_that_got_no_further_makes_room_before_the_next_one_writes(tmp_path: Path) -> None:
    killed(tmp_path / "a.wav", "link", 1, "before")
    path = tmp_path / "a.wav"
    seen: list[list[str]] = []
    real = outputs._write_synced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "_write_synced", lambda *args: (seen.append(names(tmp_path)), real(*args))[1])
        write_new(path, b"second attempt", JOB)
    assert seen == [[]] and path.read_bytes() == b"second attempt"


@pytest.mark.parametrize(("call", "count"), [("fsync", 1), ("rename", 1), ("link", 1), ("fsync", 2)])
def test_a_write_that_fails_leaves_neither_file_nor_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, count: int
) -> None:
    real, calls = getattr(os, call), []

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == count:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OutputFailedError, match="reports an error"):
            write_new(tmp_path / "a.wav", b"x", JOB)
    assert len(calls) >= count and names(tmp_path) == []
    write_new(tmp_path / "a.wav", b"x", JOB)


@pytest.mark.parametrize("job", ["", "..", "../0-1", "0-1/x", "0-1\n", "G-1", "0", "0-1" + "0" * 20])
def test_an_id_that_is_none_is_never_a_part_of_a_path(tmp_path: Path, job: str) -> None:
    for attempt in (
        lambda: write_new(tmp_path / "a.wav", b"x", job),
        lambda: delivered(tmp_path / "a.wav", job),
        lambda: settle(tmp_path / "a.wav", job),
    ):
        with pytest.raises(ValueError, match="no id of a job"):
            attempt()
    assert names(tmp_path) == []


def test_settling_twice_or_what_never_was_is_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        settle(tmp_path / "a.wav", JOB)
        settle(tmp_path / "nowhere" / "a.wav", JOB)


def test_leftovers_of_a_writer_that_was_killed_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    killed(tmp_path / "a.wav", "fsync", 1, "before")
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(outputs.TEMPORARY_PREFIX)
    living = tmp_path / f"{outputs.TEMPORARY_PREFIX}{os.getpid()}-{outputs.started(os.getpid())}-0"
    reused_pid = tmp_path / f"{outputs.TEMPORARY_PREFIX}{os.getpid()}-1-0"
    strange = tmp_path / f"{outputs.TEMPORARY_PREFIX}x"
    speech = tmp_path / "speech.wav"
    for path in (living, reused_pid, strange, speech):
        path.write_bytes(b"")
    assert sweep(tmp_path, set()) == 3
    assert names(tmp_path) == [living.name, speech.name]
    assert sweep(tmp_path / "nowhere", set()) == 0


def test_the_marks_of_jobs_that_live_on_stay_and_all_others_go(tmp_path: Path) -> None:
    for job in (JOB, "0123abcd-2", "0123abcd-3"):
        write_new(tmp_path / f"{job}.wav", b"x", job)
    (tmp_path / f"{MARK_PREFIX}strange").write_bytes(b"")
    assert sweep(tmp_path, {JOB, "0123abcd-3"}) == 2
    left = [f"{MARK_PREFIX}{JOB}", f"{MARK_PREFIX}0123abcd-3", *(f"0123abcd-{n}.wav" for n in (1, 2, 3))]
    assert names(tmp_path) == sorted(left)


# --- results


def test_a_result_takes_the_place_of_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    path = tmp_path / "0123abcd-1.wav"
    replace(path, b"first")
    replace(path, b"second")
    assert path.read_bytes() == b"second" and names(tmp_path) == [path.name]


@pytest.mark.parametrize(("call", "count"), [("fsync", 1), ("rename", 1), ("fsync", 2)])
def test_a_result_that_can_t_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, count: int
) -> None:
    real, calls = getattr(os, call), []

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == count:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="No space"):
        replace(tmp_path / "a.wav", b"x")
    assert names(tmp_path) == []


def test_writing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    write_new(tmp_path / "a.wav", b"x", JOB)
    with pytest.raises(OutputExistsError):
        write_new(tmp_path / "a.wav", b"x", "0123abcd-2")
    replace(tmp_path / "b.wav", b"x")
    assert len(names(Path("/proc/self/fd"))) == before
