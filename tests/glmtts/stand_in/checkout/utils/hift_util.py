"""The vocoder of 24,000 Hz."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

_RATE = 24_000
_HOP = 480


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


class HiFTInference:
    def __init__(self, ckpt_path: str, device: Any = "cuda") -> None:
        if not Path(ckpt_path).exists():
            raise FileNotFoundError(f"Checkpoint not found at {ckpt_path}")
        self.device = device
        self.sample_rate = _RATE
        self.model = Tone(_RATE, _HOP).to(device)
        self.model.load_state_dict(torch.load(ckpt_path, map_location=device))
        self.model.eval()

    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            audio: torch.Tensor = self.model(mel.to(self.device).transpose(1, 2))
        return audio


def load_hift(device: Any = "cuda") -> HiFTInference:
    ckpt_path = "ckpt/hift/hift.pt"
    print(f"Loading HiFT model from {ckpt_path} on {device}...")
    return HiFTInference(ckpt_path, device=device)
