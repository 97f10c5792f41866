"""The configuration of the running daemon, and the daemon's code that reads configurations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import NamedTuple

from .session import Session

#: More than the daemon's checks take when all of them hang.
_START_TIMEOUT_S = 40.0


class LiveConfig(NamedTuple):
    """``file`` is the daemon's configuration by its absolute path, empty for the built-in defaults.

    ``state_dir`` is its state folder, which may come from its environment.
    """

    file: str
    state_dir: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the daemon's code in another process finds the same state folder."""
        return {"STATE_DIRECTORY": self.state_dir} if self.state_dir else {}


def live_config(run: Session, timeout_s: float) -> LiveConfig:
    """Ask the daemon. Raises GlmttsError."""
    answer = run.ask("config", timeout=timeout_s)
    return LiveConfig(str(answer.get("file") or ""), str(answer.get("state_dir") or ""))


def start_checks(file: str) -> list[dict[str, str]]:
    """What a daemon that starts with this configuration would find of the engine and the state folder.

    Empty where the daemon's code can't say it; the caller has found by :func:`daemon_config` that it is there.
    """
    command = [sys.executable, "-m", "glmtts.daemon.doctor", "--start", "--config", file]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_START_TIMEOUT_S)
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return []
    return found if isinstance(found, list) else []


def gateway_checks(file: str | None, *, settings_alone: bool = False) -> list[dict[str, str]]:
    """The findings of the HTTP gateway's code; none where there is no gateway.

    Args:
        settings_alone: only the section [gateway] is checked.
    """
    options = ["--settings"] if settings_alone else []
    command = [sys.executable, "-m", "glmtts.gateway.doctor", "--config", file or "", *options]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_START_TIMEOUT_S, check=False)
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        means = "its installation is damaged, or the machine is overloaded"
        remedy = "see the other checks, or install glmtts-supervisor[gateway] again"
        return [{"name": "gateway", "state": "warning", "seen": "can't be checked", "means": means, "mend": remedy}]
    return found if isinstance(found, list) else []


def daemon_config(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m glmtts.daemon.config``.

    The daemon's code is never imported by a client, which has to work where the daemon is not installed.
    """
    command = [sys.executable, "-m", "glmtts.daemon.config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (environment or {}))
