"""The doctor's findings, and whether this configuration needs a GPU."""

from __future__ import annotations

from ..core.settings import Settings
from ..engines.checks import Check, State, finding, memory, ok, warning, wrong

__all__ = ["Check", "State", "finding", "memory", "needs_gpu", "ok", "warning", "wrong"]


def needs_gpu(settings: Settings) -> bool:
    """Whether no worker can start without a GPU."""
    return settings.engine.name == "glmtts" and settings.workers.gpus != "none"
