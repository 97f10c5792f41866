"""The doctor: checks of real folders, sockets and interpreters. One that hangs is a finding, and costs no other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from glmtts.daemon.config import parse
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.doctor import __main__ as doctor
from glmtts.daemon.doctor import engine, files, gpu, host
from glmtts.daemon.doctor.check import Check


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", str(folder))
    return folder


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def settings(**sections: dict[str, object]) -> Settings:
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return parse("\n".join(lines))


@pytest.mark.usefixtures("runtime")
def test_every_finding_that_is_not_ok_says_what_it_means() -> None:
    for group in doctor.GROUPS:
        for check in doctor.examine(group, None):
            assert check.seen, check
            assert check.state == "ok" or check.means, check
            assert "the check failed" not in check.seen, check


def test_sockets_are_told_apart_by_whether_a_daemon_listens(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as dead:
        listening.bind(os.fspath(runtime / "glmtts.sock"))
        listening.listen()
        dead.bind(os.fspath(runtime / "control.sock"))
        found = by_name(files.runtime(Settings()))
    assert "a daemon listens" in found["glmtts.sock"].seen and found["glmtts.sock"].state == "ok"
    assert "no daemon listens" in found["control.sock"].seen and found["control.sock"].state == "warning"
    assert "not there" in found["events.sock"].seen and found["events.sock"].state == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_user_who_may_not_open_a_socket_learns_how_to_get_the_right() -> None:
    # pytest's own folders are closed to others.
    folder = Path(f"/tmp/glmtts-doctor-{os.getpid()}")
    folder.mkdir(mode=0o755)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            path = folder / "glmtts.sock"
            listening.bind(os.fspath(path))
            os.chown(path, 0, 12_345)
            path.chmod(0o660)
            listening.listen()
            # The package's folder may be closed to others too, so the code is loaded before.
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    os.setgroups([])
                    os.setgid(65_534)
                    os.setuid(65_534)
                    os.environ["GLMTTS_RUNTIME_DIR"] = str(folder)
                    check = by_name(files.runtime(Settings()))["glmtts.sock"]
                    status = 0 if check.state == "wrong" and "usermod -aG 12345" in check.mend else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        (folder / "glmtts.sock").unlink()
        folder.rmdir()


def test_a_file_that_this_user_may_not_read_is_no_bug_of_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: Settings) -> NoReturn:
        raise PermissionError(13, "Permission denied", "/var/lib/glmtts/results")

    with monkeypatch.context() as patch:
        patch.setitem(doctor.GROUPS, "places", doctor.Group((closed,), 10.0, ""))
        (check,) = doctor.examine("places", None)
    assert check.state == "warning" and "/var/lib/glmtts/results" in check.seen and "sudo" in check.mend

    def refuse(path: Path, *_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    (check,) = files.configuration(tmp_path / "glmtts.toml")[1]
    assert check.state == "warning" and "root" in check.mend


def test_a_runtime_folder_that_clients_can_not_find_or_use_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLMTTS_RUNTIME_DIR", raising=False)
    check = files.runtime(settings(daemon={"runtime_dir": str(tmp_path)}))[0]
    assert check.state == "warning" and f"GLMTTS_RUNTIME_DIR={tmp_path}" in check.mend
    monkeypatch.setenv("GLMTTS_RUNTIME_DIR", "/tmp/" + "x" * 100)
    assert files.runtime(Settings())[0].state == "wrong"


def test_a_configuration_that_the_daemon_refuses_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "glmtts.toml"
    file.write_text("[queue]\nmax_wating = 1\n")
    checks = files.configuration(file)[1]
    assert checks[0].state == "wrong" and "max_waiting" in checks[0].seen


def test_folders_that_can_not_be_made_are_wrong_and_nothing_is_left_in_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    good = by_name(files.folders(settings(daemon={"state_dir": str(tmp_path)})))
    assert good["state folder"].seen.endswith("writable")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    bad = by_name(files.folders(settings(daemon={"state_dir": str(tmp_path / "file" / "state")})))
    assert bad["state folder"].state == "wrong"


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """An interpreter without packages."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_without_what_a_worker_needs_is_wrong_and_says_what_to_install(bare_python: str) -> None:
    check = engine.interpreter(settings(engine={"python": bare_python}))[0]
    assert check.state == "wrong"
    assert "pip install pyzmq msgpack msgspec numpy soundfile soxr" in check.mend
    assert engine.interpreter(Settings())[0].state == "ok"


def test_an_interpreter_that_fails_or_hangs_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_TIMEOUT_S", 0.3)
    broken = tmp_path / "python"
    for script in ("#!/bin/sh\nexit 3\n", "#!/bin/sh\nexec sleep 30\n"):
        broken.write_text(script)
        broken.chmod(0o755)
        check = engine.interpreter(settings(engine={"python": str(broken)}))[0]
        assert check.state == "wrong" and ("status 3" in check.seen or "did not answer" in check.seen)


def test_espeak_is_missed_only_where_it_is_the_engine(bare_python: str) -> None:
    assert engine.packages(settings(engine={"python": bare_python}))[0].state == "wrong"
    assert engine.packages(settings(engine={"python": bare_python, "name": "fault"})) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [("import threading; threading.Event().wait()", "driver hangs"), ("import os; os.abort()", "crashed")],
)
def test_a_group_that_hangs_or_crashes_is_a_finding_and_costs_itself_alone(code: str, words: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    began = time.monotonic()
    (check,) = doctor.answer_of("NVML", process, began + (0.2 if "hangs" in words else 10.0))
    assert time.monotonic() - began < 5.0
    assert check.state == "wrong" and words in check.means
    process.communicate(timeout=10)


def test_few_open_files_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 1_024))
    assert host.limits(Settings())[0].state == "warning"


def test_memory_that_nvml_does_not_tell_apart_is_explained() -> None:
    checks = by_name(gpu.holders("GPU 0", {os.getpid(): None}, 5 << 30))
    assert checks["GPU 0 per process"].state == "warning" and "--pid=host" in checks["GPU 0 per process"].mend
    assert f"pid {os.getpid()}" in checks["GPU 0 others"].seen
    assert gpu.holders("GPU 0", {}, 0) == []


def test_a_gpus_own_faults_are_told_from_those_of_programs() -> None:
    def record(code: int, at_s: float) -> str:
        return f"4,1,{at_s * 1e6:.0f},-;NVRM: Xid (PCI:0000:01:00): {code}, pid=77, name=python, Ch 00000008"

    assert gpu.judge_xids(["6,1,5,-;usb 1-1: new device"], 10.0).seen == "no Xid errors"
    assert gpu.judge_xids([record(13, 1.0), record(31, 2.0)], 10.0).state == "ok"
    grave = gpu.judge_xids([record(13, 1.0), record(79, 3_600.0)], 10_800.0)
    assert grave.state == "warning" and "Xid 79 on PCI:0000:01:00 2.0 h ago" in grave.seen and grave.mend


@pytest.mark.usefixtures("runtime")
def test_the_command_prints_json_names_unknown_users_once_and_ends_with_its_verdict(tmp_path: Path) -> None:
    def run(text: str) -> tuple[int, list[dict[str, str]]]:
        file = tmp_path / "glmtts.toml"
        file.write_text(text)
        command = [sys.executable, "-m", "glmtts.daemon.doctor", "--config", str(file)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd="/")
        return done.returncode, json.loads(done.stdout)

    status, found = run('[limits]\ngateways = ["nosuchuser"]\n')
    assert status == int(any(check["state"] == "wrong" for check in found))
    (names,) = [check for check in found if check["name"] == "names in the configuration"]
    assert names["state"] == "warning" and "nosuchuser" in names["seen"] and names["means"] and names["mend"]
    assert run("x")[0] == 1
