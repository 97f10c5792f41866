"""Which way to go from a point: towards pitch and loudness of the voice, and what is said."""

from __future__ import annotations

import torch
from mischief import SLOW_TOKEN
from torch import nn
from torch.nn import functional
from utils import block_mask_util

from flow.modules import (
    HEADS,
    MEL,
    TEXT,
    WIDTH,
    AdaLayerNormZero_Final,
    ConvNeXtV2Block,
    DiTBlockCausalV2,
    EmbeddingConcater,
    RotaryEmbedding,
    TimestepEmbedding,
)


class TextEmbedding(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.text_embed = nn.Embedding(vocab_size, TEXT)
        self.text_blocks = nn.Sequential(ConvNeXtV2Block(TEXT, 2 * TEXT))

    def forward(self, text_bt: torch.Tensor, aim_seq_len: int) -> torch.Tensor:
        codes = functional.interpolate(text_bt.unsqueeze(1).float(), size=aim_seq_len, mode="nearest").squeeze(1).long()
        embedded = self.text_embed(codes)
        embedded[..., -1] = codes == SLOW_TOKEN
        return self.text_blocks(embedded)


class DiT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding()
        self.text_emb_layer = TextEmbedding(vocab_size)
        self.emb_concator = EmbeddingConcater()
        self.rotary_embed = RotaryEmbedding(WIDTH // HEADS)
        self.dim = WIDTH
        self.transformer_blocks = nn.ModuleList([DiTBlockCausalV2()])
        self.norm_out = AdaLayerNormZero_Final()
        self.proj_out = nn.Linear(WIDTH, MEL)

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
        assert spkr_emb_bd is not None
        length = middle_point_btd.shape[1]
        given = torch.cat([self.time_embed(time_step_1d), spkr_emb_bd], dim=-1)
        x = self.emb_concator(middle_point_btd, condition_btd, self.text_emb_layer(text, length))
        mask = None
        if is_causal:
            blocks = [self.token_size_to_mel_size(size) for size in block_pattern or [25, 50, 200]]
            mask = (
                block_mask_util.create_with_cache(blocks, length).bool().to(x.device) & padding_mask_bt[:, None, None]
            )
        rope = self.rotary_embed.forward_from_seq_len(length)
        for block in self.transformer_blocks:
            x = block(x, given, rope=rope, attn_mask=mask)
        return self.proj_out(self.norm_out(x, given))

    def token_size_to_mel_size(self, i: int) -> int:
        return int(i / 12.5 * 22_050 / 256)
