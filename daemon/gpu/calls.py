"""Calls of NVML through nvidia-ml-py. Another thread can see which one runs, and errors say what to do about them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Literal

_LIBRARY = "libnvidia-ml.so.1"


class Code(IntEnum):
    """Return codes of NVML that are treated differently (nvml.h; their numbers never change)."""

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


#: The GPU does not report this figure, or not to this user; its other figures are good.
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
#: The GPU itself has a fault, whichever figure was asked for.
GRAVE = frozenset({Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.TIMEOUT})

_MEANINGS: dict[int, str] = {
    Code.NO_PERMISSION: (
        "this user may not call it: let the daemon's user read and write /dev/nvidiactl and /dev/nvidia*, and, for "
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
    """A call of NVML failed. ``call`` is the function and its device, ``words`` NVML's own message."""

    def __init__(self, code: int, words: str, call: str = "") -> None:
        super().__init__(code, words, call)
        self.code = code
        self.words = words
        self.call = call

    def __str__(self) -> str:
        return ": ".join(part for part in (self.call, self.words, _MEANINGS.get(self.code, "")) if part)

    @property
    def gpu_state(self) -> Literal["failing", "lost"]:
        """The state of a GPU with this error. New workers do not help a lost one."""
        gone = (Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.NOT_FOUND, Code.GPU_NOT_FOUND, Code.UNKNOWN)
        return "lost" if self.code in gone else "failing"

    @property
    def absent(self) -> bool:
        """Whether there is no driver, which is not a fault."""
        return self.code in (Code.LIBRARY_NOT_FOUND, Code.DRIVER_NOT_LOADED)


class NvmlCalls:
    """NVML's functions, for one thread. Any call may block for ever."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pynvml: Any = None
        #: The call that runs and when it began, None between calls.
        self.running: tuple[str, float] | None = None

    def load(self) -> None:
        """Find the driver's library, and then import its bindings. Raises NvmlError."""
        if self._pynvml is not None:
            return
        try:
            # First, so that a machine without a GPU does not hold the bindings (4 MiB) in memory.
            ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NvmlError(Code.LIBRARY_NOT_FOUND, f"no NVIDIA driver here ({error})") from None
        try:
            import pynvml
        except ImportError as error:
            words = f"the package nvidia-ml-py is missing in the daemon's environment ({error})"
            raise NvmlError(Code.LIBRARY_NOT_FOUND, words) from None
        self._pynvml = pynvml

    def ask(self, where: str, call: str, *arguments: Any) -> Any:
        """Call a function of pynvml; ``where`` names the device in errors. Raises NvmlError and nothing else."""
        named = f"{call} ({where})" if where else call
        pynvml = self._pynvml
        self.running = (named, self._clock())
        try:
            return getattr(pynvml, call)(*arguments)
        except pynvml.NVMLError as error:
            raise NvmlError(error.value, str(error), named) from None
        except (AttributeError, pynvml.NVMLLibraryMismatchError):
            raise NvmlError(Code.FUNCTION_NOT_FOUND, "not in this driver, or not in nvidia-ml-py", named) from None
        except Exception as error:
            raise NvmlError(Code.UNKNOWN, f"{type(error).__name__}: {error}", named) from None
        finally:
            self.running = None
