"""What the doctor sees of the machine itself: Python, packages, memory, limits, clock, namespaces."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path

from ..core.settings import Settings
from ..gpu.device import has_host_pids
from ..gpu.host_memory import HostMemory
from .check import Check, memory, needs_gpu

#: What the daemon imports beside the standard library.
_PACKAGES = ("pyzmq", "msgpack", "msgspec", "nvidia-ml-py", "prometheus-client")

#: Below that, starting a model that is first loaded into host memory is a gamble.
_LITTLE_MEMORY = 1 << 30
_LITTLE_SHM = 64 << 20
_FEW_DESCRIPTORS = 4_096

#: The result of adjtimex(2) for a clock that nothing keeps right.
_TIME_ERROR = 5
#: No machine is older than this program.
_EARLIEST = 1_735_689_600.0


def python(_settings: Settings) -> list[Check]:
    """The interpreter that runs this, and the daemon's packages in it."""
    version = platform.python_version()
    checks = [Check(name="python", seen=f"{version} at {sys.executable}")]
    found, missing = [], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        checks.append(
            Check(
                name="packages",
                state="wrong",
                seen=f"missing: {', '.join(missing)}",
                means="glmttsd does not start; a client alone works without them",
                mend=f"{sys.executable} -m pip install {' '.join(missing)}",
            )
        )
    else:
        checks.append(Check(name="packages", seen=", ".join(found)))
    return checks


def memory_limits(_settings: Settings) -> list[Check]:
    """Host memory, the control group's limit, swap and /dev/shm."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    machine = {name: int(size.split()[0]) << 10 for name, _, size in (line.partition(":") for line in lines)}
    total, available = HostMemory(time.monotonic).read()
    limited = total < machine["MemTotal"]
    seen = f"{memory(available)} of {memory(total)} available"
    if limited:
        seen += f" (a control group's limit; the machine has {memory(machine['MemTotal'])})"
    checks = [Check(name="memory", seen=seen)]
    if available < _LITTLE_MEMORY:
        checks[0].state = "warning"
        checks[0].means = "the kernel ends processes when none is left: workers die with cause host_oom"
        checks[0].mend = "raise the control group's limit (MemoryMax=)" if limited else "free memory, or add some"
    swap = machine.get("SwapTotal", 0)
    swapped = swap - machine.get("SwapFree", 0)
    swap_seen = f"{memory(swapped)} of {memory(swap)} in use"
    if swap and swapped > swap // 2:
        checks.append(
            Check(
                name="swap",
                state="warning",
                seen=swap_seen,
                means="what was swapped out answers slowly; speech stutters and beats come late",
                mend="see what uses the memory (ps --sort -rss), or add some",
            )
        )
    else:
        checks.append(Check(name="swap", seen=swap_seen))
    try:
        status = os.statvfs("/dev/shm")
        shm = status.f_blocks * status.f_frsize
    except OSError as error:
        shm = 0
        checks.append(_small_shm(f"not there ({error.strerror})"))
    else:
        checks.append(_small_shm(memory(shm)) if shm <= _LITTLE_SHM else Check(name="/dev/shm", seen=memory(shm)))
    return checks


def _small_shm(seen: str) -> Check:
    return Check(
        name="/dev/shm",
        state="warning",
        seen=seen,
        means="torch and NCCL share memory there; a container's default of 64 MiB is soon full",
        mend="start the container with --shm-size=1g or --ipc=host",
    )


def limits(settings: Settings) -> list[Check]:
    """How many files may be open: each client's connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.limits.max_connections * 2 + 256
    seen = f"{soft} now, at most {hard}" if hard != resource.RLIM_INFINITY else f"{soft} now, no limit"
    if hard != resource.RLIM_INFINITY and hard < min(wanted, _FEW_DESCRIPTORS):
        return [
            Check(
                name="open files",
                state="warning",
                seen=seen,
                means=f"fewer clients are served than [limits] max_connections = {settings.limits.max_connections}",
                mend="raise it: LimitNOFILE= in the unit, or ulimit -Hn",
            )
        ]
    return [Check(name="open files", seen=seen)]


def clock(_settings: Settings) -> list[Check]:
    """Whether the time of day is right. Nothing in the daemon's decisions hangs on it, but logs and journals do."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if time.time() < _EARLIEST:
        return [
            Check(
                name="clock",
                state="warning",
                seen=now,
                means="that is long ago: logs and the times of jobs are wrong",
                mend="set the clock, or start a time service (systemd-timesyncd, chrony)",
            )
        ]
    # struct timex of adjtimex(2); all modes 0: it is read, nothing is set.
    buffer = ctypes.create_string_buffer(512)
    state = ctypes.CDLL(None).adjtimex(buffer)
    words = "not kept by a time service of this kernel" if state == _TIME_ERROR else "kept by a time service"
    return [Check(name="clock", seen=f"{now}, {words}")]


def container(settings: Settings) -> list[Check]:
    """Whether this is a container, and what that takes away."""
    marks = [mark for mark in ("/.dockerenv", "/run/.containerenv") if Path(mark).exists()]
    named = os.environ.get("container", "")  # noqa: SIM112 - as systemd and podman spell it
    if "microsoft" in platform.release().lower():
        kind = "WSL"
    elif marks or named:
        kind = f"container ({named or marks[0]})"
    else:
        kind = "no container"
    if has_host_pids():
        return [Check(name="isolation", seen=f"{kind}, the machine's own process numbers")]
    return [
        Check(
            name="isolation",
            state="warning" if needs_gpu(settings) else "ok",
            seen=f"{kind}, process numbers of its own",
            means="many drivers can't tell processes apart from here: a worker's VRAM is then worked out from the "
            "device's use, shown as '~ (device)', and other users of the GPU blur it",
            mend="start the container with --pid=host for figures per process",
        )
    ]
