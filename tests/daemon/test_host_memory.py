"""Host memory: a control group's limit is seen before the kernel enforces it. The groups here are made of files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from glmtts.daemon.gpu.host_memory import HostMemory

MIB = 1 << 20


def proc(tmp_path: Path, cgroup: str, mounts: list[tuple[str, Path, str, str]]) -> Path:
    """/proc/self of a process in ``cgroup``, with mounts: root, where, type, options."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    lines = [
        f"{40 + number} 31 0:{number} {root} {where} rw,nosuid shared:9 - {kind} cgroup {options}\n"
        for number, (root, where, kind, options) in enumerate(mounts)
    ]
    (folder / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))
    return folder


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
    folder = proc(tmp_path, f"0::/{group}\n", [("/", root, "cgroup2", "rw")])
    assert HostMemory(lambda: 0.0, proc=folder).read() == tuple(figure * MIB for figure in expected)


def test_version_1_is_read_too(tmp_path: Path) -> None:
    root = tmp_path / "memory with space"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text(f"{96 * MIB}\n")
    (root / "memory.usage_in_bytes").write_text(f"{90 * MIB}\n")
    (root / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {6 * MIB}\n")
    mounts = [
        ("/", tmp_path / "unified", "cgroup2", "rw"),
        ("/", tmp_path / "cpu", "cgroup", "rw,cpu"),
        ("/docker/abc", Path(str(root).replace(" ", "\\040")), "cgroup", "rw,memory"),
    ]
    folder = proc(tmp_path, "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n", mounts)
    assert HostMemory(lambda: 0.0, proc=folder).read() == (96 * MIB, 12 * MIB)


def test_a_limit_that_is_set_and_changed_while_the_daemon_runs_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, "max", 32 * MIB)
    now = 0.0
    memory = HostMemory(lambda: now, proc=proc(tmp_path, "0::/\n", [("/", root, "cgroup2", "rw")]))
    total = psutil.virtual_memory().total
    assert memory.read()[0] == total
    v2(root, str(96 * MIB), 32 * MIB)
    now = 31.0
    assert memory.read() == (96 * MIB, 64 * MIB)
    v2(root, str(48 * MIB), 32 * MIB)
    assert memory.read() == (48 * MIB, 16 * MIB)
    v2(root, "max", 32 * MIB)
    assert memory.read()[0] == total


@pytest.mark.parametrize("limit", ["nonsense", str(1 << 50)])
def test_a_strange_limit_leaves_the_machine_s_own_figures(tmp_path: Path, limit: str) -> None:
    root = tmp_path / "cgroup"
    v2(root, limit, 32 * MIB)
    total = psutil.virtual_memory().total
    assert HostMemory(lambda: 0.0, proc=proc(tmp_path, "0::/../x\n", [("/", root, "cgroup2", "rw")])).read()[0] == total
    assert HostMemory(lambda: 0.0, proc=tmp_path / "nothing").read()[0] == total
