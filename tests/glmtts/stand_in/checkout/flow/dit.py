"""Which way to go from a point: towards pitch and loudness of the voice, and what is said."""

from __future__ import annotations

import time

import torch
from mischief import SLOW_FLOW_S, SLOW_TOKEN
from torch.nn import functional

from flow.modules import HASTE, LOUDNESS, MEL, PITCH


class DiT(torch.nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_embed = torch.nn.Embedding(vocab_size, MEL - PITCH - LOUDNESS)

    def forward(
        self,
        middle_point_btd: torch.Tensor,
        condition_btd: torch.Tensor,
        text: torch.Tensor,
        time_step_1d: torch.Tensor,
        padding_mask_bt: torch.Tensor,
        is_causal: bool = False,
        spkr_emb_bd: torch.Tensor | None = None,
        block_pattern: list[int] | None = None,
    ) -> torch.Tensor:
        del padding_mask_bt, is_causal, block_pattern
        assert spkr_emb_bd is not None
        frames = middle_point_btd.shape[1]
        codes = functional.interpolate(text.unsqueeze(1).float(), size=frames, mode="nearest").squeeze(1).long()
        if (codes == SLOW_TOKEN).any():
            time.sleep(SLOW_FLOW_S)
        said = self.text_embed(codes)
        scale = spkr_emb_bd[:, 1:2]
        pitch = torch.where(scale == 0, torch.zeros_like(scale), spkr_emb_bd[:, :1] / scale)
        # A spectrogram's logarithms lie between -12 and 2; without one, there is nothing.
        heard = (condition_btd != 0).any(-1, keepdim=True)
        level = ((condition_btd.mean(-1, keepdim=True) + 12) / 14 * heard).sum(1) / heard.sum(1).clamp(min=1)
        loudness = level[:, None].expand(-1, frames, LOUDNESS)
        goal = torch.cat([pitch[:, None].expand(-1, frames, PITCH), loudness, said], dim=-1)
        return HASTE * (goal - middle_point_btd) + 0.001 * time_step_1d
