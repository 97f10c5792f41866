"""Checks of the GPUs: device files, driver, NVML, the processes on them, and the kernel's Xid lines."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from ..core.monitoring.alert_rules import APPLICATION_XIDS
from ..core.settings import Settings
from ..gpu.nvml import NvmlReader
from .check import Check, State, finding, memory, needs_gpu, ok, warning, wrong

_DRIVER = Path("/proc/driver/nvidia/version")

#: PCI vendor of NVIDIA, and the class of display controllers (their first byte).
_NVIDIA, _DISPLAY = "0x10de", "0x03"

#: The device number of the kernel's log (mem(4)); containers put other things in its place, consoles among them.
_KMSG = os.makedev(1, 11)
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


def devices(settings: Settings) -> list[Check]:
    """The driver and the device files that every CUDA program opens."""
    state: State = "wrong" if needs_gpu(settings) else "warning"
    files = sorted(path for path in Path("/dev").glob("nvidia*") if path.is_char_device())
    if not _DRIVER.exists() and not files:
        return [_no_driver(state)]
    checks = []
    if _DRIVER.exists():
        line = _DRIVER.read_text(errors="replace").splitlines()[0]
        match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", line)
        checks.append(ok("driver", match[1] if match else line))
    used = [path for path in files if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", path.name)]
    closed = [str(path) for path in used if not os.access(path, os.R_OK | os.W_OK)]
    if not any(re.fullmatch(r"nvidia\d+", path.name) for path in files):
        means = "the driver runs, but no GPU can be opened from here"
        remedy = (
            "in a container: start it with --gpus all (NVIDIA Container Toolkit); else run nvidia-modprobe, or "
            "nvidia-smi as root"
        )
        return [*checks, finding(state, "device files", "no /dev/nvidia0", means, remedy)]
    if closed:
        remedy = "add the daemon's user to the group that owns them (ls -l /dev/nvidia*), often video or render"
        seen = f"{', '.join(closed)}: not for this user"
        return [*checks, finding(state, "device files", seen, "CUDA and NVML can't open the GPU", remedy)]
    return [*checks, ok("device files", ", ".join(path.name for path in files))]


def _no_driver(state: State) -> Check:
    if Path("/dev/dxg").exists():
        return ok("driver", "WSL: Windows has the GPU, and its memory is known for the whole device alone")
    if any(_is_nvidia(folder) for folder in Path("/sys/bus/pci/devices").glob("*")):
        seen = "an NVIDIA GPU is in the machine, but its driver does not run"
        remedy = "install NVIDIA's driver, or modprobe nvidia; in a container: start it with --gpus all"
        return finding(state, "driver", seen, "no worker can use it", remedy)
    if state != "wrong":
        return ok("driver", "no NVIDIA GPU and no driver; none is needed")
    remedy = 'use a machine with a GPU, or [engine] name = "espeak"'
    return wrong("driver", "no NVIDIA GPU and no driver", "the engine can't run here", remedy)


def _is_nvidia(folder: Path) -> bool:
    try:
        vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def nvml(settings: Settings) -> list[Check]:
    """NVML and each GPU, read as the daemon reads them. Blocks as long as the driver does."""
    reading, gpus = NvmlReader().read()
    if reading.state != "ok":
        # The daemon tries again; this process does not.
        seen = f"{reading.state}: {reading.detail.partition('; tried again')[0]}"
        means = "the GPUs' memory can't be seen: nothing protects workers from running out of it"
        remedy = "follow the message above; nvidia-smi must work for the daemon's user"
        expected = reading.state == "absent" and not needs_gpu(settings)
        return [finding("ok" if expected else "wrong", "NVML", seen, means, remedy)]
    checks = [ok("NVML", f"driver {reading.driver}, NVML {reading.version}, {len(gpus)} GPUs")]
    if reading.detail:
        checks.append(Check(name="NVML", state="warning", seen=reading.detail))
    for gpu in gpus:
        name = f"GPU {gpu.index}"
        if gpu.state == "ok":
            checks.append(ok(name, f"{gpu.name}, {memory(gpu.free or 0)} of {memory(gpu.total or 0)} free"))
            checks += holders(name, gpu.processes, gpu.used or 0)
        else:
            remedy = "follow the message above, or leave this GPU out in [workers] gpus"
            checks.append(wrong(name, f"{gpu.state}: {gpu.detail}", "no worker is started on it", remedy))
    return checks


def holders(name: str, processes: dict[int, int | None], used: int) -> list[Check]:
    """The processes on a GPU.

    Args:
        processes: bytes by pid, None where NVML does not tell.
        used: bytes of the whole device.
    """
    checks = []
    if processes and all(size is None for size in processes.values()):
        means = (
            "as in many containers and on WSL: a worker's VRAM is worked out from the device's use, shown as "
            "'~ (device)', and other users of the GPU blur it"
        )
        remedy = "start the container with --pid=host, or update the driver (560 and later tell)"
        seen = "NVML lists processes without their memory"
        checks.append(warning(f"{name} per process", seen, means, remedy))
    others = {pid: size for pid, size in processes.items() if not is_worker(pid)}
    if others:
        seen = ", ".join(
            f"{_command(pid)} (pid {pid}) {memory(size) if size is not None else '?'}" for pid, size in others.items()
        )
        means = f"they share the GPU ({memory(used)} in use in all) and leave less for workers"
        remedy = "end them if they are not wanted; workers left behind are ended when glmttsd starts"
        checks.append(warning(f"{name} others", seen, means, remedy))
    return checks


def is_worker(pid: int) -> bool:
    """Whether this process is a worker of any glmttsd."""
    with contextlib.suppress(OSError):
        return b"glmtts.daemon.gpu_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"


def xids(_settings: Settings) -> list[Check]:
    """GPU errors in the kernel's log since the machine started."""
    try:
        if Path("/dev/kmsg").stat().st_rdev != _KMSG:
            return [ok("kernel log", "can't be seen from this container: dmesg | grep Xid on the machine")]
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return [ok("kernel log", f"not for this user ({error.strerror}): sudo dmesg | grep Xid")]
    records: list[str] = []
    try:
        while not records or records[-1]:
            try:
                records.append(os.read(log, 8_192).decode(errors="replace"))
            except BrokenPipeError:
                continue  # older lines were overwritten while it was read
    except BlockingIOError:
        pass  # that was the last one
    except OSError as error:
        return [ok("kernel log", f"can't be read ({error.strerror}): sudo dmesg | grep Xid")]
    finally:
        os.close(log)
    return [judge_xids(records, time.monotonic())]


def judge_xids(records: list[str], now: float) -> Check:
    """The Xid errors in records of /dev/kmsg (``priority,number,microseconds,flags;text``), and how bad they are."""
    found: dict[tuple[str, int], float] = {}
    for record in records:
        if match := _XID.search(record):
            _, _, when, *_ = record.split(",", 3)
            found[match[1], int(match[2])] = now - int(when) / 1e6
    if not found:
        return ok("kernel log", "no Xid errors")
    return finding(
        "ok" if all(code in APPLICATION_XIDS for _, code in found) else "warning",
        "kernel log",
        ", ".join(f"Xid {code} on {gpu} {ago / 3_600:.1f} h ago" for (gpu, code), ago in found.items()),
        "the GPU, its memory or its bus had a fault",
        "look the number up in NVIDIA's Xid catalogue; if it keeps coming back, replace the GPU",
    )
