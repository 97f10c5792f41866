"""Resampling by straight lines between the samples, which is good enough for tones."""

from __future__ import annotations

import torch


class Resample(torch.nn.Module):
    def __init__(self, orig_freq: int = 16_000, new_freq: int = 16_000) -> None:
        super().__init__()
        self.orig_freq = orig_freq
        self.new_freq = new_freq

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        count = -(-waveform.shape[-1] * self.new_freq // self.orig_freq)
        if count == 0:
            return waveform
        place = torch.arange(count, device=waveform.device, dtype=torch.float64) * self.orig_freq / self.new_freq
        before = place.long().clamp(max=waveform.shape[-1] - 1)
        after = (before + 1).clamp(max=waveform.shape[-1] - 1)
        share = (place - before).to(waveform.dtype)
        return waveform[..., before] * (1 - share) + waveform[..., after] * share
