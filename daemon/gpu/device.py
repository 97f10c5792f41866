"""One GPU, or one MIG instance: its memory, its processes, and slower figures that are read less often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from ..core.inputs import GpuReading
from .calls import GRAVE, UNSAID, Code, NvmlCalls, NvmlError

_TEMPERATURE_GPU = 0
#: /proc/self/ns/pid of the machine's own namespace (PROC_PID_INIT_INO of the kernel).
_HOST_PIDS = "pid:[4026531836]"
#: Lists of processes, each with its name in drivers older than pynvml's newest version.
_COMPUTE = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2")
#: Lists that are nearly always empty, and then read every few seconds only.
_RARE = (
    ("nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses_v2"),
    ("nvmlDeviceGetMPSComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses_v2"),
)
_RARE_S = 10.0
#: How old utilization and temperature may be when memory is read many times a second.
_VITALS_S = 0.9
#: The first and the longest pause before a failing device is read again: each try may take the driver seconds.
_ASK_AGAIN_S, _ASK_AGAIN_MAX_S = 1.0, 8.0
_OTHER_PIDS = (
    "memory of single processes is not known: the driver lists them with pids from outside of this container (share "
    "the machine's pid namespace with it, or use a newer driver)"
)


class Device:
    """A GPU or a MIG instance. Owns its number, its last reading, and the error of a device that can't be read."""

    def __init__(self, calls: NvmlCalls, clock: Callable[[], float], index: int, place: int) -> None:
        """``place`` is that of the GPU in NVML's order, when it was last listed."""
        self.place = place
        self.gpu_uuid = ""
        self.reading = GpuReading(index=index, uuid="")
        #: Remarks on a device that works.
        self.notes: dict[str, None] = {}
        self._calls = calls
        self._clock = clock
        self._handle: Any = None
        self._gpu: Any = None
        self._where = f"GPU {index}"
        self._missing: NvmlError | None = None
        self._failure: NvmlError | None = None
        self._pause_s, self._again_at = _ASK_AGAIN_S, float("-inf")
        #: Calls that this device does not support, and that are not made again until it is listed anew.
        self._unsaid: set[str] = set()
        self._rare_due: dict[str, float] = {}
        self._vitals: tuple[int | None, int | None] = (None, None)
        self._vitals_due = float("-inf")

    def found(self, uuid: str, name: str, handle: Any, gpu_uuid: str, gpu: Any = None) -> None:
        """NVML lists the device. ``gpu`` is the handle of a MIG instance's GPU, ``gpu_uuid`` that of either kind."""
        self.reading = structs.replace(self.reading, uuid=uuid, name=name, mig=gpu is not None)
        self.gpu_uuid = gpu_uuid
        self._handle, self._gpu, self._missing = handle, gpu, None
        self.notes, self._unsaid, self._rare_due = {}, set(), {}
        self._vitals_due = float("-inf")

    def missing(self, error: NvmlError | None = None) -> None:
        """There is no handle for the device, by default because NVML does not list it."""
        self.notes = {}
        self._missing = error or NvmlError(Code.NOT_FOUND, "no longer listed", self._where)

    def update(self, now: float, *, host_pids: bool) -> NvmlError | None:
        """Renew the reading, unless it failed a moment ago; returns the error of a device that can't be read.

        Args:
            host_pids: whether this process sees the machine's pids.
        """
        if self._missing is None and now >= self._again_at:
            try:
                self.reading = self._read(now, host_pids)
                self._failure, self._pause_s = None, _ASK_AGAIN_S
            except NvmlError as failure:
                self._failure = failure
                self._again_at = self._clock() + self._pause_s
                self._pause_s = min(_ASK_AGAIN_MAX_S, self._pause_s * 2)
        error = self._missing or self._failure
        if error is not None:
            self.fail(error)
        return error

    def fail(self, error: NvmlError) -> None:
        """Show the device as failing, with its last figures."""
        self.reading = structs.replace(self.reading, state=error.gpu_state, detail=str(error))

    def _read(self, now: float, host_pids: bool) -> GpuReading:
        processes = self._processes(now, host_pids)
        memory = self._figure("nvmlDeviceGetMemoryInfo", self._handle, essential=True)
        if now >= self._vitals_due:
            self._vitals_due = now + _VITALS_S
            self._vitals = self._utilization(), self._temperature()
        return structs.replace(
            self.reading,
            state="ok",
            detail="",
            total=None if memory is None else int(memory.total),
            used=None if memory is None else int(memory.used),
            free=None if memory is None else int(memory.free),
            utilization=self._vitals[0],
            temperature=self._vitals[1],
            processes=processes,
        )

    def _utilization(self) -> int | None:
        # NVML has none for a MIG instance.
        rates = None if self._gpu is not None else self._figure("nvmlDeviceGetUtilizationRates", self._handle)
        return None if rates is None else int(rates.gpu)

    def _temperature(self) -> int | None:
        handle = self._handle if self._gpu is None else self._gpu
        degrees = self._figure("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU)
        if degrees is None:
            # The name from CUDA 14 on.
            degrees = self._figure("nvmlDeviceGetTemperatureV", handle, _TEMPERATURE_GPU)
        return None if degrees is None else int(degrees)

    def _processes(self, now: float, host_pids: bool) -> dict[int, int | None]:
        """Bytes by pid, None where they are not known."""
        processes: dict[int, int | None] = {}
        self._list(_COMPUTE, processes)
        for names in _RARE:
            if now >= self._rare_due.get(names[0], now):
                some = self._list(names, processes)
                self._rare_due[names[0]] = now if some else now + _RARE_S
        self.notes.pop(_OTHER_PIDS, None)
        if not host_pids and not all(Path(f"/proc/{pid}").exists() for pid in processes):
            # A driver that knows pid namespaces lists this one's processes only. These are the machine's pids, one of
            # which may by chance be the number of a worker.
            self.notes[_OTHER_PIDS] = None
            return {}
        return processes

    def _list(self, names: tuple[str, str], into: dict[int, int | None]) -> bool:
        """Add the processes of a list; returns whether there were any."""
        for name in names:
            listed = self._figure(name, self._handle)
            if listed is None:
                continue
            for process in listed:
                # Some drivers report zero to containers. A process in two lists has the same memory in both.
                memory = process.usedGpuMemory or 0
                into[process.pid] = max(memory, into.get(process.pid) or 0) or None
            return bool(listed)
        return False

    def _figure(self, call: str, *arguments: Any, essential: bool = False) -> Any:
        """The result of a call, None if the device does not support it. Raises NvmlError if the device has a fault."""
        if call in self._unsaid:
            return None
        try:
            return self._calls.ask(self._where, call, *arguments)
        except NvmlError as error:
            # The handle of a destroyed instance is an invalid argument.
            if error.code in UNSAID and not (essential and error.code == Code.INVALID_ARGUMENT):
                self._unsaid.add(call)
                if error.code == Code.NO_PERMISSION:
                    self.notes[str(NvmlError(error.code, error.words, call))] = None
                return None
            if essential or error.code in GRAVE:
                raise
            return None


def has_host_pids() -> bool:
    """Whether this process sees the machine's pids, which is false in most containers."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _HOST_PIDS
    except OSError:
        return True
