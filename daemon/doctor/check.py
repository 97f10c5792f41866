"""What one look of the doctor has found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..core.settings import Settings


class Check(Struct, kw_only=True):
    """One thing that was looked at. Where it is not ok, ``means`` says what follows from it and ``mend`` what to do."""

    name: str
    state: Literal["ok", "warning", "wrong"] = "ok"
    seen: str
    means: str = ""
    mend: str = ""


def needs_gpu(settings: Settings) -> bool:
    """Whether workers can do nothing without a GPU."""
    return settings.engine.name == "glmtts" and settings.workers.gpus != "none"


def memory(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
