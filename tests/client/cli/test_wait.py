"""`wait` fetches what a job has made, and throws nothing of it away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glmtts.protocol import events
from glmtts.protocol.errors import ErrorCode
from glmtts.protocol.requests import GetJob, Request

from ..scripted_daemon import ScriptedDaemon, done
from .conftest import Ctl, OnTerminal


@pytest.fixture
def job(daemon: ScriptedDaemon) -> dict[str, Any]:
    """How the job j1 stands; it is done when it is waited for, or ends in the error of its ``code``."""
    known: dict[str, Any] = {
        "job": "j1", "state": "running", "priority": "batch", "created": 0.0, "attempts": 1, "text_length": 5,
    }  # fmt: skip

    def script(daemon: ScriptedDaemon, peer: bytes, request: Request, _body: bytes) -> None:
        if isinstance(request, GetJob):
            daemon.send(peer, events.JobAnswer(id=request.id, **known))
        elif "code" in known:
            daemon.send(peer, events.Error.of(request.id, ErrorCode(known["code"]), "it says why", job="j1"))
        elif "output" in known:
            daemon.send(peer, done("j1", request.id, path="/srv/speech/a.wav"))
        else:
            daemon.send(peer, done("j1", request.id, b"RIFF"), b"RIFF")

    daemon.script = script
    return known


@pytest.mark.usefixtures("job")
def test_a_pipe_gets_the_speech_and_stderr_how_it_went(ctl: Ctl, tmp_path: Path) -> None:
    result = ctl("wait", "j1")
    assert (result.exit_code, result.stdout_bytes) == (0, b"RIFF")
    assert "1.00 s of speech (rtf" in result.stderr
    assert ctl("wait", "j1", "-o", "-").stdout_bytes == b"RIFF"
    result = ctl("wait", "j1", "-o", tmp_path / "a.wav")
    assert (result.stdout, (tmp_path / "a.wav").read_bytes()) == ("", b"RIFF")
    assert f"of speech in {tmp_path / 'a.wav'}" in result.stderr


def test_on_a_terminal_it_asks_where_the_speech_should_go_before_it_waits(
    on_terminal: OnTerminal, ctl: Ctl, daemon: ScriptedDaemon, job: dict[str, Any]
) -> None:
    done = on_terminal("wait", "j1")
    assert (done.returncode, done.stdout) == (2, "") and "-o FILE" in done.stderr
    assert ctl("wait", "j1", "--json").exit_code == 2, "nor can both go to standard output"
    asked = [daemon.next()[1].__struct_config__.tag for _ in range(daemon.requests.qsize())]
    assert set(asked) == {"job"} and job["state"] == "running"


def test_a_job_whose_speech_is_kept_in_a_file_needs_no_o(
    on_terminal: OnTerminal, ctl: Ctl, job: dict[str, Any], tmp_path: Path
) -> None:
    job["output"] = "a.wav"
    done = on_terminal("wait", "j1")
    assert (done.returncode, done.stdout) == (0, "/srv/speech/a.wav\n")
    assert "of speech in /srv/speech/a.wav" in done.stderr
    assert ctl("wait", "j1", "--json").exit_code == 0
    assert "Nothing was written to" in ctl("wait", "j1", "-o", tmp_path / "b.wav").stderr


@pytest.mark.parametrize(("state", "code"), [("failed", "synthesis_failed"), ("cancelled", "cancelled")])
def test_a_job_that_has_ended_in_an_error_says_so_without_o(
    on_terminal: OnTerminal, job: dict[str, Any], state: str, code: str
) -> None:
    job |= {"state": state, "code": code}
    done = on_terminal("wait", "j1")
    assert done.returncode == 4 and f"it says why ({code})" in done.stderr
