"""The C library's heap: what was freed stays in it, between what is in use, until it is asked for.

Other C libraries than GNU's have no such functions, and are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes

#: mallopt(3)
_M_MMAP_THRESHOLD = -3


def give_back() -> None:
    """Give free memory back to the system; a few milliseconds."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def map_from(size: int) -> None:
    """Have each block of so many bytes or more mapped by itself, so that the system has it back as soon as it is freed.

    Without that the library maps ever larger blocks from its heap, once some have come and gone, and keeps them.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
