"""The numbered errors of GPUs (Xid), counted from NVML's events."""

from __future__ import annotations

import ctypes
from typing import Any

from ..core.inputs import Xids
from ..core.monitoring.alert_rules import APPLICATION_XIDS
from .calls import UNSAID, NvmlCalls, NvmlError

_XID = 8  # nvmlEventTypeXidCriticalError
#: The most events taken at a time, since a faulty GPU may report without end.
_MOST = 64
_NONE = Xids()


class XidEvents:
    """Owns the counts per GPU, for the thread that reads NVML. WSL and some containers have no events."""

    def __init__(self, calls: NvmlCalls) -> None:
        self._calls = calls
        self._set: Any = None
        #: The uuid of each GPU by the address that NVML has for it.
        self._watched: dict[int, str] = {}
        self._counted: dict[str, Xids] = {}

    def start(self) -> None:
        """Make a new event set, because NVML was started."""
        self._watched = {}
        self._set = None
        try:
            self._set = self._calls.ask("", "nvmlEventSetCreate")
        except NvmlError:
            pass  # not in this driver

    def stop(self) -> None:
        """Free the event set, because NVML is about to stop."""
        events, self._set = self._set, None
        if events is not None:
            try:
                self._calls.ask("", "nvmlEventSetFree", events)
            except NvmlError:
                pass  # it ends with NVML anyway

    def watch(self, where: str, handle: Any, uuid: str) -> None:
        """Count the errors of this GPU, which may have MIG instances."""
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if self._set is None or address is None or address in self._watched:
            return
        try:
            self._calls.ask(where, "nvmlDeviceRegisterEvents", handle, _XID, self._set)
        except NvmlError:
            return  # no events yet
        self._watched[address] = uuid

    def take(self) -> None:
        """Count the events since the last call, without waiting."""
        for _ in range(_MOST if self._watched else 0):
            try:
                event = self._calls.ask("", "nvmlEventSetWait_v2", self._set, 0)
            except NvmlError as error:
                # TIMEOUT means that there are no more; the readings report other errors.
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
        """The errors of this GPU."""
        return self._counted.get(uuid, _NONE)
