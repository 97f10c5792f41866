"""`glmttsctl doctor`: what is wrong is said with what it means and what mends it; nothing that hangs hangs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glmtts.client import Forbidden
from glmtts.client.cli import doctor as module
from glmtts.client.cli import main
from glmtts.protocol import events

from ..scripted_daemon import Answers, Script, ScriptedDaemon, always
from .conftest import Ctl


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the machine's part finds: in these tests it is the daemon's part that is looked at."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(module, "_machine", lambda *_: list(found))
    return found


def checks(result: Result) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_no_daemon_is_no_fault_of_the_machine(machine: list[dict[str, str]], no_daemon: str) -> None:
    assert not machine
    result = CliRunner().invoke(main, ["doctor", "--endpoint", no_daemon])
    assert result.exit_code == 0
    assert "does not run" in result.stdout and "fix:   start it: glmttsd" in result.stdout


def test_one_wrong_thing_ends_it_with_1_and_is_said_with_its_mending(
    machine: list[dict[str, str]], no_daemon: str
) -> None:
    machine.append({"name": "driver", "state": "wrong", "seen": "none " * 40, "means": "no GPU", "mend": "modprobe"})
    result = CliRunner().invoke(main, ["doctor", "--endpoint", no_daemon])
    assert result.exit_code == 1
    assert (
        "WRONG    driver" in result.stdout and "means: no GPU" in result.stdout and "fix:   modprobe" in result.stdout
    )
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def pong(version: str, protocol: int = 1) -> Script:
    return always(lambda id: events.Pong(id=id, version=version, protocol=protocol, uptime_s=5.0))


@pytest.mark.usefixtures("machine")
def test_the_daemon_s_own_troubles_are_found(ctl: Ctl, daemon: ScriptedDaemon, answers: Answers) -> None:
    daemon.script = pong("0.0.1")
    answers["status"] = {
        "state": "paused",
        "attention": [{"severity": "bad", "name": "gpu_lost.1", "what": "GPU 1 is lost", "do": "See dmesg."}],
    }
    answers["workers"] = {
        "workers": [
            {"name": "w1", "state": "stopping", "pid": 7, "process_state": "D", "restarts": 0},
            {"name": "w2", "state": "backoff", "restarts": 9, "last_death": {"cause": "crashed", "detail": "SIGSEGV"}},
        ]
    }
    answers["gpus"] = {"nvml": {"state": "blocked", "detail": "a call has not returned"}, "gpus": [], "host": {}}
    result = ctl("doctor", "--json")
    assert result.exit_code == 1
    found = checks(result)
    assert {name: check["state"] for name, check in found.items()} == {
        "daemon": "ok",
        "version": "warning",
        "state": "warning",
        "daemon: gpu_lost.1": "wrong",
        "workers": "warning",
        "worker w1": "wrong",
        "worker w2": "warning",
        "NVML, to the daemon": "wrong",
    }
    assert all(check["means"] for check in found.values() if check["state"] != "ok")


@pytest.mark.usefixtures("machine")
def test_two_protocols_are_wrong(ctl: Ctl, daemon: ScriptedDaemon, answers: Answers) -> None:
    daemon.script = pong("9.0.0", protocol=2)
    answers["status"] = {"state": "running"}
    assert checks(ctl("doctor", "--json"))["protocol"]["state"] == "wrong"


@pytest.mark.usefixtures("machine")
def test_a_daemon_that_listens_and_says_nothing_is_wrong_and_not_waited_for(
    ctl: Ctl, daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DAEMON_TIMEOUT_S", 0.2)
    daemon.script = lambda *_: None
    result = ctl("doctor")
    assert result.exit_code == 1 and "listens" in result.stdout


@pytest.mark.usefixtures("daemon")
def test_who_may_not_open_the_socket_is_not_told_to_stop_the_daemon(
    ctl: Ctl, machine: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: str) -> None:
        raise Forbidden("This user may not open it: ask to be added to the group")

    monkeypatch.setattr("glmtts.client.connection.check_listening", closed)
    assert not machine
    found = checks(ctl("doctor", "--json"))["daemon"]
    assert found["state"] == "warning" and "group" in found["seen"] and "stop" not in found["mend"]


def test_the_machine_itself_is_looked_at_by_the_daemons_code(tmp_path: Path) -> None:
    wrong = tmp_path / "glmtts.toml"
    wrong.write_text("[deamon]\n")
    result = CliRunner().invoke(
        main, ["doctor", "--json", "--config", str(wrong), "--endpoint", f"ipc://{tmp_path}/glmtts.sock"]
    )
    found = checks(result)
    assert result.exit_code == 1
    assert found["configuration"]["state"] == "wrong" and "deamon" in found["configuration"]["seen"]
    assert str(tmp_path) in found["runtime folder"]["seen"]
    for name in ("python", "memory", "open files", "NVML", "engine's python", "eSpeak NG"):
        assert found[name]["seen"]


def test_where_the_daemon_is_not_installed_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch, no_daemon: str) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")  # type: ignore[attr-defined]
    result = CliRunner().invoke(main, ["doctor", "--endpoint", no_daemon])
    assert result.exit_code == 0
    assert "can't be checked" in result.stdout


def test_from_every_folder_the_running_daemons_own_configuration_is_looked_at(
    ctl: Ctl, daemon: ScriptedDaemon, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.script = pong("0.1.0")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other, its = elsewhere / "my.toml", tmp_path / "my.toml"
    other.write_text("[queu]\n")
    its.write_text("[queue]\nmax_waiting = 3\n")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GLMTTS_CONFIG", "my.toml")
    for file, seen in ((str(its), f"{its}: good"), ("", "built-in defaults: good")):
        answers["config"] = {"file": file, "state_dir": str(tmp_path / "state")}
        found = checks(ctl("doctor", "--json"))
        assert (found["configuration"]["state"], found["configuration"]["seen"]) == (
            "ok",
            f"{seen} (that of the running daemon)",
        )
        assert str(tmp_path / "state") in found["state folder"]["seen"]
    its.unlink()
    answers["config"] = {"file": str(its)}
    gone = checks(ctl("doctor", "--json"))["configuration"]
    assert gone["state"] == "wrong" and f"{its}: can't be read" in gone["seen"]
    named = checks(ctl("doctor", "--json", "--config", "my.toml"))["configuration"]
    assert named["state"] == "wrong" and named["seen"].startswith(f"{other}: queu")
