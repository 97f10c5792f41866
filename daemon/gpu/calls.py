"""Calling NVML through nvidia-ml-py: errors become NvmlError, and another thread can see which call runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from .nvml_errors import Code, NvmlError

_LIBRARY = "libnvidia-ml.so.1"


class NvmlCalls:
    """NVML's functions, for one thread. Any call may block for ever."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pynvml: Any = None
        #: The call that runs and since when, None between calls.
        self.running: tuple[str, float] | None = None

    def load(self) -> None:
        """Find the driver's library, and import its bindings only then. Raises NvmlError."""
        if self._pynvml is not None:
            return
        try:
            # Asked of the loader first: most machines without a GPU need not carry the bindings (4 MiB) in memory.
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
        """Call a function of pynvml; ``where`` is the device that it is about. Raises NvmlError and nothing else."""
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
