"""One GPU, or one MIG instance: its figures, asked for no more often than they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.inputs import GpuReading
from .calls import NvmlCalls
from .nvml_errors import GRAVE, UNSAID, Code, NvmlError

_TEMPERATURE_GPU = 0
#: /proc/self/ns/pid of the machine's own namespace (PROC_PID_INIT_INO of the kernel).
_HOST_PIDS = "pid:[4026531836]"
#: Lists of processes, each with the name that drivers older than pynvml's newest version know.
_COMPUTE = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2")
#: Lists that are nearly always empty: then they are looked at every few seconds alone.
_RARE = (
    ("nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses_v2"),
    ("nvmlDeviceGetMPSComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses_v2"),
)
_RARE_S = 10.0
#: How old utilization and temperature may be when memory is asked for many times a second.
_VITALS_S = 0.9
_OTHER_PIDS = (
    "memory of single processes is not known: the driver lists them with pids from outside of this container (share "
    "the machine's pid namespace with it, or use a newer driver)"
)


class Device:
    """A device that NVML has given a handle for. Of a MIG instance, ``gpu`` is the handle of its GPU."""

    def __init__(self, calls: NvmlCalls, index: int, uuid: str, name: str, handle: Any, *, gpu: Any = None) -> None:
        self.index = index
        self.uuid = uuid
        self.name = name
        #: What is worth knowing though the device is well.
        self.notes: dict[str, None] = {}
        self._calls = calls
        self._handle = handle
        self._gpu = gpu
        self._where = f"GPU {index}"
        #: Calls that this device does not answer; not asked again.
        self._unsaid: set[str] = set()
        self._rare_due: dict[str, float] = {}
        self._vitals: tuple[int | None, int | None] = (None, None)
        self._vitals_due = float("-inf")

    def read(self, now: float, *, host_pids: bool) -> GpuReading:
        """Raises NvmlError where the device is in trouble. ``host_pids``: our pids are the machine's."""
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
        # Of a MIG instance NVML knows none.
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
        """The memory of each process, by pid as we see it."""
        processes: dict[int, int | None] = {}
        self._list(_COMPUTE, processes)
        for names in _RARE:
            if now >= self._rare_due.get(names[0], now):
                some = self._list(names, processes)
                self._rare_due[names[0]] = now if some else now + _RARE_S
        self.notes.pop(_OTHER_PIDS, None)
        if not host_pids and not all(Path(f"/proc/{pid}").exists() for pid in processes):
            # A driver that knows of pid namespaces lists none but ours: these are the machine's pids, and one of them
            # may by chance be the number of a worker.
            self.notes[_OTHER_PIDS] = None
            return {}
        return processes

    def _list(self, names: tuple[str, str], into: dict[int, int | None]) -> bool:
        """Add what one kind of list has; returns whether there was anything."""
        for name in names:
            listed = self._figure(name, self._handle)
            if listed is None:
                continue
            for process in listed:
                # Containers on some drivers are told zero instead of nothing. In two lists, it is the same memory.
                memory = process.usedGpuMemory or 0
                into[process.pid] = max(memory, into.get(process.pid) or 0) or None
            return bool(listed)
        return False

    def _figure(self, call: str, *arguments: Any, essential: bool = False) -> Any:
        """What a call says, None where this device does not say it; NvmlError where the device is in trouble."""
        if call in self._unsaid:
            return None
        try:
            return self._calls.ask(self._where, call, *arguments)
        except NvmlError as error:
            # An instance that was destroyed is an invalid argument.
            if error.code in UNSAID and not (essential and error.code == Code.INVALID_ARGUMENT):
                self._unsaid.add(call)
                if error.code == Code.NO_PERMISSION:
                    self.notes[str(NvmlError(error.code, error.words, call))] = None
                return None
            if essential or error.code in GRAVE:
                raise
            return None


def has_host_pids() -> bool:
    """Whether this process sees the machine's pids, which is not so in most containers."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _HOST_PIDS
    except OSError:
        return True
