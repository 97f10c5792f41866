"""Engines: what a worker runs. base.py is the contract; one module for each engine, imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Engine

NAMES: tuple[str, ...] = ("espeak", "fault", "glmtts")


def load(
    name: str,
    settings: dict[str, Any],
    *,
    send_raw: Callable[[bytes], None],
    vram_share: float = 0.0,
    needs_gpu: bool = False,
    cache_dir: str = "",
) -> Engine:
    """Load the engine ``name`` with its section of the configuration, ``[engine.NAME]``. May take minutes.

    ``send_raw`` puts bytes on the workers socket as they are: the fault engine alone gets it, to talk nonsense.
    ``vram_share`` is the share of the GPU's memory that the engine may use, 0..1; 0: no limit. ``needs_gpu``: without
    a GPU the glmtts engine fails instead of being slow. ``cache_dir`` is a folder for what all workers may share and
    anybody may delete.
    Raises ValueError for an unknown name, ModuleNotFoundError with the remedy for a missing package, and whatever
    the engine raises.
    """
    if name == "espeak":
        from .espeak.engine import EspeakEngine

        EspeakEngine.limit_memory(vram_share)
        return EspeakEngine()
    if name == "fault":
        from .fault.engine import FaultEngine

        FaultEngine.limit_memory(vram_share)
        return FaultEngine(settings, send_raw=send_raw)
    if name == "glmtts":
        from .glmtts.engine import GlmttsEngine

        # It keeps within its share by itself, once it has found that there is a GPU.
        return GlmttsEngine(settings, vram_share=vram_share, needs_gpu=needs_gpu, cache_dir=cache_dir)
    raise ValueError(f"[engine] name = {name!r}: this version has no such engine; there are {', '.join(NAMES)}")
