"""From speech tokens to samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from utils.hift_util import load_hift
from utils.vocos_util import load_vocos_jit


class Token2Wav:
    def __init__(self, flow: Any, sample_rate: int = 24_000, device: Any = "cuda") -> None:
        self.device = device
        self.flow = flow
        self.input_frame_rate = flow.input_frame_rate
        self.sample_rate = sample_rate
        self.hop_size = sample_rate // 50
        self.vocoder: Any
        if sample_rate == 32_000:
            self.vocoder = load_vocos_jit(device)
        elif sample_rate == 24_000:
            self.vocoder = load_hift(device)
        else:
            raise ValueError(f"no vocoder for {sample_rate} Hz")

    def token2wav_with_cache(
        self,
        token_bt: Any,
        n_timesteps: int = 10,
        prompt_token: torch.Tensor = torch.zeros(1, 0, dtype=torch.int32),
        prompt_feat: torch.Tensor = torch.zeros(1, 0, 80),
        embedding: torch.Tensor = torch.zeros(1, 192),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(token_bt, list | np.ndarray):
            token_bt = torch.tensor(token_bt, dtype=torch.long)[None]
        elif not isinstance(token_bt, torch.Tensor):
            raise ValueError(f"Unsupported token_bt type: {type(token_bt)}")
        assert prompt_token.shape[1] != 0 and prompt_feat.shape[1] != 0
        mel, _ = self.flow.inference_with_cache(
            token=token_bt.to(self.device),
            prompt_token=prompt_token.to(self.device),
            prompt_feat=prompt_feat.to(self.device),
            embedding=embedding.to(self.device),
            n_timesteps=n_timesteps,
        )
        return self.vocoder(mel), mel
