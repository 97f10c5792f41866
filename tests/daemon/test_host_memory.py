"""Host memory: a control group's limit is seen before the kernel enforces it. The groups here are made of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from glmtts.daemon.gpu.host_memory import HostMemory

MIB = 1 << 20


def memory(tmp_path: Path, group: str, clock: Callable[[], float] = lambda: 0.0) -> HostMemory:
    """The host memory of a process in ``group``, whose groups are mounted at ``tmp_path / "cgroup"``."""
    (tmp_path / "cgroup").mkdir(exist_ok=True)
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc" / "cgroup").write_text(group)
    return HostMemory(clock, proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")


def v2(folder: Path, limit: str, current: int, inactive_file: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 7\ninactive_file {inactive_file}\nactive_file 9\n")


@pytest.mark.parametrize(
    ("group", "limit", "used", "cache", "expected"),
    [
        ("system.slice/glmtts.service", 96, 80, 30, (96, 46)),  # without the cache that the kernel would drop
        ("", 96, 32, 0, (96, 64)),  # a container that sees only its own group
        ("", 96, 97, 0, (96, 0)),  # full, and never less than nothing
        ("a.slice/b.service", 96, 10, 0, (64, 4)),  # the parent has less
    ],
)
def test_a_group_s_limit_counts(
    *, tmp_path: Path, group: str, limit: int, used: int, cache: int, expected: tuple[int, int]
) -> None:
    root = tmp_path / "cgroup"
    v2(root / group, str(limit * MIB), used * MIB, inactive_file=cache * MIB)
    if group.startswith("a.slice"):
        v2(root / "a.slice", str(64 * MIB), 60 * MIB)
    assert memory(tmp_path, f"0::/{group}\n").read() == tuple(figure * MIB for figure in expected)


@pytest.mark.parametrize("folder", ["memory/docker/abc", "memory"])
def test_version_1_is_read_too(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "cgroup" / folder
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text(f"{96 * MIB}\n")
    (root / "memory.usage_in_bytes").write_text(f"{90 * MIB}\n")
    (root / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {6 * MIB}\n")
    assert memory(tmp_path, "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n").read() == (96 * MIB, 12 * MIB)


def test_a_limit_that_is_set_and_changed_while_the_daemon_runs_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, "max", 32 * MIB)
    now = 0.0
    host = memory(tmp_path, "0::/\n", lambda: now)
    total = psutil.virtual_memory().total
    assert host.read()[0] == total
    v2(root, str(96 * MIB), 32 * MIB)
    now = 31.0
    assert host.read() == (96 * MIB, 64 * MIB)
    v2(root, str(48 * MIB), 32 * MIB)
    assert host.read() == (48 * MIB, 16 * MIB)
    v2(root, "max", 32 * MIB)
    assert host.read()[0] == total


@pytest.mark.parametrize("limit", ["nonsense", str(1 << 50)])
def test_a_strange_limit_leaves_the_machine_s_own_figures(tmp_path: Path, limit: str) -> None:
    root = tmp_path / "cgroup"
    v2(root, limit, 32 * MIB)
    total = psutil.virtual_memory().total
    assert memory(tmp_path, "0::/../x\n").read()[0] == total
    assert HostMemory(lambda: 0.0, proc=tmp_path / "nothing").read()[0] == total
