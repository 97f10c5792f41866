"""A root for the glmtts engine, workers and daemons that speak with it, and recordings to speak with."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..process.conftest import Daemon, daemons
from ..process.worker_under_test import Start, WorkerUnderTest, workers
from .stand_in import make_root
from .upstream_root import Root, interpreter

# On a machine that has other work, two threads wait for each other more than they help such small models.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


#: For one test, with all that it starts: with the stand-in, and of a large version or with real upstream.
_TIMEOUT_S, _LONG_TIMEOUT_S = 180, 1_800
_LONG = ("GLMTTS_ROOT", "GLMTTS_CROWD", "GLMTTS_JOBS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Torch alone takes seconds to import, and each worker does it anew."""
    timeout_s = _LONG_TIMEOUT_S if any(map(os.environ.get, _LONG)) else _TIMEOUT_S
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(timeout_s))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The root that GLMTTS_ROOT names, or a stand-in; of all processes of this run, one makes it."""
    # With xdist each process has a folder of its own in one that they share.
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    cache = shared / "cache"
    if given := os.environ.get("GLMTTS_ROOT"):
        return Root(Path(given).absolute(), interpreter(), cache, is_stand_in=False)
    folder = shared / "root"
    with (shared / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make_root(shared / "root-in-the-making", interpreter()).rename(folder)
    return Root(folder, interpreter(), cache, is_stand_in=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # On another file system.
        shutil.copy2(source, target)


@pytest.fixture
def own_root(root: Root, tmp_path: Path) -> Root:
    """A copy that the test may damage."""
    folder = tmp_path / "GLM-TTS"
    # Damage replaces files and never writes into them: links do, and a checkpoint of gigabytes may be on the other end.
    shutil.copytree(root.folder, folder, symlinks=True, copy_function=_link)
    return Root(folder, root.python, root.cache, root.is_stand_in)


@pytest.fixture
def stand_in(root: Root) -> Root:
    """For what only the stand-in does when it is told to."""
    if not root.is_stand_in:
        pytest.skip("real upstream does this when it likes, not when it is told to")
    return root


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers for one test."""
    with workers() as begin:
        yield begin


@pytest.fixture(scope="module")
def worker(root: Root) -> Iterator[WorkerUnderTest]:
    """One worker that a module's tests share: each finds it as the others have left it, as users do."""
    with workers() as begin:
        worker = begin(**root.worker())
        worker.ready()
        yield worker


def _speaking(start: Callable[..., Daemon], root: Root) -> Callable[..., Daemon]:
    """``start`` for daemons with this engine: ``settings`` are those of ``[engine.glmtts]``."""

    def begin(
        *,
        settings: dict[str, Any] | None = None,
        workers: dict[str, Any] | None = None,
        python: str = root.python,
        wait: bool = True,
        **rest: Any,
    ) -> Daemon:
        engine = {
            "name": "glmtts",
            "python": python,
            "warmup_text": "你好。",
            "glmtts": {"root": str(root.folder)} | (settings or {}),
        }
        given = {"start_timeout_s": root.patience_s} | (workers or {})
        daemon = start(wait=False, engine=engine, workers=given, **rest)
        if wait:
            daemon.until_ready(patience_s=root.patience_s)
        return daemon

    return begin


@pytest.fixture
def start_daemon(root: Root) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons for one test."""
    with daemons() as begin:
        yield _speaking(begin, root)


@pytest.fixture(scope="module")
def start_shared_daemon(root: Root) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that a module's tests share."""
    with daemons() as begin:
        yield _speaking(begin, root)
