"""Daemon and clients find the same folder, or they never meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glmtts.protocol import endpoints


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_RUNTIME_DIR", "GLMTTS_ENDPOINT", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)


def test_the_first_that_is_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoints.runtime_dir() == Path("/tmp/glmtts-1234")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert endpoints.runtime_dir() == Path("/run/user/1234/glmtts")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert endpoints.runtime_dir() == Path("/run/glmtts")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
    assert endpoints.runtime_dir() == Path("/run/a")
    assert endpoints.runtime_dir("/srv/configured") == Path("/srv/configured")
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", "/srv/chosen")
    assert endpoints.runtime_dir("/srv/configured") == Path("/srv/chosen")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLMTTS_RUNTIME_DIR", "GLMTTS_ENDPOINT", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, "")
    assert endpoints.requests_endpoint() == "ipc:///tmp/glmtts-1234/glmtts.sock"


def test_a_named_endpoint_overrides_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", "/srv/chosen")
    assert endpoints.requests_endpoint() == "ipc:///srv/chosen/glmtts.sock"
    monkeypatch.setenv("GLMTTS_ENDPOINT", "tcp://127.0.0.1:5555")
    assert endpoints.requests_endpoint() == "tcp://127.0.0.1:5555"


def test_who_has_no_daemon_of_his_own_is_served_by_the_machine_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, machine_s = tmp_path / "user/glmtts", tmp_path / "machine"
    monkeypatch.setattr(endpoints, "MACHINE_DIR", machine_s)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own.parent))
    for folder in (own, machine_s):
        folder.mkdir(parents=True)
    assert endpoints.requests_endpoint() == f"ipc://{own}/glmtts.sock"
    (machine_s / "glmtts.sock").touch()
    assert endpoints.requests_endpoint() == f"ipc://{machine_s}/glmtts.sock"
    (own / "glmtts.sock").touch()
    assert endpoints.requests_endpoint() == f"ipc://{own}/glmtts.sock"
    (own / "glmtts.sock").unlink()
    # A folder that was named is meant.
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", str(own))
    assert endpoints.requests_endpoint() == f"ipc://{own}/glmtts.sock"


def test_a_daemon_that_cron_started_is_found_in_a_login_session(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if user == 0:
        monkeypatch.setattr(endpoints, "MACHINE_DIR", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "of-cron"
    monkeypatch.setattr(endpoints, "_SESSION_DIRS", (str(tmp_path / "none-{}"), f"{folder}"))
    folder.mkdir(mode=0o700)
    (folder / "glmtts.sock").touch()
    assert endpoints.requests_endpoint() == f"ipc://{folder}/glmtts.sock"
    folder.chmod(0o777)
    assert "of-cron" not in endpoints.requests_endpoint(), "another user may have made the socket"


def test_the_operators_sockets_lie_beside_the_requests_socket() -> None:
    control = endpoints.sibling_endpoint("ipc:///run/glmtts/glmtts.sock", endpoints.CONTROL)
    assert control == "ipc:///run/glmtts/control.sock"
    with pytest.raises(ValueError, match=r"tcp://127\.0\.0\.1:5555"):
        endpoints.sibling_endpoint("tcp://127.0.0.1:5555", endpoints.CONTROL)
