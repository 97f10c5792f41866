"""The vocoder of 32,000 Hz: a TorchScript."""

from __future__ import annotations

from typing import Any

import torch

#: What upstream adds to its mel before this vocoder.
MEL_LOGDIFF = -7.847762537473608


class Vocos2DInference:
    def __init__(self, in_ckpt_path: str, device: Any = "cpu") -> None:
        self.device = device
        self.gen_model = torch.jit.load(in_ckpt_path, map_location=device)
        self.gen_model.eval()

    def __call__(self, xs_mel_tr: torch.Tensor) -> torch.Tensor:
        samples: torch.Tensor = self.gen_model(xs_mel_tr.transpose(-1, -2) + MEL_LOGDIFF)
        return samples


def load_vocos_jit(device: Any = "cuda") -> Vocos2DInference:
    ckpt_path = "ckpt/vocos2d/generator_jit.ckpt"
    print(f"vocoder: {ckpt_path}, {device}")
    return Vocos2DInference(ckpt_path, device=device)
