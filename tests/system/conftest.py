"""The daemons of tests/process, for tests that take longer."""

from __future__ import annotations

from ..process.conftest import start, start_shared

__all__ = ["start", "start_shared"]
