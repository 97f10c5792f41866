"""daemon/outputs.py: a file is there whole, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmtts.daemon import outputs
from glmtts.daemon.outputs import OutputExistsError, OutputFailedError, check_absent, sweep_temporaries, write_new


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_with_nothing_beside_it(tmp_path: Path) -> None:
    write_new(tmp_path / "你好.wav", b"speech")
    assert (tmp_path / "你好.wav").read_bytes() == b"speech" and names(tmp_path) == ["你好.wav"]


def test_a_file_has_the_permissions_that_the_daemon_s_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a.wav", b"")
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
    for attempt in (lambda: check_absent(path), lambda: write_new(path, b"new")):
        with pytest.raises(OutputExistsError, match=r"a\.wav exists already"):
            attempt()
    assert names(tmp_path) == ["a.wav"]
    assert kind != "file" or path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["..", ".hidden", "a\0b", "x" * 201])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputFailedError):
        write_new(tmp_path / name, b"x")
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputFailedError, match=r"nowhere does not exist; see \[audio\] outputs"):
        write_new(tmp_path / "nowhere" / "a.wav", b"x")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails the write half-way, as a full disk does; the words are checked for both."""
    program = (
        "import sys, signal, resource; from pathlib import Path; from glmtts.daemon import outputs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: outputs.write_new(Path(sys.argv[1]), bytes(1 << 20))\n"
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
        write_new(tmp_path / "a.wav", b"x")


def test_leftovers_of_a_writer_that_was_killed_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from glmtts.daemon import outputs\n"
        "outputs.os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "outputs.write_new(Path(sys.argv[1]), b'half')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.wav")], check=False)
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].startswith(outputs.TEMPORARY_PREFIX)
    living = tmp_path / f"{outputs.TEMPORARY_PREFIX}{os.getpid()}-{outputs.started(os.getpid())}-0"
    reused_pid = tmp_path / f"{outputs.TEMPORARY_PREFIX}{os.getpid()}-1-0"
    strange = tmp_path / f"{outputs.TEMPORARY_PREFIX}x"
    speech = tmp_path / "speech.wav"
    for path in (living, reused_pid, strange, speech):
        path.write_bytes(b"")
    assert sweep_temporaries(tmp_path) == 3
    assert names(tmp_path) == [living.name, speech.name]
    assert sweep_temporaries(tmp_path / "nowhere") == 0


def test_writing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    write_new(tmp_path / "a.wav", b"x")
    with pytest.raises(OutputExistsError):
        write_new(tmp_path / "a.wav", b"x")
    assert len(names(Path("/proc/self/fd"))) == before
