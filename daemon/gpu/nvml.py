"""Readings of all GPUs through NVML, for one thread. Calls may block for ever, so never in the loop.

GPUs are numbered once, in NVML's order, and keep their numbers: one that falls off the bus is shown as lost, and the
others don't move up. With MIG, each instance takes the place of its GPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from msgspec import structs

from ..core.inputs import GpuReading, NvmlReading
from .calls import UNSAID, Code, NvmlCalls, NvmlError
from .device import Device, has_host_pids
from .xid import XidEvents

_MIG_ENABLED = 1
#: How often the list of GPUs and MIG instances is renewed.
_LAYOUT_S = 60.0
#: The first and the longest pause before a failing GPU is read again: each try may take the driver seconds.
_ASK_AGAIN_S, _ASK_AGAIN_MAX_S = 1.0, 8.0


class NvmlReader:
    """Owns NVML, the numbers of the GPUs and their last readings. After failures it restarts NVML, ever later."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        retry_s: float = 10.0,
        retry_max_s: float = 300.0,
        absent_retry_s: float = 60.0,
        host_pids: bool | None = None,
    ) -> None:
        """``host_pids``: whether this process sees the machine's pids; None finds out."""
        self._clock = clock
        self._retry_s, self._retry_max_s, self._absent_retry_s = retry_s, retry_max_s, absent_retry_s
        self._host_pids = has_host_pids() if host_pids is None else host_pids
        self._calls = NvmlCalls(clock)
        self._xids = XidEvents(self._calls)
        #: The uuid of the GPU that each number is, or is an instance of.
        self._gpu_of: dict[int, str] = {}
        self._started = False
        self._reading = NvmlReading(detail="not sampled yet")
        self._devices: list[Device] = []
        #: The number of each device by its uuid, or by its place until it was read once.
        self._numbers: dict[str, int] = {}
        #: The keys of ``_numbers`` at each place of NVML's order.
        self._keys_at: dict[int, list[str]] = {}
        self._last: dict[int, GpuReading] = {}
        #: Devices without a handle, by number.
        self._without_handle: dict[int, NvmlError] = {}
        #: Failing devices by uuid: the next pause, the error, and when they are read again.
        self._failing: dict[str, tuple[float, NvmlError, float]] = {}
        self._layout_due = float("-inf")
        self._notes: list[str] = []
        self._pause_s = retry_s
        #: When NVML is restarted because of an error; None while there is none.
        self._restart_at: float | None = None
        #: Until then a reading makes no call and repeats the last one.
        self.quiet_until = float("-inf")

    @property
    def call(self) -> tuple[str, float] | None:
        """The call that runs and when it began, for another thread."""
        return self._calls.running

    def read(self) -> tuple[NvmlReading, list[GpuReading]]:
        """The state of NVML, and of every GPU ever seen. Raises no NvmlError; blocks as long as NVML does."""
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
        """Shut NVML down. May block."""
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
            # An error does not matter: NVML is restarted, or not needed any more.
            with contextlib.suppress(NvmlError):
                self._calls.ask("", "nvmlShutdown")

    def _fail(self, error: NvmlError) -> None:
        """Stop NVML after an error of the whole, and make no call for a while."""
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
        """List the devices. One without a handle keeps its number, and has an error."""
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
            # It was numbered by its place while it could not be read.
            self._numbers[key] = self._numbers.pop(unseen)
        return self._numbers.setdefault(key, len(self._numbers))

    def _text(self, where: str, call: str, *arguments: Any) -> str:
        """A text, or ``""`` where NVML has none."""
        try:
            return str(self._calls.ask(where, call, *arguments))
        except NvmlError:
            return ""

    # --- readings

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
        """Read a device, unless it failed a moment ago."""
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

    def _keep(self, number: int, error: NvmlError, device: Device | None = None) -> None:
        """Show a device as failing, with its last figures."""
        known = self._last.get(number)
        if known is None:
            known = GpuReading(index=number, uuid=device.uuid if device else "", name=device.name if device else "")
        self._last[number] = structs.replace(known, state=error.gpu_state, detail=str(error))

    def _known(self) -> list[GpuReading]:
        return [
            structs.replace(self._last[number], xids=self._xids.of(self._gpu_of.get(number, "")))
            for number in sorted(self._last)
        ]
