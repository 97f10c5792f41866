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
        self._started = False
        self._reading = NvmlReading(detail="not sampled yet")
        #: Every device that was ever seen by its uuid, or by its place (``#0``) until it was read once.
        self._devices: dict[str, Device] = {}
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
        for device in self._devices.values():
            device.fail(error)

    def _next_pause_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(self._retry_max_s, self._pause_s * 2)
        return pause_s

    # --- which GPUs there are

    def _lay_out(self) -> None:
        """List the devices. One without a handle keeps its number, and has an error."""
        count = self._count()
        self._notes = []
        for device in self._devices.values():
            device.missing()
        for place in range(count):
            try:
                self._find(place)
            except NvmlError as error:
                there = [device for device in self._devices.values() if device.place == place]
                for device in there or [self._device(f"#{place}", place)]:
                    device.missing(error)
        if not count:
            self._notes.append("the driver runs but lists no GPU: see 'lspci'; a container has to be given its GPUs")

    def _count(self) -> int:
        try:
            return int(self._calls.ask("", "nvmlDeviceGetCount"))
        except NvmlError as error:
            if error.code in (Code.NOT_FOUND, Code.GPU_NOT_FOUND):
                return 0
            raise

    def _find(self, place: int) -> None:
        """Find the GPU, or its MIG instances, at a place of NVML's order."""
        ask, where = self._calls.ask, f"GPU {place}"
        handle = ask(where, "nvmlDeviceGetHandleByIndex", place)
        uuid = str(ask(where, "nvmlDeviceGetUUID", handle))
        name = self._text(where, "nvmlDeviceGetName", handle)
        self._xids.watch(where, handle, uuid)
        if not self._has_mig(where, handle):
            self._device(uuid, place).found(uuid, name, handle, uuid)
            return
        has_instances = False
        for number in range(int(ask(where, "nvmlDeviceGetMaxMigDeviceCount", handle))):
            try:
                instance = ask(where, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            except NvmlError as error:
                if error.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
                    continue
                raise
            its_uuid = str(ask(where, "nvmlDeviceGetUUID", instance))
            its_name = self._text(where, "nvmlDeviceGetName", instance) or name
            self._device(its_uuid, place).found(its_uuid, its_name, instance, uuid, handle)
            has_instances = True
        if not has_instances:
            self._notes.append(
                f"{where} ({uuid}) is in MIG mode without instances: 'nvidia-smi mig -cgi ... -C' makes some"
            )

    def _has_mig(self, where: str, handle: Any) -> bool:
        try:
            return bool(self._calls.ask(where, "nvmlDeviceGetMigMode", handle)[0] == _MIG_ENABLED)
        except NvmlError as error:
            if error.code in UNSAID:
                return False
            raise

    def _device(self, key: str, place: int) -> Device:
        """The device with this key, numbered when it is seen first, if only by its place."""
        device = self._devices.get(key) or self._devices.pop(f"#{place}", None)
        if device is None:
            device = Device(self._calls, self._clock, len(self._devices), place)
        self._devices[key] = device
        device.place = place
        return device

    def _text(self, where: str, call: str, *arguments: Any) -> str:
        """A text, or ``""`` where NVML has none."""
        try:
            return str(self._calls.ask(where, call, *arguments))
        except NvmlError:
            return ""

    # --- readings

    def _read_devices(self, now: float) -> None:
        notes, errors = dict.fromkeys(self._notes), []
        for device in self._devices.values():
            if (error := device.update(now, host_pids=self._host_pids)) is not None:
                errors.append(error)
            notes |= device.notes
        if not errors:
            self._pause_s, self._restart_at = self._retry_s, None
        elif self._restart_at is None:
            self._restart_at = self._clock() + self._next_pause_s()
        if errors and len(errors) == len(self._devices):
            self._reading = structs.replace(self._reading, state="failing", detail=str(errors[0]))
        else:
            self._reading = structs.replace(self._reading, state="ok", detail="; ".join(notes))

    def _known(self) -> list[GpuReading]:
        readings = [structs.replace(d.reading, xids=self._xids.of(d.gpu_uuid)) for d in self._devices.values()]
        return sorted(readings, key=lambda reading: reading.index)
