"""A bookworm with systemd and Python, and wheels to build and install the project in it; kept in .container."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".container"
_PROJECT = ROOT / "pyproject.toml"

_SUITE, _PYTHON = "bookworm", "3.11"
_PACKAGES = ("systemd", "systemd-sysv", "python3", "python3-venv")
#: Where the programs are that these tests need.
_DEBIAN = "debootstrap systemd-container util-linux docker.io"
_DEBOOTSTRAP_S, _PIP_S = 400, 240


class NoImageError(Exception):
    """Why a container can't be made here."""


def requirements(*programs: str) -> None:
    """Raise NoImageError where one of ``programs`` is not there, or debootstrap, or root's rights."""
    if os.geteuid() != 0:
        raise NoImageError("only root may run a container")
    if missing := [name for name in ("debootstrap", *programs) if not shutil.which(name)]:
        raise NoImageError(f"{', '.join(missing)} not found: apt-get install {_DEBIAN}")


def system() -> Path:
    """The folder of the system, which is read only by agreement. Raises NoImageError."""
    folder = CACHE / f"{_SUITE}-{'-'.join(_PACKAGES)}"
    with _alone():
        if folder.is_dir():
            return folder
        unfinished = CACHE / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(unfinished)],
            _DEBOOTSTRAP_S,
        )
        unfinished.rename(folder)
    return folder


def wheels() -> Path:
    """A folder with the wheel of this checkout and those of what it and its building need. Raises NoImageError."""
    folder = CACHE / "wheels"
    with _alone(), _source() as source:
        for old in folder.glob("glmtts_supervisor-*"):
            old.unlink()
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        built = source.parent / "built"
        _run([*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={built}", str(source)], _PIP_S)
        (wheel,) = built.iterdir()
        # Of the Python in the container, whichever this one is.
        _run(
            [*pip, "download", "--only-binary=:all:", f"--python-version={_PYTHON}", f"--find-links={folder}",
             f"--dest={folder}", f"{wheel}[espeak,gateway]",
             *tomllib.loads(_PROJECT.read_text())["build-system"]["requires"]],
            _PIP_S,
        )  # fmt: skip
    return folder


@contextmanager
def _source() -> Iterator[Path]:
    """A copy of the checkout: setuptools would put its build folder into it."""
    with tempfile.TemporaryDirectory(prefix="glmtts-source-") as folder:
        source = Path(folder) / "source"
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, map(os.fsdecode, listed.stdout.split(b"\0"))):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
        yield source


@contextmanager
def _alone() -> Iterator[None]:
    """Two runs in one checkout don't make it at the same time."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise NoImageError(f"{command[0]} has not ended within {timeout_s} s") from None
    if done.returncode:
        raise NoImageError(f"{' '.join(command)}: status {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}")
