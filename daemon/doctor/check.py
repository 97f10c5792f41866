"""What all checks of the doctor share."""

from __future__ import annotations

from ..core.settings import Settings
from ..engines.checks import Check, memory

__all__ = ["Check", "memory", "needs_gpu"]


def needs_gpu(settings: Settings) -> bool:
    """Whether workers can do nothing without a GPU."""
    return settings.engine.name == "glmtts" and settings.workers.gpus != "none"
