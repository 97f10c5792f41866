"""However a worker or the daemon ends, nothing of it is left: no process, no child of one, no descriptor, no socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon.processes import guardian

from ..support.processes import alive
from .conftest import PATIENCE_S, Daemon, Event, Peer, Start

BUSY: dict[str, Any] = {"options": {"seconds": 30.0, "rtf": 1.0}}


def children_of(pid: int) -> list[int]:
    """The processes that are its children now, zombies too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        about = guardian.stat(int(entry.name))
        if about is not None and about.parent == pid:
            found.append(int(entry.name))
    return found


def guardian_of(daemon: Daemon) -> int:
    for pid in children_of(daemon.process.pid):
        if b"guardian.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("the daemon has no guardian")


def leave_children(daemon: Daemon, client: Peer) -> list[int]:
    """Have the worker start a child in its group and one in a session of its own; everything that lives then."""
    before = set(daemon.processes())
    client.speak("children", options={"fault": "fork_child"})
    # A process that has just become another program has no environment yet, until it is scheduled.
    daemon.until(lambda: len(set(daemon.processes()) - before) == 2, "both children are there")
    return sorted(before | set(daemon.processes()))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that looks as much like a worker's child as a stranger can."""
    environment = dict(os.environ) | {guardian.VARIABLE: "0" * 32 + ".1"}
    with subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True) as process:
        yield process
        assert process.poll() is None
        process.kill()


# --- a worker's end


@pytest.mark.parametrize("how", ["hang", "recycle", "stop"])
def test_children_of_a_worker_end_with_it(start: Start, bystander: subprocess.Popen[bytes], how: str) -> None:
    quick = {"hang_timeout_s": 0.5, "stop_timeout_s": 0.5, "restart": {"backoff_initial_s": 0.05}}
    daemon = start(workers=quick)
    client = daemon.client()
    worker = daemon.workers()[0]["pid"]
    children = set(leave_children(daemon, client)) - {worker, daemon.process.pid}
    match how:
        case "hang":
            client.refused("synthesize", text="hang", options={"fault": "hang_gil"})
        case "recycle":
            daemon.control("recycle", worker="all")
        case "stop":
            daemon.stop()
    daemon.until(lambda: not any(alive(pid) for pid in [worker, *children]), "the worker's tree is gone")
    if how != "stop":
        client.speak("the next")
        daemon.until(lambda: not zombies_of(daemon), "none of it stays a zombie")
    assert bystander.poll() is None


def zombies_of(daemon: Daemon) -> list[int]:
    return [pid for pid in children_of(daemon.process.pid) if not alive(pid) and guardian.stat(pid)]


def wrapper(folder: Path, before: str) -> str:
    """An interpreter that a user has wrapped in a script of his own."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\n{before}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    folder.chmod(0o755)
    return str(script)


# --- the daemon's end


def test_a_second_after_the_daemon_was_killed_nothing_of_it_lives(
    start: Start, bystander: subprocess.Popen[bytes]
) -> None:
    daemon = start(workers={"max": 2})
    client = daemon.client()
    leave_children(daemon, client)
    ids = [client.send("synthesize", text=f"job {n}", **BUSY) for n in range(2)]
    for id in ids:
        client.until(id, "started")
    protector = guardian_of(daemon)
    assert len(daemon.processes()) == 5
    daemon.kill()
    daemon.until_nothing_is_left(1.0)
    daemon.until(lambda: not alive(protector), "the guardian ends as well", 1.0)
    assert bystander.poll() is None


def test_a_daemon_that_is_killed_before_its_workers_are_ready_leaves_nothing(start: Start, tmp_path: Path) -> None:
    daemon = start(wait=False, engine={"python": wrapper(tmp_path, "setsid sleep 1000 & sleep 0.2")})
    daemon.until(lambda: len(daemon.processes()) >= 3, "a worker is being started")
    daemon.kill()
    daemon.until_nothing_is_left(1.0)


def test_the_next_daemon_ends_the_orphans_of_a_daemon_killed_with_its_guardian(
    start: Start, bystander: subprocess.Popen[bytes]
) -> None:
    daemon = start()
    leave_children(daemon, daemon.client())
    os.kill(guardian_of(daemon), signal.SIGKILL)
    daemon.kill()
    daemon.until(lambda: len(daemon.processes()) == 1, "the child in a session of its own is left alone")
    (orphan,) = daemon.processes()
    assert alive(orphan)
    begun = time.monotonic()
    daemon.restart()
    assert time.monotonic() - begun < 15.0
    assert not alive(orphan) and bystander.poll() is None
    daemon.until_logged(f"{orphan}", "orphan of an earlier daemon ended")
    daemon.client().speak("after that")
    daemon.stop()
    assert [path.name for path in daemon.runtime.iterdir()] == ["lock"]


def test_an_operator_s_signals_to_the_whole_group_end_it_in_order(start: Start) -> None:
    """As a service manager stops a service: SIGTERM to each of its processes."""
    daemon = start(workers={"max": 2})
    client = daemon.client()
    id = client.send("synthesize", text="being spoken", options={"seconds": 0.3, "rtf": 1.0})
    client.until(id, "started")
    for pid in [guardian_of(daemon), daemon.process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert client.all(id)[0][-1]["event"] == "done"
    assert daemon.process.wait(PATIENCE_S) == 0
    daemon.until_nothing_is_left()


# --- many times


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_restarts_leave_no_descriptor_thread_zombie_or_socket(start: Start) -> None:
    restart = {"backoff_initial_s": 0.01, "backoff_max_s": 0.02, "breaker_failures": 1000}
    daemon = start(workers={"restart": restart})
    pid = daemon.process.pid

    def replaced(before: Event) -> bool:
        (worker,) = daemon.workers()
        return bool(worker["restarts"] > before["restarts"] and worker["state"] == "ready")

    def crash(times: int) -> None:
        for _ in range(times):
            worker = daemon.workers()[0]
            os.kill(worker["pid"], signal.SIGKILL)
            daemon.until(partial(replaced, worker), "the worker is replaced")

    def settled() -> tuple[int, int, list[str]]:
        daemon.until(lambda: len(children_of(pid)) == 2, "a worker and the guardian are all that there is")
        return descriptors(pid), threads(pid), sorted(path.name for path in daemon.runtime.iterdir())

    crash(2)
    expected = settled()
    memory = daemon.rss_mib
    crash(5)

    def nothing_more() -> bool:
        # Of the connections that this test made, one may have been open still when it was counted before.
        now, before = settled(), expected
        return now[0] <= before[0] and now[1] <= before[1] and now[2] <= before[2]

    daemon.until(nothing_more, f"as before: {expected}")
    assert daemon.rss_mib < memory + 2
