"""Faster or slower speech at the same pitch, piece by piece, by Sonic (docs/design.md says why by that library)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.base import EngineError

if TYPE_CHECKING:
    from .audio import Samples

#: The package, as pip knows it.
PACKAGE = "libsonic"
#: Blocks in which Sonic gets the samples, a second.
_BLOCKS_A_SECOND = 50


def is_there() -> bool:
    """Whether this interpreter has the library."""
    return find_spec(PACKAGE) is not None


class TimeStretcher:
    """Changes the speed of a stream of mono chunks; holds back up to 60 ms until the end.

    Equal samples make equal samples, however they are cut into chunks: Sonic decides by what it holds, so it always
    gets blocks of the same length.
    """

    def __init__(self, rate: int, speed: float) -> None:
        """``rate``: in Hz. ``speed``: 2.0 is twice as fast. Raises EngineError without the library."""
        try:
            from libsonic import SonicStream
        except ImportError:
            raise EngineError(
                "bad_request",
                f"speed: the package {PACKAGE} is missing where the workers run, so that they speak at speed 1 only; "
                f"install it there (pip install {PACKAGE}), or leave out speed",
            ) from None
        self._stream: Any = SonicStream(rate, 1)
        self._stream.set_speed(speed)
        self._block = rate // _BLOCKS_A_SECOND
        self._rest = np.zeros(0, np.float32)

    def add(self, samples: Samples) -> Samples:
        """The samples that are ready after these."""
        samples = np.concatenate((self._rest, samples))
        whole = len(samples) - len(samples) % self._block
        for start in range(0, whole, self._block):
            self._stream.write(samples[start : start + self._block].tolist())
        self._rest = samples[whole:]
        return self._ready()

    def finish(self) -> Samples:
        """The remaining samples."""
        self._stream.write(self._rest.tolist())
        self._stream.flush()
        return self._ready()

    def _ready(self) -> Samples:
        return np.array(self._stream.read(self._stream.available_frames()), np.float32)
