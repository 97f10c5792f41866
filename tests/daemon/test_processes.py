"""Worker processes are started as configured, told apart in how they end, and leave nothing behind. All are real."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtts.daemon import flight_recorder
from glmtts.daemon.core.effects import Spawn
from glmtts.daemon.core.settings import Settings
from glmtts.daemon.flight_recorder import Note
from glmtts.daemon.processes import descendants, guardian
from glmtts.daemon.processes.manager import Processes, WorkerProcess
from glmtts.daemon.processes.orphans import FILE, Records

from ..support.processes import PATIENCE_S, alive

Ended = tuple[int, int, bool]


class Loop:
    """What the supervisor is to processes: a poller, and SIGCHLD."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        self.records = Records(folder)
        self.handlers: dict[int, Callable[[], None]] = {}
        self.poll = select.poll()
        self.ended: list[Ended] = []
        self.notes: list[Note] = []
        self.lines: list[tuple[str, str]] = []
        self.incarnations = 0
        interpreter = folder / "interpreter"
        interpreter.write_text(f"#!/bin/sh\n{script}\n")
        interpreter.chmod(0o700)
        self.processes = Processes(
            Settings(),
            "ipc:///nowhere",
            str(interpreter),
            self.records,
            watch=self.watch,
            unwatch=self.unwatch,
            on_ended=self._on_ended,
            on_line=lambda process, line: self.lines.append((process.name, line)),
            clock=time.monotonic,
        )
        self.wakeup, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self.wakeup, self.woken)
        self._before = (
            signal.signal(signal.SIGCHLD, lambda *_: None),
            signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False),
        )

    def _on_ended(self, process: WorkerProcess, code: int, oom: bool, note: Note) -> None:
        self.ended.append((process.incarnation, code, oom))
        self.notes.append(note)

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def woken(self) -> None:
        os.read(self.wakeup, 4096)
        self.processes.tidy()

    def start(self, **keys: Any) -> WorkerProcess:
        self.incarnations += 1
        keys = {"name": f"worker{self.incarnations}", "gpu": None} | keys
        self.processes.start(Spawn(self.incarnations, **keys))
        process = self.processes.find(self.incarnations)
        assert process is not None
        return process

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {what}"
            for fd, _ in self.poll.poll(10):
                if handler := self.handlers.get(fd):
                    handler()

    def said(self, process: WorkerProcess, count: int = 1) -> list[str]:
        """So many lines of a worker."""

        def lines() -> list[str]:
            return [line for name, line in self.lines if name == process.name]

        self.until(lambda: len(lines()) >= count, f"{count} lines")
        return lines()

    def until_ended(self, process: WorkerProcess) -> tuple[int, bool]:
        def end() -> Ended | None:
            return next((ended for ended in self.ended if ended[0] == process.incarnation), None)

        self.until(end, "the worker has ended")
        found = end()
        assert found is not None
        return found[1:]

    def close(self) -> None:
        self.processes.kill_all()
        signal.signal(signal.SIGCHLD, self._before[0])
        signal.set_wakeup_fd(self._before[1])
        os.close(self.wakeup)
        os.close(self._wakeup_write)
        descendants.adopt(on=False)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[[str], Loop]]:
    """A loop whose workers are this shell script."""
    loops: list[Loop] = []

    def make(script: str) -> Loop:
        loops.append(Loop(tmp_path, script))
        return loops[-1]

    yield make
    for made in loops:
        made.close()
    assert not zombies()


def zombies() -> list[int]:
    """Children of this process that are not reaped."""
    return [pid for pid in descendants.children() if (about := guardian.stat(pid)) is not None and about.gone]


#: Starts a child in the worker's group, one in a session of its own, one that did away with its environment as well,
#: and one whose parent is gone, and prints what they are and their pids; then does what the line after it says.
CHILDREN = """
sleep 1000 & echo group $!
setsid sh -c 'echo session $$; exec sleep 1000' &
env -i setsid sh -c 'echo bare $$; exec sleep 1000' &
setsid sh -c 'sleep 1000 & echo orphan $!' &
"""


def children_said(loop: Loop, process: WorkerProcess) -> dict[str, int]:
    return {kind: int(pid) for kind, pid in (line.split() for line in loop.said(process, 4))}


# --- the start


def test_a_worker_has_its_gpu_and_its_share_of_the_memory(loop: Callable[[str], Loop]) -> None:
    made = loop('echo "$CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES"; echo "$GLMTTS_WORKER"; echo "$GLMTTS_BOOT"')
    process = made.start(gpu=3, device="MIG-1234", vram_share=0.4, name="gpu3/0")
    devices, worker, boot = made.said(process, 3)
    assert devices == "PCI_BUS_ID MIG-1234"
    assert json.loads(worker)["vram_share"] == 0.4 and json.loads(worker)["name"] == "gpu3/0"
    assert made.records.incarnation_of(boot) == process.incarnation
    assert made.said(made.start(gpu=3))[0] == "PCI_BUS_ID 3"


def test_the_flight_recorder_of_a_worker_is_read_while_it_lives_and_when_it_has_ended(
    loop: Callable[[str], Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = """fd=$(echo "$GLMTTS_WORKER" | sed 's/.*"recorder_fd": \\([0-9a-z]*\\).*/\\1/')"""
    note = "printf '\\000\\010\\000flow\\000b-1' 1<>/proc/self/fd/$fd"
    made = loop(f"{fd}; [ $fd = null ] || {note}; echo $fd; exec sleep 1000")
    process = made.start(slots=4)
    made.said(process)
    assert process.note == Note("flow", ("b-1",))
    os.kill(process.pid, signal.SIGKILL)
    made.until_ended(process)
    assert made.notes == [Note("flow", ("b-1",))]

    def forbidden() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(flight_recorder, "create", forbidden)
    process = made.start()
    assert made.said(process) == ["null"] and process.note == Note()


def test_a_worker_without_a_gpu_sees_what_the_daemon_sees(
    loop: Callable[[str], Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    made = loop('echo "$CUDA_DEVICE_ORDER $CUDA_VISIBLE_DEVICES"')
    assert made.said(made.start()) == [" 7"]


def test_the_kernel_takes_a_worker_before_the_daemon(loop: Callable[[str], Loop]) -> None:
    made = loop("exec sleep 1000")
    process = made.start()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) == max(500, own)


def test_an_interpreter_that_is_not_there_costs_no_descriptor(loop: Callable[[str], Loop]) -> None:
    made = loop("true")
    made.until_ended(made.start())
    (made.folder / "interpreter").unlink()
    before = descriptors()
    for _ in range(20):
        with pytest.raises(OSError, match="interpreter"):
            made.start()
    assert descriptors() == before


def test_the_state_of_a_worker_can_be_asked(loop: Callable[[str], Loop]) -> None:
    made = loop("echo here; exec sleep 1000")
    process = made.start()
    made.said(process)
    made.until(lambda: made.processes.state(process.incarnation) == "S", "it sleeps")
    os.kill(process.pid, signal.SIGSTOP)
    made.until(lambda: made.processes.state(process.incarnation) == "T", "it is stopped")
    assert made.processes.state(99) == ""


# --- the end


@pytest.mark.parametrize("end", ["kill", "crash", "exit"])
def test_nothing_that_a_worker_has_started_outlives_it(loop: Callable[[str], Loop], end: str) -> None:
    made = loop(CHILDREN + "read line < /dev/zero" if end != "exit" else CHILDREN + "sleep 0.3; exit 5")
    process = made.start()
    children = children_said(made, process).values()
    if end == "kill":
        made.processes.signal(process.incarnation, "kill")
    elif end == "crash":
        os.kill(process.pid, signal.SIGSEGV)
    code, _ = made.until_ended(process)
    assert code == {"kill": -signal.SIGKILL, "crash": -signal.SIGSEGV, "exit": 5}[end]
    made.until(lambda: not any(alive(child) for child in children), "its children are gone")
    made.until(lambda: not zombies(), "none of them stays a zombie")


def test_a_worker_s_end_does_not_touch_what_another_worker_has_started(loop: Callable[[str], Loop]) -> None:
    """Not even that whose parent is gone, so that the daemon has become the parent of it."""
    made = loop(CHILDREN + "exec sleep 1000")
    first, second = made.start(), made.start()
    of_first, of_second = children_said(made, first), children_said(made, second)
    orphans = {of_first["orphan"], of_second["orphan"]}
    made.until(lambda: orphans <= set(descendants.children()), "the daemon is the parent of orphans")
    made.processes.signal(second.incarnation, "kill")
    made.until_ended(second)
    # One that shows no token may come of any worker that was there before it.
    certain = [pid for kind, pid in of_second.items() if kind != "bare"]
    made.until(lambda: not any(alive(pid) for pid in certain), "the second's are gone")
    assert all(alive(pid) for pid in of_first.values())
    made.processes.signal(first.incarnation, "kill")
    made.until_ended(first)
    made.until(lambda: not any(alive(pid) for pid in [*of_first.values(), *of_second.values()]), "all are gone")


def test_other_children_of_the_daemon_are_neither_ended_nor_reaped(loop: Callable[[str], Loop]) -> None:
    made = loop("exit 1")
    with subprocess.Popen(["sleep", "1000"]) as living, subprocess.Popen(["sh", "-c", "exit 7"]) as ended:
        made.until(lambda: ended.pid in zombies(), "it is over")
        made.until_ended(made.start())
        made.processes.tidy()
        assert alive(living.pid)
        assert ended.wait() == 7
        living.kill()


def test_a_kernel_that_lists_no_children_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        monkeypatch.setattr(descendants, "_CHILDREN", "/nonexistent/{0}")
        found = descendants.children()
        child.kill()
    assert child.pid in found and os.getpid() not in found


#: The first process of a container: it is made the parent of a worker's orphan and of one that is none of ours.
FIRST_PROCESS = """
import os, signal, subprocess, sys, time
from pathlib import Path
from glmtts.daemon.processes import guardian
from glmtts.daemon.processes.descendants import Descendants, children
from glmtts.daemon.processes.orphans import Records

def orphan(token, script):
    environment = {"PATH": os.environ["PATH"], guardian.VARIABLE: token}
    command = ["setsid", "sh", "-c", f"{script} & echo $!"]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)

assert os.getpid() == 1
records = Records(Path(sys.argv[1]))
ours, stranger = (orphan(token, "(exec >&-; exec sleep 1000)") for token in (records.token(5), ""))
# It outlives its shell, which might reap it otherwise.
zombie = orphan("", "(exec >&-; sleep 0.2; exit 3)")
while not guardian.stat(zombie).gone:
    time.sleep(0.01)
descendants = Descendants(records.incarnation_of)
assert {ours, stranger, zombie} <= set(children())
while ours in children():
    descendants.tidy([], {})
    time.sleep(0.01)
assert zombie not in children() and stranger in children()
print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
def test_process_one_of_a_container_reaps_every_orphan_and_kills_those_of_its_workers(
    tmp_path: Path,
) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", FIRST_PROCESS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if "unshare" in result.stderr:
        pytest.skip(result.stderr)
    assert result.stdout == "done\n", result.stderr


def test_the_daemon_s_end_leaves_nothing(loop: Callable[[str], Loop]) -> None:
    made = loop(CHILDREN + "exec sleep 1000")
    processes = [made.start() for _ in range(3)]
    children = [pid for process in processes for pid in children_said(made, process).values()]
    before = set(descendants.children())
    assert (made.folder / FILE).exists() and made.processes.guardian_pid in before
    begun = time.monotonic()
    made.processes.kill_all()
    assert time.monotonic() - begun < 5.0
    assert not any(alive(pid) for pid in [*children, *before])
    assert not (made.folder / FILE).exists() and not zombies()


def test_a_guardian_that_was_killed_has_a_successor(loop: Callable[[str], Loop]) -> None:
    made = loop("exec sleep 1000")
    made.start()
    first = made.processes.guardian_pid
    assert first is not None and alive(first)
    os.kill(first, signal.SIGKILL)
    made.until(lambda: made.processes.guardian_pid is None, "its end is noticed")
    assert first not in descendants.children()
    made.start()
    second = made.processes.guardian_pid
    assert second is not None and alive(second)


# --- out of memory


def test_a_sigkill_by_a_user_is_not_taken_for_an_out_of_memory_kill(loop: Callable[[str], Loop]) -> None:
    made = loop("exec sleep 1000")
    process = made.start()
    os.kill(process.pid, signal.SIGKILL)
    assert made.until_ended(process) == (-signal.SIGKILL, False)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 1 GiB, with this process in it: what it starts is killed when it takes more.

    The kernel takes the largest process of the group, wherever its memory is counted: this one may have torch loaded.
    """
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in groups:
        parent, limit = Path("/sys/fs/cgroup/memory") / groups["memory"].lstrip("/"), "memory.limit_in_bytes"
    else:
        parent, limit = Path("/sys/fs/cgroup") / groups.get("", "/").lstrip("/"), "memory.max"
    group = parent / f"glmtts-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / limit).write_text(str(1 << 30))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            pytest.skip(f"a control group can't be limited here: {error}")
        yield group
    finally:
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(str(os.getpid()))
        deadline = time.monotonic() + PATIENCE_S
        while group.exists() and time.monotonic() < deadline:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.01)


def test_an_out_of_memory_kill_by_the_kernel_is_recognised(small_group: Path, loop: Callable[[str], Loop]) -> None:
    # Holds its memory in a pipeline's end: tail keeps the only line of an endless file.
    made = loop("case $GLMTTS_WORKER in *greedy*) exec tail /dev/zero;; esac; exec sleep 1000")
    assert made.processes.oom_source is not None and small_group.name in str(made.processes.oom_source)
    bystander, victim = made.start(name="modest"), made.start(name="greedy")
    assert made.until_ended(victim) == (-signal.SIGKILL, True)
    # Its death is explained by that; the next one is not.
    os.kill(bystander.pid, signal.SIGKILL)
    assert made.until_ended(bystander) == (-signal.SIGKILL, False)


# --- a thousand times


def descriptors() -> list[str]:
    found = []
    for entry in sorted(Path("/proc/self/fd").iterdir(), key=lambda entry: int(entry.name)):
        with contextlib.suppress(OSError):
            found.append(f"{entry.name} {str(entry.readlink()).partition(':')[0]}")
    return found


def rss_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def test_a_thousand_restarts_leak_nothing(loop: Callable[[str], Loop]) -> None:
    made = loop("setsid sleep 1000 & echo $!; exec sleep 1000")

    def cycle(count: int) -> None:
        for n in range(count):
            process = made.start()
            if n % 4:
                made.said(process)
            if n % 2:
                made.processes.signal(process.incarnation, "kill")
            else:
                os.kill(process.pid, signal.SIGSEGV)
            made.until_ended(process)
            made.ended.clear()
            made.lines.clear()

    def settled() -> bool:
        return descendants.children() == [made.processes.guardian_pid]

    def held() -> tuple[list[str], int, int]:
        made.until(settled, "all are reaped")
        gc.collect()
        return descriptors(), threading.active_count(), rss_kib()

    cycle(50)
    before = held()
    cycle(1000)
    after = held()
    assert after[:2] == before[:2]
    assert after[2] < before[2] + 1024
    assert made.records.path.stat().st_size < 100_000
