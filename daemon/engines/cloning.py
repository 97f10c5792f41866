"""For engines that speak with the voice of a recording: one for the warm-up, and the error for a job without any."""

from __future__ import annotations

import numpy as np

from .base import EngineError, Reference

WARM_UP_TEXT = "你好。"


def hum() -> Reference:
    """A recording for the warm-up sentence. This project includes none, and upstream's own are not for every use."""
    rate = 24_000
    seconds = np.arange(3 * rate, dtype=np.float64) / rate
    tone = sum((np.sin(2 * np.pi * 140 * one * seconds) / one for one in range(1, 12)), np.zeros_like(seconds))
    loudness = 0.1 * (1 + np.sin(2 * np.pi * 4 * seconds))
    return Reference((tone * loudness).astype(np.float32), rate, WARM_UP_TEXT, digest="")


def no_voice(speaker: str) -> EngineError:
    """The error for a job that names no voice. ``speaker``: the engine, as the beginning of a sentence."""
    return EngineError(
        "bad_request",
        f"voice: {speaker} speaks with the voice of a recording: name a registered voice (glmttsctl voice add "
        "registers one), send a prompt, or have [voices] default set",
    )
