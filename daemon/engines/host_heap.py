"""The C library's heap of a worker: what was freed stays in it, between what is in use, until it is asked for."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give free memory back to the system; a few milliseconds. Other C libraries than GNU's have no such function."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
