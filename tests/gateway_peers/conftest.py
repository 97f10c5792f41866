"""A gateway with programs of others: clients that speak to it, and proxies before it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..process.conftest import Daemon, Start, start, start_shared
from ..support.gateways import Gateway

__all__ = ["start", "start_shared"]

#: Packages of the registry, at the major version that the tests were written for.
PACKAGES = ("axe-core@4", "openai@6", "ws@8")


@pytest.fixture(scope="module")
def daemon(start_shared: Start) -> Daemon:
    return start_shared()


@pytest.fixture(scope="module")
def gateway(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with contextlib.closing(Gateway(daemon, tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


def needs(program: str, package: str) -> str:
    """The path of a program; skips the test where it is not installed."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed (apt-get install {package})")
    return found


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the packages for Node, installed once and kept with the virtual environment."""
    npm = needs("npm", "nodejs npm")
    folder = Path(sys.prefix) / "node"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / f".has-{'-'.join(PACKAGES)}"
        if not stamp.exists():
            command = [npm, "install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", *PACKAGES]
            subprocess.run(command, cwd=folder, check=True, timeout=120)
            stamp.touch()
    return folder / "node_modules"
