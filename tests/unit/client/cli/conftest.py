"""The command line against a scripted daemon; both sockets of it where a command needs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glmtts.client.cli import main

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


def answer(result: Result) -> Any:
    """What the command printed as JSON."""
    return json.loads(result.stdout)
