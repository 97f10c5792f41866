"""The daemon and its commands under what a parent process, a container or an administrator leaves to them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.processes import own_process

from ..support import inheriting
from .conftest import PATIENCE_S, Daemon, Start
from .glmttsctl import GLMTTSCTL, environment


class Inheriting(Daemon):
    """A daemon whose parent runs these lines of Python before it (tests/support/inheriting.py)."""

    lines: tuple[str, ...] = ()

    def launch(self, through: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        return super().launch([*through, sys.executable, inheriting.__file__, *self.lines, "--"], **options)


@pytest.fixture
def start_after(request: pytest.FixtureRequest) -> Start:
    """Start a daemon after lines of Python. ``ready``: wait until it serves."""

    def start(*lines: str, ready: bool = True, config: dict[str, object] | None = None) -> Daemon:
        kind = type("InheritingLines", (Inheriting,), {"lines": lines})
        daemon: Daemon = kind(config or {})
        request.addfinalizer(daemon.clear_away)
        if ready:
            daemon.until(daemon.control_is_open, "the daemon is there")
            daemon.until_ready()
        return daemon

    return start


#: As the seccomp profile of a container from before Linux 5.3.
NO_PIDFDS = f"forbid({errno.EPERM}, 'pidfd_open', 'pidfd_send_signal')"


def refusal(daemon: Daemon) -> str:
    """Why it did not start, after the exit status for that."""
    assert daemon.process.wait(PATIENCE_S) == 69, daemon.log()
    return str(daemon.log())


# --- streams


@pytest.mark.parametrize("closed", [[0], [0, 1, 2]], ids=str)
def test_the_daemon_serves_with_closed_streams_and_gives_their_numbers_to_no_file(
    start_after: Start, closed: list[int]
) -> None:
    daemon = start_after(*(f"os.close({fd})" for fd in closed))
    daemon.client().speak()
    for fd in closed:
        assert Path(f"/proc/{daemon.process.pid}/fd/{fd}").readlink() == Path(os.devnull)
    daemon.stop()


def test_commands_work_with_closed_streams(start: Start, tmp_path: Path) -> None:
    daemon = start()
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"syn_text": "hello"}\n')
    close = [f"os.close({fd})" for fd in range(3)]
    for arguments in (
        ["batch", lines, "--out", tmp_path / "out"],
        ["say", "hello", "-o", tmp_path / "a.wav"],
        ["status"],
    ):
        command = [sys.executable, inheriting.__file__, *close, "--", GLMTTSCTL, *map(str, arguments)]
        assert subprocess.run(command, env=environment(daemon), timeout=60, check=False).returncode == 0, arguments
    assert len(list((tmp_path / "out").glob("*.wav"))) == 1 and (tmp_path / "a.wav").stat().st_size > 1_000


def test_a_locale_of_another_language_prints_escapes_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "天气.toml"
    file.write_text("")
    command = [sys.executable, "-m", "glmtts.daemon.config", "check", str(file)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "\\u5929" in done.stdout, done.stderr


def test_the_doctor_works_without_docstrings_and_streams_and_names_a_call_that_is_forbidden(start: Start) -> None:
    command = [
        *(sys.executable, inheriting.__file__, NO_PIDFDS, "os.close(0)", "os.close(2)", "--"),
        *(GLMTTSCTL, "doctor", "--json"),
    ]
    done = subprocess.run(command, env=environment(start(), PYTHONOPTIMIZE="2"), stdout=-1, timeout=60, check=False)
    found = {check["name"]: check["seen"] for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0 and "pidfd_open: Operation not permitted" in found["system calls"]


# --- signals and files


def test_a_daemon_whose_parent_blocked_and_ignored_signals_is_stopped_and_sees_dead_workers(start_after: Start) -> None:
    daemon = start_after("deaf()", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.until(lambda: daemon.workers()[0]["restarts"] == 1, "the worker's end is seen")
    daemon.until_ready()
    daemon.client().speak()
    daemon.stop()


def test_ctrl_c_at_the_script_that_started_it_in_the_background_is_not_for_the_daemon(start_after: Start) -> None:
    daemon = start_after("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    daemon.process.send_signal(signal.SIGINT)
    daemon.client().speak()
    daemon.stop()


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_other_users_find_the_sockets_and_can_write_no_file_whatever_the_umask(start_after: Start, umask: int) -> None:
    daemon = start_after(f"os.umask({umask})")
    assert stat.S_IMODE(daemon.runtime.stat().st_mode) == 0o755
    daemon.client().speak(output="a.wav")
    for path in daemon.state.rglob("*"):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # the mark of an output is removed
            continue
        assert not mode & stat.S_IWOTH and mode & stat.S_IRUSR, f"{path}: {stat.filemode(mode)}"


# --- what a container forbids


def test_without_pidfds_workers_are_replaced_and_nothing_outlives_the_daemon(start_after: Start) -> None:
    daemon = start_after(NO_PIDFDS)
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.until(lambda: daemon.workers()[0]["restarts"] == 1, "the worker's end is seen")
    daemon.until_ready()
    client = daemon.client()
    id = client.send("synthesize", text="leaves children", options={"fault": "fork_child"})
    client.all(id)
    daemon.kill()
    daemon.until_nothing_is_left(PATIENCE_S)


# --- limits


def limited(files: int) -> str:
    return f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"


def test_a_daemon_that_a_burst_of_connections_could_end_does_not_start(start_after: Start) -> None:
    said = refusal(start_after(limited(128), ready=False))
    assert "may open 128 files at most, and the daemon needs " in said and "LimitNOFILE=" in said


def test_the_least_number_of_files_survives_bursts_while_workers_are_replaced(start_after: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    daemon = start_after(limited(own_process.descriptors_needed(1) + 8))
    try:
        for _ in range(2):
            with contextlib.ExitStack() as open_ones:
                for _ in range(1_000):
                    one = open_ones.enter_context(socket.socket(socket.AF_UNIX))
                    one.setblocking(False)
                    one.connect_ex(daemon.endpoint.removeprefix("ipc://"))
                daemon.control("recycle", worker="all")
            daemon.until_ready()
            daemon.client().speak()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert daemon.status()["internal_errors"] == 0


def test_descriptors_that_a_parent_leaked_count(start_after: Start) -> None:
    needed = own_process.descriptors_needed(1) + 16
    said = refusal(start_after(limited(needed), "leak(100)", ready=False))
    assert f"may open {needed} files at most" in said


def test_without_room_for_threads_there_is_a_sentence(start_after: Start) -> None:
    # Each thread has a stack: by default 8 MiB of address space.
    said = refusal(start_after("resource.setrlimit(resource.RLIMIT_AS, (80 << 20, 80 << 20))", ready=False))
    assert "threads could be made, and the daemon needs" in said and "ulimit -v" in said and "Traceback" not in said


def test_a_worker_that_can_t_be_made_is_tried_again_and_serves_when_the_limit_is_lifted(
    start: Start, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os, subprocess\n"
        "fork = subprocess._fork_exec\n"
        "def fork_exec(*arguments):\n"
        f"    if os.path.exists({str(full)!r}):\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork(*arguments)\n"
        "subprocess._fork_exec = fork_exec\n"
    )
    daemon = start(
        workers={"restart": {"backoff_initial_s": 0.1, "backoff_max_s": 0.2}},
        environment={"PYTHONPATH": str(tmp_path)},
    )
    full.touch()
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.until_logged("no more processes can be made: raise the limit of this user (ulimit -u")
    daemon.until(lambda: daemon.status()["attention"], "operators see a problem")
    full.unlink()
    daemon.until_ready()
    daemon.client().speak()
    assert daemon.status()["internal_errors"] == 0
