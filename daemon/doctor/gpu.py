"""What the doctor sees of GPUs: device files, driver, NVML, whose memory it tells, the kernel's Xid lines."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from ..core.settings import Settings
from ..gpu.nvml import NvmlReader
from .check import Check, memory, needs_gpu

_DRIVER = Path("/proc/driver/nvidia/version")

#: PCI vendor of NVIDIA, and the class of display controllers (their first byte).
_NVIDIA, _DISPLAY = "0x10de", "0x03"

#: The device number of the kernel's log (mem(4)); containers put other things in its place, consoles among them.
_KMSG = os.makedev(1, 11)

#: Faults of an application, not of the GPU (NVIDIA's catalogue of Xid errors).
_APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
_XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


def devices(settings: Settings) -> list[Check]:
    """The driver and the device files that every CUDA program opens."""
    needed = needs_gpu(settings)
    files = sorted(path for path in Path("/dev").glob("nvidia*") if path.is_char_device())
    if not _DRIVER.exists() and not files:
        return [_no_driver(needed)]
    checks = []
    if _DRIVER.exists():
        line = _DRIVER.read_text(errors="replace").splitlines()[0]
        match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", line)
        checks.append(Check(name="driver", seen=match[1] if match else line))
    if not any(re.fullmatch(r"nvidia\d+", path.name) for path in files):
        return [
            *checks,
            Check(
                name="device files",
                state="wrong" if needed else "warning",
                seen="no /dev/nvidia0",
                means="the driver runs, but no GPU can be opened from here",
                mend="in a container: start it with --gpus all (NVIDIA Container Toolkit); else "
                "run nvidia-modprobe, or nvidia-smi as root",
            ),
        ]
    closed = [str(path) for path in files if _is_used(path) and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        checks.append(
            Check(
                name="device files",
                state="wrong" if needed else "warning",
                seen=f"{', '.join(closed)}: not for this user",
                means="CUDA and NVML can't open the GPU",
                mend="add the daemon's user to the group that owns them (ls -l /dev/nvidia*), often video or render",
            )
        )
    else:
        checks.append(Check(name="device files", seen=", ".join(path.name for path in files)))
    return checks


def _is_used(path: Path) -> bool:
    return bool(re.fullmatch(r"nvidia(\d+|ctl|-uvm)", path.name))


def _no_driver(needed: bool) -> Check:
    if Path("/dev/dxg").exists():
        return Check(name="driver", seen="WSL: the GPU is Windows's, its memory is known for the device alone")
    card = any(_is_nvidia(folder) for folder in Path("/sys/bus/pci/devices").glob("*"))
    if card:
        return Check(
            name="driver",
            state="wrong" if needed else "warning",
            seen="an NVIDIA GPU is in the machine, but its driver does not run",
            means="no worker can use it",
            mend="install NVIDIA's driver, or modprobe nvidia; in a container: start it with --gpus all",
        )
    return Check(
        name="driver",
        state="wrong" if needed else "ok",
        seen="no NVIDIA GPU and no driver" + ("" if needed else "; none is needed"),
        means="the engine can't run here" if needed else "",
        mend='use a machine with a GPU, or [engine] name = "espeak"' if needed else "",
    )


def _is_nvidia(folder: Path) -> bool:
    try:
        vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def nvml(settings: Settings) -> list[Check]:
    """NVML and each GPU, in the daemon's own way of reading them. Blocks as long as the driver does."""
    needed = needs_gpu(settings)
    reading, gpus = NvmlReader().read()
    if reading.state != "ok":
        state = "wrong" if needed or reading.state != "absent" else "ok"
        # Nobody tries again here: the daemon does.
        detail = reading.detail.partition("; tried again")[0]
        absent = Check(name="NVML", seen=f"{reading.state}: {detail}")
        if state == "wrong":
            absent.state = "wrong"
            absent.means = "the GPUs' memory can't be seen: nothing protects workers from running out of it"
            absent.mend = "what the words above say; nvidia-smi must work for the daemon's user"
        return [absent]
    checks = [Check(name="NVML", seen=f"driver {reading.driver}, NVML {reading.version}, {len(gpus)} GPUs")]
    if reading.detail:
        checks.append(Check(name="NVML", state="warning", seen=reading.detail))
    for gpu in gpus:
        name = f"GPU {gpu.index}"
        if gpu.state != "ok":
            checks.append(
                Check(
                    name=name,
                    state="wrong",
                    seen=f"{gpu.state}: {gpu.detail}",
                    means="no worker is started on it",
                    mend="what the words above say; or leave it out in [workers] gpus",
                )
            )
            continue
        checks.append(Check(name=name, seen=f"{gpu.name}, {memory(gpu.free or 0)} of {memory(gpu.total or 0)} free"))
        checks += _holders(name, gpu.processes, gpu.used)
    return checks


def _holders(name: str, processes: dict[int, int | None], used: int | None) -> list[Check]:
    """Who has memory of a GPU, and whether NVML tells how much."""
    checks = []
    if processes and all(size is None for size in processes.values()):
        checks.append(
            Check(
                name=f"{name} per process",
                state="warning",
                seen="NVML lists processes without their memory",
                means="as in many containers and on WSL: a worker's VRAM is worked out from the device's use, shown as "
                "'~ (device)', and other users of the GPU blur it",
                mend="start the container with --pid=host, or update the driver (560 and later tell)",
            )
        )
    others = {pid: size for pid, size in processes.items() if not is_worker(pid)}
    if others:
        shown = ", ".join(
            f"{_command(pid)} (pid {pid}) {memory(size) if size is not None else '?'}" for pid, size in others.items()
        )
        checks.append(
            Check(
                name=f"{name} others",
                state="warning",
                seen=shown,
                means=f"they share the GPU ({memory(used or 0)} in use in all) and leave less for workers",
                mend="end them if they are not wanted; workers left behind are ended when glmttsd starts",
            )
        )
    return checks


def is_worker(pid: int) -> bool:
    """Whether this process is a worker of a daemon of ours."""
    with contextlib.suppress(OSError):
        return b"glmtts.daemon.gpu_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"


def xids(_settings: Settings) -> list[Check]:
    """What the driver has told the kernel's log since the machine started."""
    try:
        if Path("/dev/kmsg").stat().st_rdev != _KMSG:
            return [
                Check(name="kernel log", seen="not to be seen from this container: dmesg | grep Xid on the machine")
            ]
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return [Check(name="kernel log", seen=f"not for this user ({error.strerror}): sudo dmesg | grep Xid")]
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
        return [Check(name="kernel log", seen=f"can't be read ({error.strerror}): sudo dmesg | grep Xid")]
    finally:
        os.close(log)
    return [judge_xids(records, time.monotonic())]


def judge_xids(records: list[str], now: float) -> Check:
    """What records of /dev/kmsg say of GPUs: ``priority,number,microseconds,flags;text`` each, by ``now``."""
    found: dict[tuple[str, int], float] = {}
    for record in records:
        if match := _XID.search(record):
            _, _, when, *_ = record.split(",", 3)
            found[match[1], int(match[2])] = now - int(when) / 1e6
    if not found:
        return Check(name="kernel log", seen="no Xid errors")
    grave = {key: ago for key, ago in found.items() if key[1] not in _APPLICATION_XIDS}
    seen = ", ".join(f"Xid {code} on {gpu} {ago / 3_600:.1f} h ago" for (gpu, code), ago in found.items())
    return Check(
        name="kernel log",
        state="warning" if grave else "ok",
        seen=seen,
        means="the GPU, its memory or its bus had a fault" if grave else "",
        mend="look the number up in NVIDIA's Xid catalogue; one that comes back wants the GPU replaced"
        if grave
        else "",
    )
