"""Scripted daemons for the tests of the clients and of the command line."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtts.protocol import codec, events
from glmtts.protocol.requests import Request

from .scripted_daemon import Answers, Publisher, ScriptedDaemon, op_of


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    peer = ScriptedDaemon(tmp_path / "glmtts.sock", codec.decode_request)
    yield peer
    peer.close()


@pytest.fixture
def control_daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    peer = ScriptedDaemon(tmp_path / "control.sock", codec.decode_control)
    yield peer
    peer.close()


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """The events socket beside the scripted daemon's."""
    made = Publisher(tmp_path / "events.sock")
    yield made
    made.close()


@pytest.fixture
def answers(control_daemon: ScriptedDaemon) -> Answers:
    """What the control socket answers, by op."""
    by_op: Answers = {}

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        answer = by_op.get(op_of(request), {})
        values = answer(request) if callable(answer) else answer
        daemon.send(peer, events.Result(id=request.id, values=values))

    control_daemon.script = script
    return by_op


@pytest.fixture
def no_daemon(tmp_path: Path) -> str:
    """An endpoint whose socket was left behind by a daemon that has ended."""
    path = tmp_path / "gone.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    return f"ipc://{path}"
