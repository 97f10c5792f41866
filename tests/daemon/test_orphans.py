"""A daemon that starts ends what its predecessor left behind, and never touches anything else. Processes are real."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.processes import guardian
from glmtts.daemon.processes.guardian_client import Guardian
from glmtts.daemon.processes.orphans import FILE, Boot, Records, parse

from ..support.processes import PATIENCE_S, alive, until

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with this boot token, and waits until it is itself; returns the pid."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(token: str | None, script: str = "exec sleep 1000", **options: Any) -> int:
        environment = {"PATH": os.environ["PATH"]} | ({} if token is None else {guardian.VARIABLE: f"{token}.1"})
        popen = subprocess.Popen(
            ["sh", "-c", f"echo $$; {script}"],
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            **options,
        )
        assert popen.stdout is not None
        popen.stdout.readline()
        started.append(popen)
        return popen.pid

    yield begin
    for popen in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        if popen.stdout is not None:
            popen.stdout.close()


def begun(pid: int) -> int:
    about = guardian.stat(pid)
    assert about is not None
    return about.started


def with_token(token: str) -> list[int]:
    return list(guardian.find([token]))


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Records]:
    """The record of a daemon that is killed before the test's own daemon starts."""
    records = Records(tmp_path)
    yield records
    records.close()


# --- what is ended


def test_a_worker_and_all_that_it_has_started_are_ended(start: Start, before: Records, tmp_path: Path) -> None:
    token = before.boot.token
    worker = start(token, "sleep 1000 & setsid sleep 1000 & setsid env -i sleep 1000 & exec sleep 1000")
    before.begun(worker, begun(worker), "gpu0/1")
    child = start(token)
    until(lambda: len(with_token(token)) == 5, "all are there")
    found = with_token(token)
    orphans = Records(tmp_path).sweep()
    assert {orphan.pid for orphan in orphans} == set(found) and not any(orphan.stuck for orphan in orphans)
    assert {orphan.pid: orphan.worker for orphan in orphans if orphan.worker} == {worker: "gpu0/1"}
    assert child in found and not any(alive(pid) for pid in found)
    assert Records(tmp_path).sweep() == []


def test_those_that_fork_while_they_are_ended_are_ended_too(start: Start, before: Records, tmp_path: Path) -> None:
    start(before.boot.token, "while :; do setsid sleep 1000 & sleep 0.01; done")
    Records(tmp_path).sweep()
    time.sleep(0.05)
    assert with_token(before.boot.token) == []


def test_a_daemon_that_is_killed_while_it_sweeps_is_swept_up_after(
    start: Start, before: Records, tmp_path: Path
) -> None:
    pid = start(before.boot.token)
    Records(tmp_path)
    assert [orphan.pid for orphan in Records(tmp_path).sweep()] == [pid]


# --- what is never touched


def test_others_are_not_touched(start: Start, before: Records, tmp_path: Path) -> None:
    token = before.boot.token
    strangers = [
        start(None),
        start(secrets.token_hex(16)),
        # As if the pid of a worker had been reused by another process.
        start(None),
        start(None),
    ]
    before.begun(strangers[2], begun(strangers[2]) - 100, "gpu0/0")
    before.begun(strangers[3], begun(strangers[3]), "gpu0/1")
    orphan = start(token)
    assert [o.pid for o in Records(tmp_path).sweep()] == [orphan]
    assert all(alive(pid) for pid in strangers)


@pytest.mark.parametrize("other", ["kernel", "namespace", "younger daemon"])
def test_a_record_of_another_kernel_container_or_younger_daemon_ends_nothing(
    start: Start, tmp_path: Path, other: str
) -> None:
    pid = start(token := secrets.token_hex(16))
    boot = Records(tmp_path).boot
    kernel = "0" * 36 if other == "kernel" else boot.kernel
    namespace = "pid:[1]" if other == "namespace" else boot.namespace
    started = begun(pid) + 1 if other == "younger daemon" else 0
    write(tmp_path, Boot(token, kernel, namespace, started, {pid: (begun(pid), "gpu0/0")}).lines())
    assert Records(tmp_path).sweep() == [] and alive(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")
def test_another_user_s_process_is_not_touched(start: Start, before: Records, tmp_path: Path) -> None:
    pid = start(before.boot.token, user=65534, group=65534, extra_groups=[], cwd="/")
    before.begun(pid, begun(pid), "gpu0/0")
    assert Records(tmp_path).sweep() == [] and alive(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace without a user namespace")
def test_another_pid_namespace_is_not_touched(before: Records) -> None:
    environment = {"PATH": os.environ["PATH"], guardian.VARIABLE: f"{before.boot.token}.1"}
    command = ["unshare", "--pid", "--fork", "sh", "-c", "echo here; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as outside:
        assert outside.stdout is not None
        if not outside.stdout.readline():
            pytest.skip("no pid namespace can be made here")
        inside = int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text())
        # unshare itself is in ours; without it, what it has started is in the other one alone.
        found = guardian.find([before.boot.token])
        os.killpg(outside.pid, signal.SIGKILL)
    assert outside.pid in found and inside not in found


def test_the_daemon_does_not_end_itself_nor_its_ancestors(before: Records, tmp_path: Path) -> None:
    """A daemon that an orphan has started: a script of a user, say, that a worker's engine ran."""
    code = (
        "import sys; from pathlib import Path; from glmtts.daemon.processes.orphans import Records; "
        "print(len(Records(Path(sys.argv[1])).sweep()), flush=True)"
    )
    environment = dict(os.environ) | {guardian.VARIABLE: f"{before.boot.token}.1"}
    command = ["sh", "-c", f'"{sys.executable}" -c "{code}" {tmp_path}; echo survived']
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert result.stdout.split() == ["0", "survived"], result.stderr


# --- what can't be killed


@pytest.fixture
def freezer() -> Iterator[Callable[[int, bool], None]]:
    """Makes a process as unkillable as one that waits for a broken GPU, and thaws it."""
    group = Path(f"/sys/fs/cgroup/freezer/glmtts-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"nothing can be frozen here: {error}")

    def freeze(pid: int, on: bool) -> None:
        if on:
            (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN" if on else "THAWED")
        until(lambda: (group / "freezer.state").read_text().strip() == ("FROZEN" if on else "THAWED"), "frozen")

    yield freeze
    (group / "freezer.state").write_text("THAWED")

    def removed() -> bool:
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    until(removed, "the group is empty")


def test_an_unkillable_process_is_reported_and_tried_again_at_the_next_start(
    start: Start, before: Records, tmp_path: Path, freezer: Callable[[int, bool], None]
) -> None:
    stuck, other = start(before.boot.token), start(before.boot.token)
    before.begun(stuck, begun(stuck), "gpu0/0")
    freezer(stuck, True)
    begun_at = time.monotonic()
    orphans = Records(tmp_path).sweep(patience_s=0.3)
    assert time.monotonic() - begun_at < 5.0
    assert {(o.pid, o.worker, o.stuck) for o in orphans} == {(stuck, "gpu0/0", "D"), (other, "", "")}
    assert alive(stuck) and not alive(other)
    again = Records(tmp_path)
    freezer(stuck, False)
    again.sweep()
    assert not alive(stuck)
    assert again.sweep() == [] and len(parse((tmp_path / FILE).read_text())) == 1


# --- the record


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    file = folder / FILE
    file.unlink(missing_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)
    return file


def test_ended_processes_leave_the_record_and_an_incomplete_line_is_skipped(before: Records) -> None:
    before.begun(11, 100, "gpu0/0")
    before.begun(12, 101, "gpu0/1")
    before.ended(11)
    before.ended(99)
    text = before.path.read_text()
    (boot,) = parse(text + "+ 13 1")
    assert boot.workers == {12: (101, "gpu0/1")}
    assert boot.token == before.boot.token


def test_a_worker_s_name_can_t_forge_a_line(before: Records) -> None:
    before.begun(11, 100, "a\n+ 1 1 b \x85\u2028+")
    (boot,) = parse(before.path.read_text())
    assert list(boot.workers) == [11]


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0" * 1000,
        os.urandom(5000),
        b"boot 1 \xff\xfe\n+ 1 1 x\n",
        b"+ 1 1 init\n- 5 5 y\n",
        b"boot 2 " + b"0" * 32 + b" x\n",
        b"boot 1 " + b"a" * 32 + b" " + b"0" * 36 + b" pid:[1] 99999999999999999999999999\n",
        b"x" * ((1 << 20) + 1),
    ],
)
def test_a_damaged_record_does_no_harm(tmp_path: Path, start: Start, garbage: bytes) -> None:
    bystander = start(None)
    write(tmp_path, garbage)
    records = Records(tmp_path)
    assert records.sweep() == [] and alive(bystander)
    assert [boot.token for boot in parse(records.path.read_text())] == [records.boot.token]
    records.close()


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "writable by others", "of another user"])
def test_a_record_that_another_user_may_have_written_is_not_used(tmp_path: Path, start: Start, what: str) -> None:
    before = Records(tmp_path)
    orphan = start(before.boot.token)
    file, text = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    target = tmp_path / "target"
    target.write_bytes(text)
    file.unlink()
    match what:
        case "link":
            file.symlink_to(target)
        case "fifo":
            os.mkfifo(file)
        case "folder":
            (file / "full").mkdir(parents=True)
        case "writable by others":
            write(tmp_path, text, 0o666)
        case _:
            if os.geteuid() != 0:
                pytest.skip("only root can give files away")
            os.chown(write(tmp_path, text), 65534, 65534)
    records = Records(tmp_path)
    assert records.sweep() == [] and alive(orphan)
    assert str(file) in records.problem
    assert target.read_bytes() == text
    records.begun(1, 1, "gpu0/0")
    records.ended(1)
    records.close()
    assert what == "folder" or not file.is_symlink()


def test_a_folder_that_can_t_be_written_to_costs_the_record_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "gone")
    assert "gone" in records.problem
    records.begun(1, 1, "gpu0/0")
    records.ended(1)
    assert records.sweep() == []
    records.close()


def test_the_record_costs_the_loop_next_to_nothing_and_stays_small(before: Records) -> None:
    begun_at = time.perf_counter()
    for n in range(10_000):
        before.begun(1000 + n, n, "gpu0/0")
        before.ended(1000 + n)
    assert (time.perf_counter() - begun_at) / 20_000 < 0.0005
    assert before.path.stat().st_size < 100_000
    assert parse(before.path.read_text())[0].workers == {}


# --- the guardian


def test_when_the_daemon_is_gone_the_guardian_ends_processes_that_left_their_worker_s_group(start: Start) -> None:
    token = secrets.token_hex(16)
    guard = Guardian(token)
    guard.ensure()
    assert guard.pid is not None
    pidfd = os.pidfd_open(guard.pid)
    pids, stranger = [start(token), start(token, "setsid sleep 1000 & exec sleep 1000")], start(None)
    assert all(alive(pid) for pid in pids)
    # What a service manager or a terminal does when it ends a daemon must not end the guardian first.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        until(partial(ignores, guard.pid, number), "it has begun")
        os.kill(guard.pid, number)
    pid = guard.pid
    begun_at = time.monotonic()
    guard.dismiss(clean=False)
    until(lambda: not with_token(token), "all are gone")
    assert not any(alive(pid) for pid in pids) and alive(stranger)
    assert select.select([pidfd], [], [], PATIENCE_S)[0]
    os.close(pidfd)
    os.waitpid(pid, 0)
    # Where it found a process that it can't end it would take longer.
    assert time.monotonic() - begun_at < 5.0


def ignores(pid: int | None, number: int) -> bool:
    mask = int(Path(f"/proc/{pid}/status").read_text().split("SigIgn:")[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)


def test_the_guardian_of_a_daemon_that_ends_well_ends_with_it(start: Start) -> None:
    token = secrets.token_hex(16)
    bystander = start(token)
    guard = Guardian(token)
    guard.ensure()
    pid = guard.pid
    guard.ensure()
    assert guard.pid == pid and pid is not None
    guard.dismiss(clean=True)
    assert not alive(pid) and guard.pid is None and alive(bystander)
