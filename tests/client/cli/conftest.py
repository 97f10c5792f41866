"""The command line against a scripted daemon: in this process, or in one of its own with a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from typing import Protocol

import pytest
from click.testing import CliRunner, Result

from glmtts.client.cli import main
from glmtts.client.cli.ui.wrap import ESCAPES

from ..scripted_daemon import ScriptedDaemon

GLMTTSCTL = [sys.executable, "-c", "from glmtts.client.cli import main; main()"]


class Ctl(Protocol):
    """Calls glmttsctl with the scripted daemon's endpoint."""

    def __call__(self, *arguments: object, input: str | None = None) -> Result: ...


class OnTerminal(Protocol):
    """Calls glmttsctl with a terminal for one of its streams, whose text is in ``stdout``; the other is a pipe."""

    def __call__(
        self, *arguments: str, width: int = 80, height: int = 24, stream: str = "stdout"
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(autouse=True)
def no_endpoint_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_ENDPOINT", "GLMTTS_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ctl(daemon: ScriptedDaemon) -> Ctl:
    def call(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--endpoint", daemon.endpoint, *map(str, arguments)], input=input)

    return call


@pytest.fixture
def on_terminal(daemon: ScriptedDaemon) -> OnTerminal:
    def call(
        *arguments: str, width: int = 80, height: int = 24, stream: str = "stdout"
    ) -> subprocess.CompletedProcess[str]:
        command = [*GLMTTSCTL, *arguments, "--endpoint", daemon.endpoint]
        environment = os.environ | {"COLUMNS": str(width), "LINES": str(height), "NO_COLOR": "1", "TERM": "xterm"}
        outer, inner = pty.openpty()
        try:
            stdout, stderr = (inner if name == stream else subprocess.PIPE for name in ("stdout", "stderr"))
            with subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr) as process:
                os.close(inner)
                shown = b""
                # Reading fails once the command has closed the other side.
                with contextlib.suppress(OSError):
                    while read := os.read(outer, 65_536):
                        shown += read
                out, errors = process.communicate(timeout=30)
        finally:
            os.close(outer)
        text = ESCAPES.sub("", shown.decode()).replace("\r\n", "\n")
        return subprocess.CompletedProcess(command, process.returncode, text, (errors or out or b"").decode())

    return call
