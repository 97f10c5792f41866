"""GPUs for machines without one: fake libnvidia-ml.so.1 and libcuda.so.1, and the state that tests set and look at.

A pytest test asks for the fixture ``fake_gpus`` (one GPU of 24 GiB) or ``make_fake_gpus`` (tests/conftest.py); both
skip where there is no C compiler. Elsewhere, with ``tests/`` on ``sys.path``::

    from fake_gpu.fake_gpu import FakeGpus

    with FakeGpus(24_576, 24_576) as gpus:                    # two GPUs, totals in MiB
        subprocess.run(program, env=os.environ | gpus.environment())   # uses both libraries as if they were NVIDIA's
        gpus.used(0), gpus.held_by(pid), gpus.holders()       # bytes; used() has the dead too, until release_delay_s
        gpus.take(0, 2_000, pid=4711)                         # a process of others (with pid=None: of nobody in sight)
        gpus.list_as("none")                                  # how NVML shows processes: true none zero unlisted twice
        gpus.release_delay_s = 2.0                            # the memory of the dead stays taken for that long
        gpus.context_mib = 300                                # what a CUDA context takes
        with gpus.fail("nvmlDeviceGetMemoryInfo", "GPU_IS_LOST", gpu=0) as fault: ...
        with gpus.delay("nvmlDeviceGet*", 30.0) as fault:     # a call that hangs; leaving the block ends the pause
            fault.until_hit()                                 # a call is in it now (fault.hits, fault.inside)
        gpus.lose(1)                                          # every call on that GPU fails; fault.clear() heals it
        gpus.xid(0, 79)
    with FakeGpus() as gpus:                                  # none yet
        gpus.add(81_920, name="H100", mig=[20_480, 20_480])   # MIG on: two instances; uuid(0, instance=1)

The environment has to be set before a process starts: the loader reads LD_LIBRARY_PATH once. ``environment()`` is what
a process needs; CUDA_VISIBLE_DEVICES is honoured with numbers and with GPU- and MIG- uuids. Function names in faults
are the library's own without ``_v2``, ``_v3`` and ``WithFlags``; a ``*`` at the end stands for any rest, and codes are
NVML's names or numbers (CUDA's: numbers). A process counts as dead when it is a zombie too, and its memory is released
``release_delay_s`` after something first looked: NVML, the fake driver, or one of the methods here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from . import layout

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
ENVIRONMENT_VARIABLE = "GLMTTS_FAKE_GPU"

#: Return codes of NVML.
NVML_ERRORS = {
    "UNINITIALIZED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "NOT_FOUND": 6,
    "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10,
    "LIBRARY_NOT_FOUND": 12,
    "FUNCTION_NOT_FOUND": 13,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "LIB_RM_VERSION_MISMATCH": 18,
    "UNKNOWN": 999,
}
Listing = Literal["true", "none", "zero", "unlisted", "twice"]
_LISTINGS: tuple[Listing, ...] = ("true", "none", "zero", "unlisted", "twice")
_FOREVER = 0xFFFFFFFF
_XID_EVENT = 8
_ALIVE = 1 << 63
_CUDA_ERROR_UNKNOWN = 999


class CannotBuildError(RuntimeError):
    """The fake libraries can't be built here; the text says why."""


# --- building


def build() -> Path:
    """The folder with both libraries, built unless they lie there already. Raises CannotBuildError."""
    sources = [HERE / name for name in ("state.h", "state.c", "nvml.c", "cuda.c")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"glmtts-fake-gpu-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise CannotBuildError(f"{cache} belongs to someone else: remove it, or set TMPDIR")
    folder = cache / digest
    if folder.is_dir():
        return folder
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        for library, source in (("libnvidia-ml.so.1", "nvml.c"), ("libcuda.so.1", "cuda.c")):
            options = ["-std=c11", "-O1", "-Wall", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
            done = subprocess.run(
                [*compiler, *options, f"-Wl,-soname,{library}", "-o", made / library, HERE / source, HERE / "state.c"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise CannotBuildError(f"{' '.join(compiler)} can't build the fake {library}: {done.stderr[-2000:]}")
        # Whoever comes first has built it for all.
        with contextlib.suppress(OSError):
            made.rename(folder)
    return folder


def _compiler() -> list[str]:
    for command in (os.environ.get("CC", "").split(), ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise CannotBuildError(
        "the fake GPU needs a C compiler (cc, gcc or clang, or one that $CC names), and none is here"
    )


# --- the state


class Fault:
    """What calls of a function meet until it is cleared."""

    def __init__(self, entry: layout.Fault) -> None:
        self._entry = entry
        self._active = entry.active

    @property
    def hits(self) -> int:
        """How many calls have met it."""
        return int(self._entry.hits) if self._entry.active == self._active else 0

    @property
    def inside(self) -> int:
        """How many calls pause in it now."""
        return int(self._entry.inside)

    def until_hit(self, times: int = 1, patience_s: float = 10.0) -> None:
        """Wait until so many calls have met it."""
        deadline = time.monotonic() + patience_s
        while self.hits < times:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self._entry.function!r} was not called {times} times within {patience_s} s")
            time.sleep(0.002)

    def clear(self) -> None:
        """Take it away; calls that pause in it go on at once."""
        if self._entry.active == self._active:
            self._entry.active = 0

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class FakeGpus:
    """The GPUs of a machine. Numbers of GPUs are NVML's; sizes come in MiB and are told in bytes."""

    def __init__(self, *total_mib: int, folder: Path | None = None) -> None:
        self._libraries = build()
        self._folder = Path(tempfile.mkdtemp(prefix="glmtts-gpu-")) if folder is None else folder
        self._owns_folder = folder is None
        self.path = self._folder / "gpus"
        self._file = self.path.open("w+b")
        self._file.truncate(ctypes.sizeof(layout.State))
        self._map = mmap.mmap(self._file.fileno(), ctypes.sizeof(layout.State))
        self._state: Any = layout.State.from_buffer(self._map)
        self._generation = 0
        self._state.version, self._state.size = 1, ctypes.sizeof(layout.State)
        self._state.cuda_version = 13_000
        self._state.driver_version = b"580.65.06"
        self._state.nvml_version = b"13.580.65.06"
        self.context_mib = 300
        self._state.magic = 0x47504655
        for total in total_mib:
            self.add(total)

    # --- what is there

    def environment(self, **more: str) -> dict[str, str]:
        """The variables with which a process sees these GPUs."""
        path = os.environ.get("LD_LIBRARY_PATH", "")
        paths = [str(self._libraries), *(part for part in path.split(":") if part and part != str(self._libraries))]
        return {ENVIRONMENT_VARIABLE: str(self.path), "LD_LIBRARY_PATH": ":".join(paths)} | more

    def add(
        self,
        total_mib: int,
        *,
        name: str = "Fake GPU",
        uuid: str = "",
        mig: Sequence[int] | None = None,
        supports_mig: bool = False,
        reserved_mib: int = 0,
    ) -> int:
        """Plug a GPU in, with ``mig`` as instances of so many MiB each, and return its number."""
        gpu = int(self._state.device_count)
        device = self._state.devices[gpu]
        device.mig = 1 if mig is not None else 0 if supports_mig else -1
        device.temperature, device.power_mw, device.persistence = 40, 60_000, 1
        self._place(
            gpu * layout.UNITS_PER_DEVICE, total_mib, name, uuid or _uuid("GPU", f"{self.path}{gpu}"), reserved_mib
        )
        for instance, instance_mib in enumerate(mig or ()):
            self._place(
                self._unit(gpu, instance),
                instance_mib,
                f"{name} MIG {instance_mib >> 10}g",
                _uuid("MIG", f"{self.path}{gpu}/{instance}"),
                0,
            )
        self._state.device_count = gpu + 1
        return gpu

    def uuid(self, gpu: int, instance: int | None = None) -> str:
        """As CUDA_VISIBLE_DEVICES takes it."""
        return str(self._state.units[self._unit(gpu, instance)].uuid.decode())

    def set(self, gpu: int, **figures: int) -> None:
        """``utilization`` and ``memory_utilization`` (percent), ``temperature`` (degrees Celsius), ``power_mw``, ..."""
        for key, value in figures.items():
            if not hasattr(layout.Device, key):
                raise AttributeError(key)
            setattr(self._state.devices[gpu], key, value)

    def versions(self, *, driver: str, nvml: str) -> None:
        """What the driver and NVML call themselves."""
        self._state.driver_version, self._state.nvml_version = driver.encode(), nvml.encode()

    @property
    def context_mib(self) -> int:
        """What a CUDA context takes."""
        return int(self._state.context_bytes) // MIB

    @context_mib.setter
    def context_mib(self, mib: int) -> None:
        self._state.context_bytes = mib * MIB

    @property
    def release_delay_s(self) -> float:
        """How long the memory of a dead process stays taken after its death was first seen."""
        return int(self._state.release_delay_ms) / 1e3

    @release_delay_s.setter
    def release_delay_s(self, seconds: float) -> None:
        self._state.release_delay_ms = round(seconds * 1e3)

    def list_as(self, listing: Listing, gpu: int | None = None) -> None:
        """How NVML shows the processes of a GPU, or of all: without a figure (``none``), with 0, not at all, twice."""
        for number in range(self._state.device_count) if gpu is None else [gpu]:
            self._state.devices[number].listing = _LISTINGS.index(listing)

    # --- who has what

    def take(
        self, gpu: int, mib: int, *, pid: int | None = None, instance: int | None = None, graphics: bool = False
    ) -> None:
        """Let a process of others, which need not exist, or nobody in sight (no ``pid``) have so much. 0 ends it."""
        unit = self._unit(gpu, instance)
        if pid is None:
            self._state.units[unit].unseen = mib * MIB
            return
        entries = self._state.foreigners
        entry = next((e for e in entries if e.pid == pid and e.unit == unit), None) or next(
            e for e in entries if not e.pid
        )
        entry.unit, entry.bytes, entry.graphics = unit, mib * MIB, int(graphics)
        entry.pid = pid if mib else 0

    def used(self, gpu: int, instance: int | None = None) -> int:
        """Bytes taken, without what the driver reserves."""
        units = self._units(gpu, instance)
        state = self._state
        return (
            sum(int(state.units[unit].unseen) for unit in units)
            + sum(int(entry.bytes) for entry in state.foreigners if entry.pid and entry.unit in units)
            + sum(int(holder.bytes) for holder, _ in self._holders() if holder.unit in units)
        )

    def free(self, gpu: int, instance: int | None = None) -> int:
        """Bytes that can be taken."""
        unit = self._state.units[self._unit(gpu, instance)]
        return int(unit.total - unit.reserved) - self.used(gpu, instance)

    def holders(self, gpu: int | None = None) -> dict[int, int]:
        """Bytes of each living process that has memory through the fake driver, by pid."""
        units = range(len(self._state.units)) if gpu is None else self._units(gpu, None)
        found: dict[int, int] = {}
        for holder, alive in self._holders():
            if alive and holder.unit in units and holder.bytes:
                found[int(holder.pid)] = found.get(int(holder.pid), 0) + int(holder.bytes)
        return found

    def held_by(self, pid: int) -> int:
        """Bytes of one living process."""
        return self.holders().get(pid, 0)

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = 10.0) -> None:
        """Wait until it is so, for instance ``lambda: gpus.used(0) == 0``."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience_s} s: {what}; holders: {self.holders()}")
            time.sleep(0.005)

    # --- what goes wrong

    def fail(self, function: str, code: int | str, *, gpu: int | None = None, times: int | None = None) -> Fault:
        """The next calls (all, or so many) of this function on this GPU (or any) return ``code``."""
        return self._fault(function, NVML_ERRORS[code] if isinstance(code, str) else code, 0.0, gpu, times)

    def delay(self, function: str, seconds: float, *, gpu: int | None = None, times: int | None = None) -> Fault:
        """The next calls of this function take so long."""
        return self._fault(function, 0, seconds, gpu, times)

    def lose(self, gpu: int, code: int | str = "GPU_IS_LOST") -> Fault:
        """Every call on this GPU fails from now on, in NVML and, with an unknown error, in the driver."""
        nvml, cuda = self.fail("nvml*", code, gpu=gpu), self.fail("cu*", _CUDA_ERROR_UNKNOWN, gpu=gpu)
        return _Both(nvml, cuda)

    def clear_faults(self) -> None:
        """Everything works again."""
        for entry in self._state.faults:
            entry.active = 0

    def xid(self, gpu: int, number: int) -> None:
        """The driver reports an error of the GPU to those who registered for it."""
        with self._locked():
            event = self._state.events[self._state.event_count % len(self._state.events)]
            event.device, event.type, event.data = gpu, _XID_EVENT, number
            self._state.event_count += 1

    def close(self) -> None:
        """Unplug everything. Processes that still use it keep what they have."""
        if self._state is None:
            return
        self.clear_faults()
        self._state = None
        # Faults that a test keeps refer to the mapping: it goes with them.
        with contextlib.suppress(BufferError):
            self._map.close()
        self._file.close()
        if self._owns_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> FakeGpus:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- inside

    def _place(self, unit: int, total_mib: int, name: str, uuid: str, reserved_mib: int) -> None:
        place = self._state.units[unit]
        place.total, place.reserved, place.unseen = total_mib * MIB, reserved_mib * MIB, 0
        place.name, place.uuid = name.encode(), uuid.encode()
        place.present = 1

    def _unit(self, gpu: int, instance: int | None) -> int:
        return gpu * layout.UNITS_PER_DEVICE + (0 if instance is None else instance + 1)

    def _units(self, gpu: int, instance: int | None) -> range:
        first = self._unit(gpu, instance)
        return range(first, first + (layout.UNITS_PER_DEVICE if instance is None else 1))

    def _fault(self, function: str, code: int, seconds: float, gpu: int | None, times: int | None) -> Fault:
        entry = next((entry for entry in self._state.faults if not entry.active and not entry.inside), None)
        if entry is None:
            raise RuntimeError("too many faults at once: clear some")
        entry.function = re.sub(r"(_v\d+|WithFlags)\Z", "", function).encode()
        entry.device, entry.code = -1 if gpu is None else gpu, code
        entry.delay_ms = round(seconds * 1e3)
        entry.left, entry.hits = _FOREVER if times is None else times, 0
        self._generation += 1
        entry.active = self._generation
        return Fault(entry)

    def _holders(self) -> Iterator[tuple[Any, bool]]:
        """Who holds memory, and whether it lives; the dead while their memory is not released."""
        for holder in self._state.holders:
            if not holder.pid:
                continue
            fate = int(holder.fate)
            if fate & _ALIVE:
                if _started_of(holder.pid) == holder.started:
                    yield holder, True
                    continue
                with self._locked():
                    if holder.fate == fate:
                        holder.fate = time.monotonic_ns() // 1_000_000
                    fate = int(holder.fate)
            if not fate & _ALIVE and time.monotonic_ns() // 1_000_000 < fate + self._state.release_delay_ms:
                yield holder, False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class _Both(Fault):
    """Two faults as one."""

    def __init__(self, first: Fault, second: Fault) -> None:
        super().__init__(first._entry)
        self._second = second

    @property
    def hits(self) -> int:
        return super().hits + self._second.hits

    def clear(self) -> None:
        super().clear()
        self._second.clear()


def _uuid(kind: str, seed: str) -> str:
    return f"{kind}-{uuids.uuid5(uuids.NAMESPACE_URL, seed)}"


def _started_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 for none and for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
