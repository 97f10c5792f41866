"""The errors that GPUs report to the driver by number (Xid): NVML's events, taken as they come, and counted."""

from __future__ import annotations

import ctypes
from typing import Any

from ..core.inputs import Xids
from ..core.monitoring.alert_rules import APPLICATION_XIDS
from .calls import NvmlCalls
from .nvml_errors import UNSAID, NvmlError

_XID = 8  # nvmlEventTypeXidCriticalError
#: A GPU in trouble may report without end: so many are taken at a time.
_MOST = 64
_NONE = Xids()


class XidEvents:
    """For the thread that reads NVML. Where there are no events (WSL, some containers), there is nothing to count."""

    def __init__(self, calls: NvmlCalls) -> None:
        self._calls = calls
        self._set: Any = None
        #: The uuid of each GPU by the address that NVML has for it.
        self._watched: dict[int, str] = {}
        self._counted: dict[str, Xids] = {}

    def start(self) -> None:
        """NVML was started: what it reported before is not told any more."""
        self._watched = {}
        self._set = None
        try:
            self._set = self._calls.ask("", "nvmlEventSetCreate")
        except NvmlError:
            pass  # not in this driver

    def stop(self) -> None:
        """NVML is about to be stopped."""
        events, self._set = self._set, None
        if events is not None:
            try:
                self._calls.ask("", "nvmlEventSetFree", events)
            except NvmlError:
                pass  # it ends with NVML anyway

    def watch(self, where: str, handle: Any, uuid: str) -> None:
        """Listen to this GPU, whole or the GPU of MIG instances."""
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if self._set is None or address is None or address in self._watched:
            return
        try:
            self._calls.ask(where, "nvmlDeviceRegisterEvents", handle, _XID, self._set)
        except NvmlError:
            return  # it has none, or may have them later
        self._watched[address] = uuid

    def take(self) -> None:
        """Count what has been reported since the last time. Does not wait."""
        for _ in range(_MOST if self._watched else 0):
            try:
                event = self._calls.ask("", "nvmlEventSetWait_v2", self._set, 0)
            except NvmlError as error:
                # TIMEOUT: there is no more. Whatever else is wrong with a GPU, the readings tell.
                if error.code in UNSAID:
                    self._watched = {}
                return
            uuid = self._watched.get(ctypes.cast(event.device, ctypes.c_void_p).value or 0)
            if uuid is not None and event.eventType == _XID:
                self._count(uuid, int(event.eventData))

    def _count(self, uuid: str, xid: int) -> None:
        before = self.of(uuid)
        if xid in APPLICATION_XIDS:
            self._counted[uuid] = Xids(before.of_programs + 1, before.of_gpu, xid, before.last_of_gpu)
        else:
            self._counted[uuid] = Xids(before.of_programs, before.of_gpu + 1, xid, xid)

    def of(self, uuid: str) -> Xids:
        """What this GPU has reported."""
        return self._counted.get(uuid, _NONE)
