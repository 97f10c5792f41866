"""A library in C that was taken over can do little: the kernel refuses a confined process almost everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from glmtts.daemon import confinement

#: Confines itself, tries everything, and prints which attempts succeeded.
_TRY = """
import json, os, resource, signal, socket, sys, threading
from pathlib import Path
sys.path.remove("")
from glmtts.daemon import confinement
from glmtts.daemon.storage import outputs
work = Path(sys.argv[1])
confined = confinement.confine_files(write=[work / "results"], read_write=[work / "outputs"])
lacking = [confined.lacking, confinement.confine_calls()]
found = {}
def attempt(name, call):
    try:
        call()
        found[name] = True
    except OSError as error:
        found[name] = False
attempt("write an output", lambda: outputs.write_new(work / "outputs/a.wav", b"x", "0-1"))
attempt("deliver it again", lambda: outputs.delivered(work / "outputs/a.wav", "0-1"))
attempt("settle it", lambda: outputs.settle(work / "outputs/a.wav", "0-1"))
attempt("write a result", lambda: outputs.replace(work / "results/1.wav", b"x"))
attempt("import", lambda: __import__("numpy"))
attempt("start a thread", lambda: threading.Thread(target=int).start())
attempt("signal oneself", lambda: signal.pthread_kill(threading.get_ident(), 0))
attempt("read a result", lambda: (work / "results/others.wav").read_bytes())
attempt("read the journal", lambda: (work / "journal.db").read_bytes())
attempt("write the journal", lambda: (work / "journal.db").write_bytes(b""))
attempt("open the journal to all", lambda: (work / "journal.db").chmod(0o777))
attempt("read users", lambda: Path("/etc/passwd").read_bytes())
attempt("list processes", lambda: os.listdir("/proc"))
attempt("make a socket", lambda: socket.socket(socket.AF_UNIX))
attempt("start a program", lambda: os.execv("/bin/true", ["true"]))
attempt("signal the daemon", lambda: os.kill(os.getppid(), 0))
attempt("limit the daemon", lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE))
print(json.dumps([lacking, found]))
"""
_MAY = {
    *("write an output", "deliver it again", "settle it", "write a result", "import", "start a thread"),
    "signal oneself",
}

needs_landlock = pytest.mark.skipif(not confinement.landlock_abi(), reason="this kernel has no Landlock, or it is off")
needs_filters = pytest.mark.skipif(not confinement.has_filters(), reason="this kernel has no filter of system calls")


@needs_landlock
@needs_filters
def test_a_confined_process_can_do_its_work_and_nothing_else(tmp_path: Path) -> None:
    for name in ("results/others.wav", "journal.db", "outputs/others.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"private")
    command = [sys.executable, "-c", _TRY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    lacking, found = json.loads(done.stdout)
    assert lacking == ["", ""]
    assert {name for name, worked in found.items() if worked} == _MAY
    assert (tmp_path / "journal.db").read_bytes() == b"private"


def test_a_kernel_without_it_leaves_the_process_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "landlock_abi", lambda: 0)
    confined = confinement.confine_files(write=[tmp_path])
    assert "Landlock" in confined.lacking and not confined.has_lost(tmp_path)
    assert Path("/etc/passwd").read_bytes()
    monkeypatch.setattr("platform.machine", lambda: "vax")
    assert "vax" in confinement.confine_calls() and not confinement.has_filters()
    os.close(os.open("/etc/passwd", os.O_RDONLY))


@needs_filters
def test_the_decoder_of_recordings_is_confined(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(b"\1\7\xff\xf8" * 16_000)
    program = (
        "from glmtts.daemon.storage import recordings\n"
        "status = recordings.main([])\n"
        "from pathlib import Path\n"
        "print(status, [line for line in Path('/proc/self/status').read_text().splitlines() if 'Seccomp:' in line])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=(tmp_path / "a.wav").read_bytes(), capture_output=True, check=True
    )
    assert b'"seconds": 2.0' in done.stdout and b"0 ['Seccomp:\\t2']" in done.stdout, done
