"""Checks of the machine itself: Python, packages, memory, limits, clock, namespaces."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path

from .. import confinement
from ..core.settings import Settings
from ..engines import CONFINED
from ..gpu.device import has_host_pids
from ..gpu.host_memory import HostMemory
from ..processes.own_process import UnfitError, check_limits
from .check import Check, finding, memory, needs_gpu, ok, warning, wrong

#: What the daemon imports beside the standard library.
_PACKAGES = ("pyzmq", "msgpack", "msgspec", "nvidia-ml-py", "prometheus-client")

#: With less, a model that is first loaded into host memory may not start.
_LITTLE_MEMORY = 1 << 30
_LITTLE_SHM = 64 << 20
_FEW_DESCRIPTORS = 4_096

#: The result of adjtimex(2) for a clock that is not synchronised.
_TIME_ERROR = 5
#: A clock before this time, the beginning of 2025, was never set.
_EARLIEST = 1_735_689_600.0


def python(_settings: Settings) -> list[Check]:
    """The daemon's interpreter, and its packages."""
    found, missing = [], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    names = " ".join(missing)
    return [
        ok("python", f"{platform.python_version()} at {sys.executable}"),
        wrong(
            "packages",
            f"missing: {', '.join(missing)}",
            "glmttsd does not start; a client alone works without them",
            f"{sys.executable} -m pip install {names}",
        )
        if missing
        else ok("packages", ", ".join(found)),
    ]


def memory_limits(_settings: Settings) -> list[Check]:
    """Host memory, the control group's limit, swap and /dev/shm."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    machine = {name: int(size.split()[0]) << 10 for name, _, size in (line.partition(":") for line in lines)}
    total, available = HostMemory(time.monotonic).read()
    limited = total < machine["MemTotal"]
    seen = f"{memory(available)} of {memory(total)} available"
    if limited:
        seen += f" (a control group's limit; the machine has {memory(machine['MemTotal'])})"
    swap = machine.get("SwapTotal", 0)
    used = swap - machine.get("SwapFree", 0)
    return [
        finding(
            "warning" if available < _LITTLE_MEMORY else "ok",
            "memory",
            seen,
            "when memory runs out the kernel kills processes: workers die with cause host_oom",
            "raise the control group's limit (MemoryMax=)" if limited else "free memory, or add some",
        ),
        finding(
            "warning" if used > swap // 2 else "ok",
            "swap",
            f"{memory(used)} of {memory(swap)} in use",
            "swapped-out memory answers slowly: speech stutters and workers' beats come late",
            "find the processes that use the memory (ps --sort -rss), or add some",
        ),
        _shared_memory(),
    ]


def _shared_memory() -> Check:
    try:
        status = os.statvfs("/dev/shm")
        size = status.f_blocks * status.f_frsize
        seen = memory(size)
    except OSError as error:
        size, seen = 0, f"not there ({error.strerror})"
    return finding(
        "warning" if size <= _LITTLE_SHM else "ok",
        "/dev/shm",
        seen,
        "torch and NCCL share memory there, and a container's default of 64 MiB is soon full",
        "start the container with --shm-size=1g or --ipc=host",
    )


def limits(settings: Settings) -> list[Check]:
    """The limits of this process, open files above all: each client's connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(settings.limits.max_connections * 2 + 256, _FEW_DESCRIPTORS)
    endless = hard == resource.RLIM_INFINITY
    try:
        check_limits(sockets=2 if settings.tcp.listen else 1)
    except UnfitError as error:
        return [wrong("limits", str(error), "the daemon does not start under the limits of this process")]
    return [
        finding(
            "ok" if endless or hard >= wanted else "warning",
            "open files",
            f"{soft} now, no limit" if endless else f"{soft} now, at most {hard}",
            f"fewer clients are served than [limits] max_connections = {settings.limits.max_connections}",
            "raise it: LimitNOFILE= in the unit, or ulimit -Hn",
        )
    ]


def clock(_settings: Settings) -> list[Check]:
    """Whether the time of day is right: logs and the journal show it, no decision depends on it."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if time.time() < _EARLIEST:
        means = "that is long ago: logs and the times of jobs are wrong"
        return [warning("clock", now, means, "set the clock, or start a time service (systemd-timesyncd, chrony)")]
    # struct timex of adjtimex(2) with modes = 0: the clock is read, nothing is set.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    return [ok("clock", f"{now}, {'not synchronised' if state == _TIME_ERROR else 'synchronised'}")]


def confined_engine(settings: Settings) -> list[Check]:
    """Whether the kernel can confine an engine in C, and the decoders of recordings."""
    abi, filters = confinement.landlock_abi(), confinement.has_filters()
    seen = f"{f'Landlock {abi}' if abi else 'no Landlock'}, {'filters' if filters else 'no filters'} of system calls"
    off = settings.engine.name in CONFINED and not settings.engine.confine
    means = "a text or a recording that takes over a library in C can reach all files of the daemon's user"
    remedy = (
        "a kernel from 5.13 on with Landlock in its list lsm=; a container's profile must permit landlock_*, seccomp"
    )
    if off:
        seen, remedy = f"{seen}; off", "set [engine] confine = true"
    return [finding("warning" if off or not (abi and filters) else "ok", "confinement", seen, means, remedy)]


def container(settings: Settings) -> list[Check]:
    """Whether this is a container, and what it can't see."""
    marks = [mark for mark in ("/.dockerenv", "/run/.containerenv") if Path(mark).exists()]
    named = os.environ.get("container", "")  # noqa: SIM112 - as systemd and podman spell it
    if "microsoft" in platform.release().lower():
        kind = "WSL"
    elif marks or named:
        kind = f"container ({named or marks[0]})"
    else:
        kind = "no container"
    if has_host_pids():
        return [ok("isolation", f"{kind}, the machine's own process numbers")]
    return [
        finding(
            "warning" if needs_gpu(settings) else "ok",
            "isolation",
            f"{kind}, process numbers of its own",
            "many drivers can't tell processes apart from here: a worker's VRAM is then worked out from the device's "
            "use, shown as '~ (device)', and other users of the GPU blur it",
            "start the container with --pid=host for figures per process",
        )
    ]
