"""`glmttsctl key`: keys that fit, files that are safe, and nothing overwritten that somebody still uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glmtts.client import Forbidden
from glmtts.client.cli import key as module
from glmtts.client.cli import main
from glmtts.protocol import keys

from ..scripted_daemon import Answers
from .conftest import Ctl

Key = Callable[..., Result]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """Calls `glmttsctl key`, for a daemon whose state is in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "glmtts.toml"
    # The address needs a key: the commands have to work before there is one.
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}/state"\n[tcp]\nlisten = "0.0.0.0:5555"\n')

    def call(*arguments: str, status: int = 0) -> Result:
        named = [] if "--config" in arguments else ["--config", str(config)]
        result = CliRunner().invoke(main, ["key", *arguments, *named])
        assert result.exit_code == status, result.output
        return result

    return call


def test_a_daemon_s_key_is_secret_and_prints_what_clients_need(key: Key, tmp_path: Path) -> None:
    public = key("server").stdout.strip()
    file = tmp_path / "state/keys/server.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys.public_of(keys.read(file, "secret")) == public
    assert "--force" in key("server", status=1).stderr
    assert keys.public_of(keys.read(file, "secret")) == public
    other = json.loads(key("server", "--force", "--json").stdout)
    assert other == {"file": str(file), "public_key": keys.public_of(keys.read(file, "secret"))}
    assert other["public_key"] != public
    elsewhere = key("server", "--out", "here.key").stdout.strip()
    assert keys.public_of(keys.read(tmp_path / "here.key", "secret")) == elsewhere


def test_a_client_s_key_can_be_made_where_there_is_no_daemon(key: Key, tmp_path: Path) -> None:
    line = key("new", "alice").stdout.split()
    assert line == [keys.public_of(keys.read(tmp_path / "alice.key", "secret")), "alice"]
    assert not (tmp_path / "state").exists()
    assert "--force" in key("new", "alice", status=1).stderr


def test_keys_can_be_put_in_place_before_the_daemon_runs(
    key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", str(tmp_path / "no daemon here"))
    made = key("new", "zoe", "--authorise", "--reload")
    assert "No daemon runs here" in made.stderr and "zoe" in key("list").stdout


def test_clients_are_authorised_listed_and_removed(key: Key) -> None:
    server = key("server").stdout.strip()
    alice = json.loads(key("new", "alice", "--authorise", "--json").stdout)
    bob, _ = keys.generate()
    assert "reload" in key("add", "bob", bob).stderr
    listed = json.loads(key("list", "--json").stdout)
    assert listed["server"] == server
    assert [(c["name"], c["public_key"]) for c in listed["clients"]] == [("alice", alice["public_key"]), ("bob", bob)]
    assert bob in key("list").stdout and server in key("list").stdout
    key("remove", "alice")
    assert [c["name"] for c in json.loads(key("list", "--json").stdout)["clients"]] == ["bob"]
    assert "no key has the name alice" in key("remove", "alice", status=1).stderr


def test_a_name_or_key_that_is_there_is_not_given_twice(key: Key, tmp_path: Path) -> None:
    first, second = keys.generate()[0], keys.generate()[0]
    key("add", "alice", first)
    assert "alice has a key already" in key("add", "alice", second, status=1).stderr
    assert "there already, as alice" in key("add", "anna", first, status=1).stderr
    assert "alice has a key already" in key("new", "alice", "--authorise", status=1).stderr
    assert not (tmp_path / "alice.key").exists()
    key("add", "alice", second, "--force")
    assert [c["public_key"] for c in json.loads(key("list", "--json").stdout)["clients"]] == [second]


def test_what_people_wrote_into_the_file_stays(key: Key, tmp_path: Path) -> None:
    file = tmp_path / "state/keys/authorised_keys"
    file.parent.mkdir(parents=True)
    public = keys.generate()[0]
    file.write_text(f"# my clients\n\n{public} alice  her  laptop\n# the end\n")
    key("add", "bob", keys.generate()[0])
    key("remove", "bob")
    assert file.read_text() == f"# my clients\n\n{public} alice  her  laptop\n# the end\n"
    assert not file.stat().st_mode & 0o022


def test_mistakes_are_told_and_change_nothing(key: Key, tmp_path: Path) -> None:
    assert "no public key" in key("add", "alice", "short", status=2).stderr
    assert "no name" in key("add", "key:alice", keys.generate()[0], status=2).stderr
    assert "no name" in key("new", "a/b", status=2).stderr
    file = tmp_path / "state/keys/authorised_keys"
    key("add", "alice", keys.generate()[0])
    file.write_text("nonsense\n")
    assert f"{file}:1: " in key("add", "bob", keys.generate()[0], status=1).stderr
    assert file.read_text() == "nonsense\n"
    bad = tmp_path / "bad.toml"
    bad.write_text("[tcp]\nlissten = 1\n")
    assert "did you mean tcp.listen" in key("list", "--config", str(bad), status=1).stderr


def told(answers: Answers, folder: Path, read: Path | None) -> None:
    """A daemon with its configuration and state in ``folder``, which reads its keys from ``read``."""
    folder.mkdir()
    config = folder / "s9.toml"
    config.write_text('[tcp]\nlisten = "127.0.0.1:5555"\n')
    answers["config"] = {"file": str(config), "state_dir": str(folder / "state")}
    answers["reload"] = {"authorised_keys": str(read) if read else None}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the keys of a daemon would be that this user started now."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default.toml").write_text(f'[daemon]\nstate_dir = "{tmp_path}/default"\n')
    monkeypatch.setenv("GLMTTS_CONFIG", str(tmp_path / "default.toml"))
    return tmp_path / "default/keys/authorised_keys"


def test_without_config_the_keys_are_those_of_the_daemon_that_runs(
    ctl: Ctl, answers: Answers, elsewhere: Path, tmp_path: Path
) -> None:
    its = tmp_path / "daemon/state/keys/authorised_keys"
    told(answers, tmp_path / "daemon", its)
    made = ctl("key", "new", "carol", "--authorise", "--reload")
    assert made.exit_code == 0 and "has read its keys again" in made.stderr
    assert str(its.parent) in made.stderr and "carol" in its.read_text()
    assert not elsewhere.exists()
    assert json.loads(ctl("key", "list", "--json").stdout)["authorised_keys"] == str(its)
    assert ctl("key", "server").exit_code == 0 and (its.parent / "server.key").exists()
    assert ctl("key", "remove", "carol", "--reload").exit_code == 0 and "carol" not in its.read_text()


def test_without_a_daemon_the_folder_is_said(elsewhere: Path, no_daemon: str) -> None:
    made = CliRunner().invoke(main, ["--endpoint", no_daemon, "key", "add", "carol", keys.generate()[0]])
    assert made.exit_code == 0 and "No daemon runs here" in made.stderr
    assert str(elsewhere.parent) in made.stderr and "carol" in elsewhere.read_text()


def test_a_daemon_that_reads_its_keys_elsewhere_is_not_said_to_know_the_key(
    ctl: Ctl, answers: Answers, elsewhere: Path, tmp_path: Path
) -> None:
    its = tmp_path / "daemon/state/keys/authorised_keys"
    told(answers, tmp_path / "daemon", its)
    default = str(tmp_path / "default.toml")
    for command in (["add", "carol", keys.generate()[0]], ["remove", "carol"]):
        refused = ctl("key", *command, "--reload", "--config", default)
        assert refused.exit_code == 1 and "read its keys again" not in refused.stderr
        assert str(its) in refused.stderr and str(elsewhere) in refused.stderr


@pytest.mark.usefixtures("elsewhere")
def test_a_daemon_without_keys_is_not_said_to_have_read_any(ctl: Ctl, answers: Answers, tmp_path: Path) -> None:
    told(answers, tmp_path / "daemon", None)
    refused = ctl("key", "new", "carol", "--authorise", "--reload")
    assert refused.exit_code == 1 and "[tcp] listen" in refused.stderr
    assert "read its keys again" not in refused.stderr


def test_a_user_beside_another_s_daemon_works_on_his_own_keys_and_is_told(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Forbidden("not this user's socket")

    monkeypatch.setattr(module, "live_config", refuse)
    made = CliRunner().invoke(main, ["key", "add", "carol", keys.generate()[0]])
    assert made.exit_code == 0 and "This user may not ask" in made.stderr
    assert str(elsewhere.parent) in made.stderr and "carol" in elsewhere.read_text()
