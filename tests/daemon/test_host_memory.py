"""daemon/gpu/host_memory.py: a container's limit is seen before the kernel enforces it. Groups are made of files."""

from __future__ import annotations

from pathlib import Path

import psutil

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


def test_a_service_s_limit_counts_without_the_cache_that_the_kernel_would_drop(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root / "system.slice" / "glmtts.service", str(96 * MIB), 80 * MIB, inactive_file=30 * MIB)
    folder = proc(tmp_path, "0::/system.slice/glmtts.service\n", [("/", root, "cgroup2", "rw")])
    assert HostMemory(lambda: 0.0, proc=folder).read() == (96 * MIB, 46 * MIB)


def test_the_limit_of_a_group_above_counts_as_well(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root / "a.slice", str(64 * MIB), 60 * MIB)
    v2(root / "a.slice" / "b.service", str(96 * MIB), 10 * MIB)
    folder = proc(tmp_path, "0::/a.slice/b.service\n", [("/", root, "cgroup2", "rw")])
    assert HostMemory(lambda: 0.0, proc=folder).read() == (64 * MIB, 4 * MIB)


def test_a_container_that_sees_only_its_own_group_knows_its_limit(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, str(96 * MIB), 32 * MIB)
    folder = proc(tmp_path, "0::/\n", [("/", root, "cgroup2", "rw")])
    assert HostMemory(lambda: 0.0, proc=folder).read() == (96 * MIB, 64 * MIB)


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


def test_a_full_group_has_nothing_left_but_never_less(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, str(96 * MIB), 97 * MIB)
    folder = proc(tmp_path, "0::/\n", [("/", root, "cgroup2", "rw")])
    assert HostMemory(lambda: 0.0, proc=folder).read() == (96 * MIB, 0)


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


def test_a_group_with_more_than_the_machine_does_not_count(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, str(1 << 50), 32 * MIB)
    total, available = HostMemory(lambda: 0.0, proc=proc(tmp_path, "0::/\n", [("/", root, "cgroup2", "rw")])).read()
    assert total == psutil.virtual_memory().total and 0 < available < total


def test_strange_files_leave_the_machine_s_own_figures(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    v2(root, "nonsense", 32 * MIB)
    total = psutil.virtual_memory().total
    assert HostMemory(lambda: 0.0, proc=proc(tmp_path, "0::/../x\n", [("/", root, "cgroup2", "rw")])).read()[0] == total
    assert HostMemory(lambda: 0.0, proc=tmp_path / "nothing").read()[0] == total
