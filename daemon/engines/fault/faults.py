"""What the fault engine does when a process is to die, to hang, or to make a mess."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from ..base import EngineError

FLOOD_LINES = 200_000
_FLOOD_BYTES = 4 << 20


def misbehave_at_start(how: str, seconds: float) -> None:
    """Start as ``[engine.fault] start`` says."""
    if how != "normal":
        time.sleep(seconds)
    if how == "crash":
        die("segv")
    while how == "hang":
        time.sleep(3_600)


def die(how: str) -> NoReturn:
    """Die by the signal of that crash, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == "segv":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable: SIGKILL can't be ignored")


def hang_in_c() -> NoReturn:
    """Hold the interpreter lock for ever."""
    # PyDLL, unlike CDLL, keeps the interpreter lock during the call.
    pause = ctypes.PyDLL(None).pause
    while True:
        pause()


def start_children() -> list[subprocess.Popen[bytes]]:
    """Processes that outlive the job: one in the worker's process group, one in a session of its own."""
    children = [subprocess.Popen(["sleep", "3600"], start_new_session=own_session) for own_session in (False, True)]
    print("children:", *(child.pid for child in children))
    return children


def quote(text: str, *, fatal: bool) -> NoReturn:
    """Quote the text everywhere an engine can: printed, written to stderr, and in two nested exceptions."""
    print(f"about to speak {text}")
    os.write(2, f"speaking {text}\n".encode(errors="replace"))
    try:
        raise KeyError(text)
    except KeyError as error:
        if fatal:
            words = f"text: {text!r} broke the engine"
            raise EngineError("synthesis_failed", words, fatal=True, quotes=True) from error
        raise ValueError(f"no words for {text!r}") from error


def flood() -> Iterator[int]:
    """Print 200,000 lines and one very long one, part by part; yields the lines so far."""
    for first in range(0, FLOOD_LINES, 1_000):
        sys.stdout.write("".join(f"flood {line}\n" for line in range(first, first + 1_000)))
        yield first
    for _ in range(_FLOOD_BYTES >> 16):
        sys.stdout.write("~" * (1 << 16))
        yield FLOOD_LINES
    sys.stdout.write("\n")
    sys.stdout.flush()
