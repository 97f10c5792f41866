"""Settings of the daemon's own process, made before it starts others."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as possible: ZeroMQ aborts the process when none is left for a client."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def be_first_process() -> None:
    """Set up what an init process would: this is the first process of a container."""
    # The kernel drops signals without a handler here, and the daemon would start in spite of a stop.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # A session of its own tells the daemon's descendants from other orphans.
    with contextlib.suppress(PermissionError):
        os.setsid()
