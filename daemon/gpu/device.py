"""One GPU, or one MIG instance: its memory, its processes, and slower figures that are read less often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
_OTHER_PIDS = (
    "memory of single processes is not known: the driver lists them with pids from outside of this container (share "
    "the machine's pid namespace with it, or use a newer driver)"
)


class Device:
    """A device by its handle; ``gpu`` is the handle of a MIG instance's GPU. Owns what the device does not report."""

    def __init__(self, calls: NvmlCalls, index: int, uuid: str, name: str, handle: Any, *, gpu: Any = None) -> None:
        self.index = index
        self.uuid = uuid
        self.name = name
        #: Remarks on a device that works.
        self.notes: dict[str, None] = {}
        self._calls = calls
        self._handle = handle
        self._gpu = gpu
        self._where = f"GPU {index}"
        #: Calls that this device does not support, and that are not made again.
        self._unsaid: set[str] = set()
        self._rare_due: dict[str, float] = {}
        self._vitals: tuple[int | None, int | None] = (None, None)
        self._vitals_due = float("-inf")

    def read(self, now: float, *, host_pids: bool) -> GpuReading:
        """Read the device. Raises NvmlError if it has a fault. ``host_pids``: this process sees the machine's pids."""
        processes = self._processes(now, host_pids)
        memory = self._figure("nvmlDeviceGetMemoryInfo", self._handle, essential=True)
        if now >= self._vitals_due:
            self._vitals_due = now + _VITALS_S
            self._vitals = self._utilization(), self._temperature()
        return GpuReading(
            index=self.index,
            uuid=self.uuid,
            name=self.name,
            total=None if memory is None else int(memory.total),
            used=None if memory is None else int(memory.used),
            free=None if memory is None else int(memory.free),
            utilization=self._vitals[0],
            temperature=self._vitals[1],
            mig=self._gpu is not None,
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
