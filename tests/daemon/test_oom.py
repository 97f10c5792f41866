"""The kernel's count of out-of-memory kills is found wherever a daemon may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmtts.daemon.processes.oom import OomKills

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 12\noom_kill 40\n")
    return tmp_path


def say(machine: Path, cgroup: str, *mounts: str) -> OomKills:
    (machine / "proc/self/cgroup").write_text(cgroup)
    (machine / "proc/self/mountinfo").write_text("".join(m.replace("ROOT", str(machine)) + "\n" for m in mounts))
    return OomKills(machine / "proc")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_service_s_own_group_is_counted_not_the_machine(machine: Path) -> None:
    file = write(machine / "cg/system.slice/glmttsd.service/memory.events", EVENTS.format(2))
    kills = say(machine, "0::/system.slice/glmttsd.service\n", "30 23 0:26 / ROOT/cg rw - cgroup2 cgroup2 rw")
    assert kills.count() == 2 and kills.source == file
    file.write_text(EVENTS.format(3))
    assert kills.count() == 3
    kills.close()
    assert kills.count() is None


def test_a_container_that_sees_its_group_as_the_root(machine: Path) -> None:
    write(machine / "cg/memory.events", EVENTS.format(5))
    kills = say(machine, "0::/\n", "30 23 0:26 / ROOT/cg rw - cgroup2 cgroup2 rw")
    assert kills.count() == 5
    kills.close()


def test_a_container_whose_proc_shows_the_path_on_the_host(machine: Path) -> None:
    write(machine / "cg/memory/memory.oom_control", CONTROL.format(6))
    kills = say(
        machine,
        "4:memory:/docker/abc\n0::/\n",
        "35 31 0:32 /docker/abc ROOT/cg/memory rw - cgroup cgroup rw,memory",
        "41 31 0:38 / ROOT/cg/unified rw - cgroup2 cgroup2 rw",
    )
    assert kills.count() == 6
    kills.close()


@pytest.mark.parametrize("mounts", [(), ("31 23 0:28 / ROOT/cg rw - cgroup2 cgroup2 rw",), ("nonsense - ",)])
def test_without_a_group_the_machine_s_own_count_is_used(machine: Path, mounts: tuple[str, ...]) -> None:
    kills = say(machine, "0::/\nnonsense\n", *mounts)
    assert kills.count() == 40
    kills.close()


def test_an_old_kernel_that_counts_nothing_is_no_error(tmp_path: Path) -> None:
    kills = OomKills(tmp_path)
    assert kills.count() is None and kills.source is None
