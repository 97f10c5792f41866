"""Engines: a worker process runs one. base.py is the contract; each engine is a package, imported when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import BatchEngine, Engine
    from .checks import EngineChecks

NAMES: tuple[str, ...] = ("espeak", "fault", "glmtts", "server")

#: Engines in C that need nothing but a package, and its name: their workers are confined. GLM-TTS needs the GPU's
#: devices, its compiler's cache and its checkout; the fault engine imitates the faults of others.
CONFINED = {"espeak": "espeakng_loader"}


def load(
    name: str,
    settings: dict[str, Any],
    *,
    send_raw: Callable[[bytes], None],
    vram_share: float = 0.0,
    needs_gpu: bool = False,
    cache_dir: str = "",
    slots: int = 0,
    warmup_text: str = "",
    warn: Callable[[str], None] = print,
) -> Engine | BatchEngine:
    """Load the engine ``name`` with its section of the configuration, ``[engine.NAME]``. May take minutes.

    Args:
        send_raw: Puts bytes on the workers' socket unencoded; for the fault engine's garbage.
        vram_share: The share of the GPU's memory that the engine may use, 0..1; 0: no limit.
        needs_gpu: Whether the glmtts engine fails without a GPU instead of running slowly on the CPU.
        cache_dir: A folder that all workers share; its contents can be deleted at any time.
        slots: At most this many jobs at once; 0: as many as the engine takes.
        warmup_text: A sentence that the server engine speaks to see whether its server works.
        warn: Writes a line to the daemon's log. The line must not quote any text.

    Raises:
        ValueError: There is no such engine, or its settings are wrong.
        ModuleNotFoundError: A package is missing; the message has the remedy.
        Exception: Any other error of the engine.
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
        # They limit their memory themselves, after they have found a GPU.
        given: dict[str, Any] = {"vram_share": vram_share, "needs_gpu": needs_gpu, "cache_dir": cache_dir, "warn": warn}
        if settings["batching"] == "on":
            from .glmtts.batch_engine import BatchedGlmttsEngine

            return BatchedGlmttsEngine(settings, slots=slots, **given)
        from .glmtts.engine import GlmttsEngine

        return GlmttsEngine(settings, **given)
    if name == "server":
        from .server.engine import ServerEngine

        return ServerEngine(settings, warmup_text=warmup_text, warn=warn)
    raise ValueError(f"[engine] name = {name!r}: this version has no such engine; there are {', '.join(NAMES)}")


def checks_of(name: str) -> EngineChecks:
    """The checks of the engine ``name``; those of an engine without any find nothing."""
    if name == "espeak":
        from .espeak.checks import EspeakChecks

        return EspeakChecks()
    if name == "glmtts":
        from .glmtts.checks import GlmttsChecks

        return GlmttsChecks()
    if name == "server":
        from .server.checks import ServerChecks

        return ServerChecks()
    from .checks import EngineChecks

    return EngineChecks()
