"""Runs a program with what a careless parent leaves to it: ``python inheriting.py WHAT... -- PROGRAM ARGUMENTS``.

Each WHAT is a line of Python, run first. The functions below are for these lines.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource  # noqa: F401 - for the lines
import signal
import struct
import sys

_NUMBERS = {"pidfd_open": 434, "pidfd_send_signal": 424}

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RET_ERRNO, _RET_ALLOW = 0x00050000, 0x7FFF0000


def forbid(errno: int, *names: str) -> None:
    """Have the kernel answer these system calls with an error, as a container's seccomp profile does."""
    assert platform.machine() in ("x86_64", "aarch64")
    # Load the number; compare it with each; the last instruction of each way returns.
    program = [(0x20, 0, 0, 0)]
    for name in names:
        program += [(0x15, 0, 1, _NUMBERS[name]), (0x06, 0, 0, _RET_ERRNO | errno)]
    program.append((0x06, 0, 0, _RET_ALLOW))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    zero = ctypes.c_ulong(0)
    for option, *values in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), filter),
    ):
        if ctypes.CDLL(None, use_errno=True).prctl(option, *values, zero, zero):
            raise OSError(ctypes.get_errno(), "prctl")


def deaf() -> None:
    """Block every signal and ignore SIGCHLD, as some Java and cron launchers do."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())


def leak(count: int) -> None:
    """Leave descriptors open for the program."""
    for _ in range(count):
        os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


if __name__ == "__main__":
    here = sys.argv.index("--")
    for line in sys.argv[1:here]:
        exec(line)
    os.execvp(sys.argv[here + 1], sys.argv[here + 1 :])
