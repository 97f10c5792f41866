"""The command line against a scripted daemon; both sockets of it where a command needs them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glmtts.client.cli import main
from glmtts.client.cli.ui.output import ESCAPES

Ctl = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_endpoint_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_ENDPOINT", "GLMTTS_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ctl(daemon: Any) -> Ctl:
    """Calls glmttsctl with the scripted daemon's endpoint."""

    def call(*arguments: object, **extra: Any) -> Result:
        return CliRunner().invoke(main, ["--endpoint", daemon.endpoint, *map(str, arguments)], **extra)

    return call


@pytest.fixture
def on_terminal(daemon: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls glmttsctl with a terminal for its standard output; what it wrote there is in ``stdout``."""

    def call(*arguments: str, width: int = 80, height: int = 24) -> subprocess.CompletedProcess[str]:
        code = "from glmtts.client.cli import main; main()"
        command = [sys.executable, "-c", code, *arguments, "--endpoint", daemon.endpoint]
        environment = os.environ | {"COLUMNS": str(width), "LINES": str(height), "NO_COLOR": "1", "TERM": "xterm"}
        outer, inner = pty.openpty()
        try:
            with subprocess.Popen(command, stdout=inner, stderr=subprocess.PIPE, env=environment) as process:
                os.close(inner)
                shown = b""
                # At its end a read fails, since nobody has the other side any more.
                with contextlib.suppress(OSError):
                    while read := os.read(outer, 65_536):
                        shown += read
                _, errors = process.communicate(timeout=30)
        finally:
            os.close(outer)
        text = ESCAPES.sub("", shown.decode()).replace("\r\n", "\n")
        return subprocess.CompletedProcess(command, process.returncode, text, errors.decode())

    return call


def answer(result: Result) -> Any:
    """What the command printed as JSON."""
    return json.loads(result.stdout)
