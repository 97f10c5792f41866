"""A worker in an interpreter of the user's: what is wrong with that is the last thing that it says, on one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glmtts.daemon.config import parse
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.processes.command import command, environment
from glmtts.protocol import exit_codes

#: Interpreters too old for a worker, where a machine has some beside its own.
OLD = [
    path
    for folder in (Path("/usr/bin"), *Path("~/.pyenv/versions").expanduser().glob("*/bin"))
    for version in ("2.7", "3.6", "3.8", "3.9", "3.10")
    if os.access(path := folder / f"python{version}", os.X_OK)
]


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def last_words(interpreter: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GLMTTS_WORKER"}
    done = subprocess.run(
        command(interpreter), capture_output=True, text=True, timeout=30, check=False, cwd="/", env=environment
    )
    assert done.returncode == exit_codes.INTERPRETER, done.stderr
    return done.stderr.splitlines()[-1]


def test_an_interpreter_without_the_packages_says_the_line_that_installs_them(tmp_path: Path) -> None:
    bare = script(tmp_path / "python", f'exec {sys.executable} -I -S "$@"')
    words = last_words(bare)
    assert f"{sys.executable} is Python {sys.version.split()[0]}, " in words
    assert "-m pip install pyzmq msgpack msgspec numpy soundfile soxr" in words


def test_a_broken_package_is_reported_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "zmq.py").write_text('raise ImportError("libzmq.so.5: wrong ELF class")')
    broken = script(tmp_path / "python", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    words = last_words(broken)
    assert "libzmq.so.5: wrong ELF class" in words and "-m pip install" in words


@pytest.mark.skipif(not OLD, reason="this machine has no old Python")
@pytest.mark.parametrize("interpreter", OLD, ids=str)
def test_a_python_that_is_too_old_says_so_and_no_traceback(interpreter: Path) -> None:
    words = last_words(str(interpreter))
    assert "a worker needs 3.11 or later; set [engine] python to another" in words and str(interpreter) in words


def test_a_good_interpreter_comes_as_far_as_the_worker() -> None:
    # The same program by another name, as an environment of the engine's own is.
    environment = {name: value for name, value in os.environ.items() if name != "GLMTTS_WORKER"}
    done = subprocess.run(
        [sys.executable, *command("/opt/engine/bin/python")[1:]],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
        env=environment,
    )
    assert done.returncode == exit_codes.USAGE and "glmttsd starts the workers" in done.stderr


def test_a_worker_gets_a_home_folder_where_its_user_has_none_and_no_library_path_of_another_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setenv("STATE_DIRECTORY", "/srv/state")
    monkeypatch.setenv("PYTHONHOME", "/usr/lib/another")
    made = environment(parse('[engine]\npython = "/bin/sh"'), {}, "boot", None)
    assert made["HOME"] == os.environ["HOME"] and "PYTHONHOME" not in made
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    made = environment(Settings(), {}, "boot", None)
    assert made["HOME"] == "/srv/state/cache" and made["PYTHONHOME"] == "/usr/lib/another"
