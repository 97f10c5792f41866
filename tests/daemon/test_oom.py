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


def test_an_old_kernel_that_counts_nothing_is_no_error(tmp_path: Path) -> None:
    kills = OomKills(tmp_path)
    assert kills.count() is None and kills.source is None


@pytest.mark.parametrize(
    ("groups", "mounts", "count"),
    [
        # A container that sees its group as the root, and one whose /proc shows the path on the host.
        ("0::/", ["30 23 0:26 / ROOT/v2 rw - cgroup2 cgroup2 rw"], 5),
        (
            "4:memory:/docker/abc\n0::/",
            [
                "35 31 0:32 /docker/abc ROOT/v1 rw - cgroup cgroup rw,memory",
                "41 31 0:38 / ROOT/unified rw - cgroup2 cgroup2 rw",
            ],
            6,
        ),
        # Without a group, the count of the whole machine.
        ("0::/\nnonsense", [], 40),
        ("0::/\nnonsense", ["31 23 0:28 / ROOT/cg rw - cgroup2 cgroup2 rw"], 40),
        ("0::/\nnonsense", ["nonsense - "], 40),
    ],
)
def test_the_nearest_count_is_used(machine: Path, groups: str, mounts: list[str], count: int) -> None:
    write(machine / "v2/memory.events", EVENTS.format(5))
    write(machine / "v1/memory.oom_control", CONTROL.format(6))
    kills = say(machine, f"{groups}\n", *mounts)
    assert kills.count() == count
    kills.close()
