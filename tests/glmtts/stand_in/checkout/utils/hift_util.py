"""The vocoder of 24,000 Hz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cosyvoice.hifigan_cosy2.generator import Tone

_RATE = 24_000
_HOP = 480


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
    print(f"vocoder: {ckpt_path}, {device}")
    return HiFTInference(ckpt_path, device=device)
