"""Real processes of tests: whether they live, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable

from glmtts.daemon.processes import guardian

PATIENCE_S = 10.0


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    about = guardian.stat(pid)
    return about is not None and not about.gone


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition that has no event; ``what`` names it in the failure."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)
