"""A worker's process group ends with the daemon, however the daemon ends. Processes are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from glmtts.daemon.processes import guardian
from glmtts.daemon.worker import lifeline

#: A worker with a child in its group, which it says to be there.
WORKER = """
import os, subprocess, sys, time
from glmtts.daemon.worker import lifeline
lifeline.tie(int(sys.argv[1]), int(sys.argv[2]))
child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
# In one write: the others use the same pipe.
os.write(1, b"%d\\n" % child.pid)
time.sleep(1000)
"""
#: A daemon with so many workers, and threads of its own, which end in any order.
DAEMON = f"""
import os, subprocess, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
keep = []
for _ in range(int(sys.argv[1])):
    read_end, write_end = os.pipe()
    command = [sys.executable, "-c", {WORKER!r}, str(read_end), str(os.getpid())]
    keep.append(subprocess.Popen(command, pass_fds=[read_end], start_new_session=True))
    os.close(read_end)
time.sleep(1000)
"""


def alive(pid: int) -> bool:
    about = guardian.stat(pid)
    return about is not None and not about.gone


def test_a_killed_daemon_leaves_no_child_of_a_worker_s_group_in_any_of_many_tries() -> None:
    """The kernel may end the daemon's threads in any order: the worker must not end before its children are told."""
    for _ in range(4):
        command = [sys.executable, "-c", DAEMON, "8"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as daemon:
            assert daemon.stdout is not None
            try:
                children = [int(daemon.stdout.readline()) for _ in range(8)]
            finally:
                daemon.kill()
        deadline = time.monotonic() + 5.0
        while (left := [pid for pid in children if alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def test_without_a_pipe_a_worker_dies_with_its_parent() -> None:
    parent = f"""
import os, subprocess, sys
code = {WORKER!r}.replace("int(sys.argv[1])", "None")
subprocess.run([sys.executable, "-c", code, "", str(os.getpid())], start_new_session=True)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        worker = guardian.stat(child)
        daemon.kill()
    assert worker is not None
    deadline = time.monotonic() + 5.0
    while alive(worker.parent) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert not alive(worker.parent)


def test_without_a_pipe_the_parent_must_be_the_daemon() -> None:
    with pytest.raises(lifeline.DaemonGoneError, match="999999"):
        lifeline.tie(None, 999999)
