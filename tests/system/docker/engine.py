"""A Docker engine of the tests' own, and commands for it. Nothing of it outlives `close`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_START_S, _END_S = 30.0, 20.0
PATIENCE_S = 30.0


class NoEngineError(Exception):
    """Why there is no Docker engine here."""


class Engine:
    """Its images, containers and volumes are in a folder of its own: those of the machine's engine are not touched."""

    def __init__(self) -> None:
        """Start it. Raises NoEngineError."""
        self._client = _client()
        self._folder = Path(tempfile.mkdtemp(prefix="glmtts-docker-"))
        self._host = f"unix://{self._folder}/docker.sock"
        log = self._folder / "log"
        with log.open("wb") as output:
            # No bridge, and no rules for the machine's packets: containers here have no network at all.
            self._process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig=TERM", "dockerd", f"--host={self._host}", f"--pidfile={self._folder}/pid",
                    f"--data-root={self._folder}/data", f"--exec-root={self._folder}/exec",
                    "--bridge=none", "--iptables=false", "--ip6tables=false",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while self.run("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-1_000:]
                self.close()
                raise NoEngineError(f"dockerd does not start: {said}")
            time.sleep(0.1)

    def close(self) -> None:
        """End it with its containers, and remove every trace."""
        if self._process.poll() is None:
            for container in self.run("ps", "--quiet", check=False).stdout.split():
                self.run("kill", container, check=False)
        for ask in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(ask)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self, *command: str, check: bool = True, timeout: float = PATIENCE_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker ...`."""
        done = subprocess.run(
            [self._client, "--host", self._host, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | {"DOCKER_BUILDKIT": "1"},
            **options,
        )
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *options: str, image: str, command: tuple[str, ...] = ()) -> Contained:
        """A container that runs in the background."""
        return Contained(self, self.run("run", "--detach", *options, image, *command).stdout.strip())


class Contained:
    """A container that was started."""

    def __init__(self, engine: Engine, id: str) -> None:
        self._engine = engine
        self.id = id

    def run(self, *command: str, check: bool = True, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._engine.run("exec", *(["--user", user] if user else []), self.id, *command, check=check)

    def inspect(self) -> Any:
        """Its state, as `docker inspect` tells it."""
        return json.loads(self._engine.run("inspect", self.id).stdout)[0]["State"]

    def log(self) -> str:
        done = self._engine.run("logs", self.id)
        return done.stdout + done.stderr

    def processes(self) -> list[str]:
        """The state and the command line of each process of it."""
        return self._engine.run("top", self.id, "-eo", "stat,pid,args").stdout.splitlines()[1:]

    def until(self, condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Ask until it is so."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience_s} s: {what}\n{self.inspect()}\n{self.log()[-4_000:]}")
            time.sleep(0.05)


def _client() -> str:
    """A client that can build with BuildKit: the later ones can't without their plugin. Raises NoEngineError."""
    for folder in os.get_exec_path():
        if client := shutil.which("docker", path=folder):
            version = subprocess.run([client, "--version"], capture_output=True, text=True, check=False, timeout=10)
            plugin = subprocess.run([client, "buildx", "version"], capture_output=True, check=False, timeout=10)
            major = re.search(r"version (\d+)\.", version.stdout)
            if plugin.returncode == 0 or (major and int(major[1]) < 23):
                return client
    raise NoEngineError("no docker client that can build with BuildKit: apt-get install docker.io")
