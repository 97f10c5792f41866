"""NVML's errors, told apart by what they mean for a GPU and in words that a person can act on."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal


class Code(IntEnum):
    """Return codes of NVML that are worth telling apart (nvml.h; their numbers never change)."""

    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    GPU_NOT_FOUND = 28
    UNKNOWN = 999


#: There is no driver here, which is no fault: looked for again now and then.
ABSENT = frozenset({Code.LIBRARY_NOT_FOUND, Code.DRIVER_NOT_LOADED})
#: The GPU does not say this figure, or not to us; the others are as good as ever.
UNSAID = frozenset(
    {
        Code.NOT_SUPPORTED,
        Code.NO_PERMISSION,
        Code.FUNCTION_NOT_FOUND,
        Code.INVALID_ARGUMENT,
        Code.ARGUMENT_VERSION_MISMATCH,
        Code.DEPRECATED,
    }
)
#: The GPU itself is in trouble, whichever figure was asked for.
GRAVE = frozenset({Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.TIMEOUT})

_MEANINGS: dict[int, str] = {
    Code.NO_PERMISSION: (
        "this user may not ask that: let the daemon's user read and write /dev/nvidiactl and /dev/nvidia*, and, for "
        "MIG, /dev/nvidia-caps/*"
    ),
    Code.NOT_FOUND: "NVML does not know this device any more: was it removed, or its MIG instance destroyed?",
    Code.DRIVER_NOT_LOADED: (
        "the NVIDIA library is installed, but the kernel module is not loaded: 'modprobe nvidia', or start nvidia-smi "
        "once as root; after an update of the kernel the module may have to be built anew"
    ),
    Code.TIMEOUT: "the GPU did not answer the driver in time: see 'dmesg' for Xid messages",
    Code.GPU_IS_LOST: (
        "the GPU fell off the bus or can't be reached: see 'dmesg' for Xid 79; a reboot may bring it back, otherwise "
        "check its power and seat"
    ),
    Code.RESET_REQUIRED: (
        "the GPU must be reset before it computes again: stop what uses it, then 'nvidia-smi --gpu-reset -i N' (or "
        "reboot)"
    ),
    Code.OPERATING_SYSTEM: "the system refused the driver's request: check the control group's rules for /dev/nvidia*",
    Code.LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver was updated under the running system, its library and kernel module no longer match: "
        "reboot, or stop everything that uses GPUs, reload the modules (nvidia_uvm, nvidia) and restart this daemon"
    ),
    Code.GPU_NOT_FOUND: "the driver runs but finds no GPU: see 'lspci' and 'dmesg'",
    Code.UNKNOWN: (
        "in a container this means that it lost its GPUs: 'systemctl daemon-reload' on the host takes /dev/nvidia* "
        "away from running containers (the device rules of their control group, cgroup, are set anew), and only a "
        "restart of the container brings them back; elsewhere see 'dmesg' for Xid messages"
    ),
}


class NvmlError(Exception):
    """A call of NVML failed. ``call`` is the function and what it asked about, ``words`` NVML's own."""

    def __init__(self, code: int, words: str, call: str = "") -> None:
        super().__init__(code, words, call)
        self.code = code
        self.words = words
        self.call = call

    def __str__(self) -> str:
        return ": ".join(part for part in (self.call, self.words, _MEANINGS.get(self.code, "")) if part)

    @property
    def gpu_state(self) -> Literal["failing", "lost"]:
        """What a GPU is in that answers so. One that is lost is not healed by starting new workers on it."""
        gone = (Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.NOT_FOUND, Code.GPU_NOT_FOUND, Code.UNKNOWN)
        return "lost" if self.code in gone else "failing"

    @property
    def absent(self) -> bool:
        """There is no driver here."""
        return self.code in ABSENT
