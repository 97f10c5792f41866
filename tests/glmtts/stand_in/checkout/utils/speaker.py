"""Who speaks: the pitch of a recording, by which a listener tells one voice from another, and its colour."""

from __future__ import annotations

import torch

_SIZE = 192
_LOWEST_HZ = 60.0
_HIGHEST_HZ = 2_000.0


def describe(samples: torch.Tensor, rate: int) -> list[float]:
    """192 numbers, of which the first by the second is the pitch in kHz, also after they are scaled."""
    count = 1 << max(14, (len(samples) - 1).bit_length())
    spectrum = torch.fft.rfft(samples.double(), n=count).abs()
    spectrum[: int(_LOWEST_HZ * count / rate)] = 0
    spectrum[int(_HIGHEST_HZ * count / rate) :] = 0
    pitch = float(spectrum.argmax()) * rate / count / 1e3
    bands = torch.nn.functional.adaptive_avg_pool1d(spectrum[None, : count // 8], _SIZE - 2)[0]
    colour = bands / bands.sum().clamp(min=1e-9)
    return [pitch, 1.0, *colour.tolist()]
