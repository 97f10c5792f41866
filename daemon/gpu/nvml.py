"""What NVML says of the GPUs: one reader, for one thread. It may block for ever, so never in the loop.

GPUs are numbered once, in NVML's order, and keep their numbers: one that falls off the bus is shown as lost, and the
others don't move up. Where MIG is on, each instance takes its GPU's place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from msgspec import structs

from ..core.inputs import GpuReading, NvmlReading
from .calls import NvmlCalls
from .device import Device, has_host_pids
from .nvml_errors import UNSAID, Code, NvmlError
from .xid import XidEvents

_MIG_ENABLED = 1
#: How often GPUs and MIG instances are looked for anew.
_LAYOUT_S = 60.0
#: A GPU that fails is asked again after this long, and then ever less often: each try may take the driver seconds.
_ASK_AGAIN_S, _ASK_AGAIN_MAX_S = 1.0, 8.0


class NvmlReader:
    """Reads all GPUs. After failures it starts NVML anew, with growing pauses."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        retry_s: float = 10.0,
        retry_max_s: float = 300.0,
        absent_retry_s: float = 60.0,
        host_pids: bool | None = None,
    ) -> None:
        """``host_pids``: our pids are the machine's (None: look)."""
        self._clock = clock
        self._retry_s, self._retry_max_s, self._absent_retry_s = retry_s, retry_max_s, absent_retry_s
        self._host_pids = has_host_pids() if host_pids is None else host_pids
        self._calls = NvmlCalls(clock)
        self._xids = XidEvents(self._calls)
        #: The uuid of the GPU that each number is, or is an instance of.
        self._gpu_of: dict[int, str] = {}
        self._started = False
        self._reading = NvmlReading(detail="not looked at yet")
        self._devices: list[Device] = []
        #: The number of each device by its uuid, or by its place while it has never been looked at.
        self._numbers: dict[str, int] = {}
        #: What was found at each place of NVML's order.
        self._keys_at: dict[int, list[str]] = {}
        self._last: dict[int, GpuReading] = {}
        #: Devices that there is no handle for, by number.
        self._without_handle: dict[int, NvmlError] = {}
        #: Devices that fail, by uuid: the next pause, how they fail, and when they are asked again.
        self._failing: dict[str, tuple[float, NvmlError, float]] = {}
        self._layout_due = float("-inf")
        self._notes: list[str] = []
        self._pause_s = retry_s
        #: When NVML is started anew because something fails; None while nothing does.
        self._restart_at: float | None = None
        #: Before then a reading makes no call and brings nothing new.
        self.quiet_until = float("-inf")

    @property
    def call(self) -> tuple[str, float] | None:
        """The call that runs and since when; for who waits for it in another thread."""
        return self._calls.running

    def read(self) -> tuple[NvmlReading, list[GpuReading]]:
        """How NVML does, and every GPU that was ever seen. Raises nothing of NVML; blocks for as long as it does."""
        now = self._clock()
        if now < self.quiet_until:
            return self._reading, self._known()
        try:
            if self._restart_at is not None and now >= self._restart_at:
                self._stop()
                self._restart_at = None
            if not self._started:
                self._start()
            if now >= self._layout_due:
                self._lay_out()
                self._layout_due = now + _LAYOUT_S
            self._read_devices(now)
            self._xids.take()
        except NvmlError as error:
            self._fail(error)
        return self._reading, self._known()

    def close(self) -> None:
        """Let go of NVML. May block."""
        self._stop()

    # --- NVML as a whole

    def _start(self) -> None:
        self._calls.load()
        self._calls.ask("", "nvmlInit")
        self._started = True
        self._xids.start()
        self._layout_due = float("-inf")
        self._reading = NvmlReading(
            state="ok",
            driver=self._text("", "nvmlSystemGetDriverVersion"),
            version=self._text("", "nvmlSystemGetNVMLVersion"),
        )

    def _stop(self) -> None:
        if self._started:
            self._started = False
            self._devices = []
            self._xids.stop()
            # What it says to this does not matter: it is started anew, or not needed.
            with contextlib.suppress(NvmlError):
                self._calls.ask("", "nvmlShutdown")

    def _fail(self, error: NvmlError) -> None:
        """NVML answers nothing: leave it alone for a while."""
        self._stop()
        pause_s = self._absent_retry_s if error.absent else self._next_pause_s()
        self._restart_at = None
        self.quiet_until = self._clock() + pause_s
        detail = f"{error}; tried again after {pause_s:.0f} s"
        self._reading = structs.replace(self._reading, state="absent" if error.absent else "failing", detail=detail)
        for number in self._last:
            self._keep(number, error)

    def _next_pause_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(self._retry_max_s, self._pause_s * 2)
        return pause_s

    # --- which GPUs there are

    def _lay_out(self) -> None:
        """Find the devices. One that can't be looked at keeps the number that it had, and its error."""
        self._notes, self._without_handle = [], {}
        devices: list[Device] = []
        keys_at: dict[int, list[str]] = {}
        count = self._count()
        for place in range(count):
            try:
                found = self._find(place)
                keys_at[place] = [device.uuid for device in found]
                devices += found
            except NvmlError as error:
                keys_at[place] = self._keys_at.get(place) or [f"#{place}"]
                for key in keys_at[place]:
                    self._without_handle[self._number(key, place)] = error
        if not count:
            self._notes.append("the driver runs but lists no GPU: see 'lspci'; a container has to be given its GPUs")
        self._devices, self._keys_at = devices, keys_at

    def _count(self) -> int:
        try:
            return int(self._calls.ask("", "nvmlDeviceGetCount"))
        except NvmlError as error:
            if error.code in (Code.NOT_FOUND, Code.GPU_NOT_FOUND):
                return 0
            raise

    def _find(self, place: int) -> list[Device]:
        """The GPU, or its MIG instances, at a place of NVML's order."""
        ask, where = self._calls.ask, f"GPU {place}"
        handle = ask(where, "nvmlDeviceGetHandleByIndex", place)
        uuid = str(ask(where, "nvmlDeviceGetUUID", handle))
        name = self._text(where, "nvmlDeviceGetName", handle)
        self._xids.watch(where, handle, uuid)
        if not self._has_mig(where, handle):
            device = Device(self._calls, self._number(uuid, place), uuid, name, handle)
            self._gpu_of[device.index] = uuid
            return [device]
        found = []
        for number in range(int(ask(where, "nvmlDeviceGetMaxMigDeviceCount", handle))):
            try:
                instance = ask(where, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            except NvmlError as error:
                if error.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
                    continue
                raise
            its_uuid = str(ask(where, "nvmlDeviceGetUUID", instance))
            its_name = self._text(where, "nvmlDeviceGetName", instance) or name
            index = self._number(its_uuid, place)
            self._gpu_of[index] = uuid
            found.append(Device(self._calls, index, its_uuid, its_name, instance, gpu=handle))
        if not found:
            self._notes.append(
                f"{where} ({uuid}) is in MIG mode without instances: 'nvidia-smi mig -cgi ... -C' makes some"
            )
        return found

    def _has_mig(self, where: str, handle: Any) -> bool:
        try:
            return bool(self._calls.ask(where, "nvmlDeviceGetMigMode", handle)[0] == _MIG_ENABLED)
        except NvmlError as error:
            if error.code in UNSAID:
                return False
            raise

    def _number(self, key: str, place: int) -> int:
        unseen = f"#{place}"
        if key not in self._numbers and unseen in self._numbers:
            # Nobody could look at it until now, but it has had its number since.
            self._numbers[key] = self._numbers.pop(unseen)
        return self._numbers.setdefault(key, len(self._numbers))

    def _text(self, where: str, call: str, *arguments: Any) -> str:
        """A text that is nice to have."""
        try:
            return str(self._calls.ask(where, call, *arguments))
        except NvmlError:
            return ""

    # --- what they show

    def _read_devices(self, now: float) -> None:
        notes = dict.fromkeys(self._notes)
        errors = dict(self._without_handle)
        for device in self._devices:
            try:
                self._last[device.index] = self._read(device, now)
            except NvmlError as error:
                errors[device.index] = error
                self._keep(device.index, error, device)
            notes |= device.notes
        for number in set(self._numbers.values()) - {device.index for device in self._devices}:
            gone = NvmlError(Code.NOT_FOUND, "no longer listed", f"GPU {number}")
            self._keep(number, errors.setdefault(number, gone))
        if not errors:
            self._pause_s, self._restart_at = self._retry_s, None
        elif self._restart_at is None:
            self._restart_at = self._clock() + self._next_pause_s()
        if errors and len(errors) == len(self._last):
            self._reading = structs.replace(self._reading, state="failing", detail=str(next(iter(errors.values()))))
        else:
            self._reading = structs.replace(self._reading, state="ok", detail="; ".join(notes))

    def _read(self, device: Device, now: float) -> GpuReading:
        """Read a device; one that fails is not asked each time."""
        pause_s = _ASK_AGAIN_S
        if device.uuid in self._failing:
            pause_s, known, again_at = self._failing[device.uuid]
            if now < again_at:
                raise known
        try:
            reading = device.read(now, host_pids=self._host_pids)
        except NvmlError as error:
            self._failing[device.uuid] = (min(_ASK_AGAIN_MAX_S, pause_s * 2), error, self._clock() + pause_s)
            raise
        self._failing.pop(device.uuid, None)
        return reading

    # --- what was known

    def _keep(self, number: int, error: NvmlError, device: Device | None = None) -> None:
        """Show a device as failing, with what was known of it."""
        known = self._last.get(number)
        if known is None:
            known = GpuReading(index=number, uuid=device.uuid if device else "", name=device.name if device else "")
        self._last[number] = structs.replace(known, state=error.gpu_state, detail=str(error))

    def _known(self) -> list[GpuReading]:
        return [
            structs.replace(self._last[number], xids=self._xids.of(self._gpu_of.get(number, "")))
            for number in sorted(self._last)
        ]
