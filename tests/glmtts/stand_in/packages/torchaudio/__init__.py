"""What upstream uses of torchaudio: it reads files, and resamples."""

from __future__ import annotations

import wave
from typing import Any

import torch

from . import transforms

__all__ = ["load", "transforms"]
__version__ = "2.11.0"


def load(uri: str, *_: Any, **__: Any) -> tuple[torch.Tensor, int]:
    """A WAV file of 16-bit samples, as a tensor of shape (channels, n) in -1..1."""
    with wave.open(str(uri)) as file:
        if file.getsampwidth() != 2:
            raise RuntimeError(f"{uri}: {8 * file.getsampwidth()} bits a sample")
        data, channels, rate = file.readframes(file.getnframes()), file.getnchannels(), file.getframerate()
    if not data:
        return torch.zeros(channels, 0), rate
    samples = torch.frombuffer(bytearray(data), dtype=torch.int16).reshape(-1, channels)
    return samples.T.float() / 32_768, rate
