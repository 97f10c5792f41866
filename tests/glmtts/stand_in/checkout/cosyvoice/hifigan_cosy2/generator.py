"""Makes sound of frames."""

from __future__ import annotations

import math

import torch


class Tone(torch.nn.Module):
    """A tone of the pitch and the loudness that the frames say, with an overtone and a random phase.

    ``frames``: of shape (1, t, 80): the first 16 numbers are the pitch in kHz, the next 16 the loudness, the others
    what is said.
    """

    def __init__(self, rate: int, hop: int) -> None:
        super().__init__()
        self.rate = rate
        self.hop = hop
        self.overtone = torch.nn.Parameter(torch.tensor(0.25))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hz = frames[:, :, :16].mean() * 1000.0
        loudness = frames[:, :, 16:32].mean(-1).clamp(0.05, 1.0)
        said = torch.tanh(frames[:, :, 32:].sum(-1))
        envelope = (0.8 * loudness * (0.7 + 0.3 * said)).repeat_interleave(self.hop, dim=1)
        phase = torch.rand([1], device=frames.device) * 2 * math.pi
        time = torch.arange(envelope.shape[1], device=frames.device, dtype=torch.float64) / float(self.rate)
        angle = (2 * math.pi * hz * time).to(frames.dtype) + phase
        return envelope * (torch.sin(angle) + self.overtone * torch.sin(2 * angle)) / 1.25
