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
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1234)
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


# --- whose folder


ME, STRANGER = 1234, 4321


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A runtime folder of this user, whom the fixture above makes user 1234."""
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    os.chown(folder, ME, ME)
    return folder


def test_a_folder_of_the_user_is_trusted_and_so_is_one_that_is_not_there(run: Path) -> None:
    assert endpoints.stranger_s_folder(run) == "" == endpoints.stranger_s_folder(run / "none")


def test_a_folder_that_root_gave_to_a_service_is_trusted(run: Path) -> None:
    os.chown(run, STRANGER, STRANGER)
    run.parent.chmod(0o755)
    assert endpoints.stranger_s_folder(run) == ""


@pytest.mark.parametrize("case", ["theirs", "theirs in /tmp", "open", "shared", "below theirs", "below open", "a link"])
def test_a_folder_in_which_a_stranger_could_put_a_socket_is_not_trusted(run: Path, case: str) -> None:
    folder = run
    match case:
        case "theirs":
            os.chown(run.parent, ME, ME)
            os.chown(run, STRANGER, STRANGER)
        case "theirs in /tmp":
            run.parent.chmod(0o1777)
            os.chown(run, STRANGER, STRANGER)
        case "open":
            run.chmod(0o1777)
        case "shared":
            os.chown(run, ME, STRANGER)
            run.chmod(0o775)
        case "below theirs":
            os.chown(run.parent, STRANGER, STRANGER)
        case "below open":
            run.parent.chmod(0o777)
        case _:
            folder = run.parent / "link"
            folder.symlink_to(run)
            os.lchown(folder, STRANGER, STRANGER)
    assert endpoints.stranger_s_folder(folder)


def test_a_folder_below_a_sticky_one_is_as_good_as_any(run: Path) -> None:
    run.parent.chmod(0o1777)
    assert endpoints.stranger_s_folder(run) == ""


def test_the_machine_s_daemon_serves_those_whose_own_folder_a_stranger_has_made(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, machine_s = run / "glmtts", run.parent / "machine"
    for folder in (own, machine_s):
        folder.mkdir()
        (folder / "glmtts.sock").touch()
    monkeypatch.setattr(endpoints, "MACHINE_DIR", machine_s)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    assert endpoints.requests_endpoint() == f"ipc://{own}/glmtts.sock"
    os.chown(own, STRANGER, STRANGER)
    assert endpoints.requests_endpoint() == f"ipc://{machine_s}/glmtts.sock"
    (machine_s / "glmtts.sock").unlink()
    found = endpoints.requests_endpoint()
    assert isinstance(found, endpoints.FoundEndpoint) and str(STRANGER) in found.problem()
    control = endpoints.sibling_endpoint(found, endpoints.CONTROL)
    assert isinstance(control, endpoints.FoundEndpoint) and control.problem() == found.problem()
