"""Runs glmttsctl, as it is installed, on a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import Daemon

GLMTTSCTL = str(Path(sys.executable).with_name("glmttsctl"))


def environment(daemon: Daemon, **more: str) -> dict[str, str]:
    return os.environ | {"GLMTTS_ENDPOINT": daemon.endpoint, "NO_COLOR": "1"} | more


def ctl(daemon: Daemon, *arguments: object, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run it; ``more`` goes into its environment."""
    return subprocess.run(
        [GLMTTSCTL, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(daemon, **more),
    )


def told(daemon: Daemon, *arguments: object) -> str:
    """What a command that succeeds prints."""
    done = ctl(daemon, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answered(daemon: Daemon, *arguments: object) -> Any:
    """What a command that succeeds prints as JSON."""
    return json.loads(told(daemon, *arguments, "--json"))
