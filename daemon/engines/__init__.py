"""Engines: what a worker runs. base.py is the contract; one module for each engine, imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Engine

NAMES: tuple[str, ...] = ("espeak", "fault")


def load(name: str, settings: dict[str, Any], *, send_raw: Callable[[bytes], None], vram_share: float = 0.0) -> Engine:
    """Load the engine ``name`` with its section of the configuration, ``[engine.NAME]``. May take minutes.

    ``send_raw`` puts bytes on the workers socket as they are: the fault engine alone gets it, to talk nonsense.
    ``vram_share`` is the share of the GPU's memory that the engine may use, 0..1; 0: no limit.
    Raises ValueError for an unknown name, ModuleNotFoundError with the remedy for a missing package, and whatever
    the engine raises.
    """
    if name == "espeak":
        from .espeak import EspeakEngine

        EspeakEngine.limit_memory(vram_share)
        return EspeakEngine()
    if name == "fault":
        from .fault import FaultEngine

        FaultEngine.limit_memory(vram_share)
        return FaultEngine(settings, send_raw=send_raw)
    raise ValueError(f"[engine] name = {name!r}: this version has no such engine; there are {', '.join(NAMES)}")
