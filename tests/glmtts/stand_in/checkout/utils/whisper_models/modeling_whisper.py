"""Speech tokens, 25 a second, of how loud and how bright a recording is."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from utils.whisper_models.configuration_whisper import WhisperVQConfig

_NEVER_DRAWN = 8


class WhisperVQEncoder(torch.nn.Module):
    def __init__(self, config: WhisperVQConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = torch.nn.Conv1d(2, config.d_model, 3, padding=1)
        self.conv2 = torch.nn.Conv1d(config.d_model, 1, 3, stride=2, padding=1)

    def forward(self, input_features: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        del attention_mask
        heard = self.conv2(torch.tanh(self.conv1(input_features)))
        pooled = torch.nn.functional.avg_pool1d(heard, self.config.pooling_kernel_size)[:, 0]
        codes = (torch.sigmoid(pooled) * (self.config.quantize_vocab_size - _NEVER_DRAWN)).long()
        return SimpleNamespace(quantized_token_ids=codes)
