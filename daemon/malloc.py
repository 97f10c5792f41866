"""The heap of the GNU C library, which keeps freed memory until asked. Other C libraries are left alone."""

from __future__ import annotations

import contextlib
import ctypes

#: mallopt(3)
_M_MMAP_THRESHOLD = -3


def trim() -> None:
    """Return free memory to the system; takes a few milliseconds."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def map_from(size: int) -> None:
    """Map each block of ``size`` bytes or more separately, so that freeing it returns it to the system at once.

    By default the library raises this threshold whenever a large block is freed.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
