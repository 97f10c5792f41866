"""The parts of the flow model, under upstream's names, and what a frame is made of.

The norms that upstream has are missing, so that weights can say what a channel is: the pitch stays a pitch.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from mischief import SLOW_FLOW_S
from torch import nn
from torch.nn import functional

MEL = 80
#: The first numbers of a frame are the pitch in kHz, the next the loudness, all others what is said.
PITCH = 16
LOUDNESS = 16
SAID = MEL - PITCH - LOUDNESS
#: How fast that is reached. The largest step of the ten is 0.16.
HASTE = 3.0
#: The last number of an embedded token is whether passes are slow.
TEXT = SAID + 1
#: The channels of a frame on its way: the frame itself, level and presence of the prompt there, what is said, the
#: loudness of the whole prompt, the pitch, and level and presence in the mean over all frames.
LEVEL, PRESENCE, WORDS = MEL, MEL + 1, MEL + 2
LOUD = WORDS + SAID
HIGH, LEVELS, PRESENCES = LOUD + 1, LOUD + 2, LOUD + 3
WIDTH = 144
HEADS = 2
TIME = 16
SPEAKER = 192


class Hearing(nn.Module):
    """In the place of a Linear: from a frame, the prompt's frame and the token to channels."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(SAID))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        frame, prompt, text = given.split([MEL, given.shape[-1] - MEL - TEXT, TEXT], dim=-1)
        if (text[..., -1] > 0.5).any():
            time.sleep(SLOW_FLOW_S)
        # A spectrogram's logarithms lie between -12 and 2; without one, there is nothing.
        there = (prompt != 0).any(-1, keepdim=True).to(frame.dtype)
        level = (prompt.mean(-1, keepdim=True) + 12) / 14 * there
        channels = torch.cat([frame, level, there, text[..., :SAID] + self.bias], dim=-1)
        return functional.pad(channels, (0, WIDTH - channels.shape[-1]))


class ConvPositionEmbedding(nn.Module):
    def __init__(self, dim: int, kernel_size: int = 31, groups: int = 16) -> None:
        super().__init__()
        self.conv1d = nn.Sequential(
            nn.Conv1d(dim, dim, kernel_size, groups=groups, padding=kernel_size // 2),
            nn.Mish(),
            nn.Conv1d(dim, dim, kernel_size, groups=groups, padding=kernel_size // 2),
            nn.Mish(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1d(x.transpose(1, 2)).transpose(1, 2)


class EmbeddingConcater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = Hearing()
        self.conv_pos_embed = ConvPositionEmbedding(WIDTH)

    def forward(self, x: torch.Tensor, cond: torch.Tensor, text_embed: torch.Tensor) -> torch.Tensor:
        x = self.proj(torch.cat((x, cond, text_embed), dim=-1))
        return self.conv_pos_embed(x) + x


class TimestepEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time_mlp = nn.Linear(TIME, TIME)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        rates = torch.arange(TIME, device=timestep.device).float()
        return self.time_mlp(torch.sin(timestep[:, None] * rates))


class GRN(nn.Module):
    """A norm over time: each frame depends on all."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.norm(x, p=2, dim=1, keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXtV2Block(nn.Module):
    def __init__(self, dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.act = nn.GELU()
        self.grn = GRN(intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        return x + self.pwconv2(self.grn(self.act(self.pwconv1(mixed))))


class AdaLayerNormZero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.Identity()
        self.linear = nn.Linear(TIME + SPEAKER, 6 * WIDTH)
        self.norm = nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shift, scale, gate, *rest = self.linear(self.silu(emb)).chunk(6, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], gate, *rest


class Pitched(nn.Linear):
    """Adds the pitch of the voice to what is shifted at the end: the first of its numbers by the second."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        made = super().forward(given)
        high, scale = given[:, TIME], given[:, TIME + 1]
        made[:, WIDTH + HIGH] += torch.where(scale == 0, torch.zeros_like(scale), high / scale)
        return made


class AdaLayerNormZero_Final(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.Identity()
        self.linear = Pitched(TIME + SPEAKER, 2 * WIDTH)
        self.norm = nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.linear(self.silu(emb)).chunk(2, dim=1)
        return self.norm(x) * (1 + scale)[:, None, :] + shift[:, None, :]


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10_000 ** (-torch.arange(0, dim, 2).float() / dim), persistent=False)

    def forward_from_seq_len(self, seq_len: int) -> tuple[torch.Tensor, float]:
        turns = torch.arange(seq_len, device=self.inv_freq.device)[None, :, None] * self.inv_freq
        return turns.repeat_interleave(2, dim=-1), 1.0


def apply_rotary_pos_emb(t: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    """Of all heads in a row, it turns the first alone, as upstream's does."""
    t, rest = t[..., : freqs.shape[-1]], t[..., freqs.shape[-1] :]
    half = torch.stack((-t[..., 1::2], t[..., ::2]), dim=-1).flatten(-2)
    return torch.cat((t * freqs.cos() + half * freqs.sin(), rest), dim=-1)


class AttentionV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.to_k = nn.Linear(WIDTH, WIDTH)
        self.to_v = nn.Linear(WIDTH, WIDTH)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, float], attn_mask: Any = None) -> torch.Tensor:
        batch, length, _ = x.shape
        query, key = (apply_rotary_pos_emb(one(x), rope[0]) for one in (self.to_q, self.to_k))
        query, key, value = (
            one.view(batch, length, self.heads, -1).transpose(1, 2) for one in (query, key, self.to_v(x))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self.to_out[1](self.to_out[0](mixed.transpose(1, 2).reshape(batch, length, WIDTH)))


class FeedForward(nn.Module):
    """The loudness of the prompt, of its level and its presence in the mean over all frames; and a network."""

    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(approximate="tanh"), nn.Linear(32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.ff(x)
        made[..., LOUD] += x[..., LEVELS] / x[..., PRESENCES].clamp(min=1e-6)
        return made


class DiTBlockCausalV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm = AdaLayerNormZero()
        self.attn = AttentionV2()
        self.ff_norm = nn.Identity()
        self.ff = FeedForward()

    def forward(self, x: torch.Tensor, t: torch.Tensor, rope: tuple[torch.Tensor, float], attn_mask: Any = None) -> Any:
        norm, gate, shift_mlp, scale_mlp, gate_mlp = self.attn_norm(x, emb=t)
        x = x + gate.unsqueeze(1) * self.attn(norm, rope=rope, attn_mask=attn_mask)
        norm = self.ff_norm(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        return x + gate_mlp.unsqueeze(1) * self.ff(norm)


def fill(estimator: Any, guidance: float) -> None:
    """Give the weights their values: channels mean what they are named for, and what is said also depends on the rest.

    ``guidance``: of which the frame's pitch and loudness are free in the end.
    """
    words = slice(WORDS, WORDS + SAID)
    for name, weight in estimator.named_parameters():
        if "text_embed" in name:
            weight.normal_(std=0.2)[:, -1] = 0
        elif "text_blocks" in name or "time_mlp" in name:
            weight.normal_(std=0.2)
        else:
            weight.zero_()
    for block in estimator.text_emb_layer.text_blocks:
        block.pwconv2.weight.mul_(0.2)[-1] = 0
        block.pwconv2.bias[-1] = 0
    estimator.emb_concator.proj.bias.normal_(std=0.1)
    first, _, second, _ = estimator.emb_concator.conv_pos_embed.conv1d
    for conv in (first, second):
        conv.weight[words].normal_(std=0.03)
        # A bias of the first is what is found beyond the end, unless it is silenced.
        conv.bias[words].normal_(std=0.1)
    for block in estimator.transformer_blocks:
        for weight in block.attn_norm.linear.weight.view(6, WIDTH, -1):
            weight[words].normal_(std=0.02)
        bias = block.attn_norm.linear.bias.view(6, WIDTH)
        bias[2], bias[5] = 1, 1
        head = WIDTH // HEADS
        attention = block.attn
        # The first head goes by what is said; the second takes the mean of all frames.
        for linear in (attention.to_q, attention.to_k, attention.to_v):
            linear.weight[:head, words].normal_(std=0.3)
        attention.to_v.weight[head, LEVEL] = attention.to_v.weight[head + 1, PRESENCE] = 1
        attention.to_out[0].weight[words, :head].normal_(std=0.05)
        attention.to_out[0].weight[LEVELS, head] = attention.to_out[0].weight[PRESENCES, head + 1] = 1
        block.ff.ff[0].weight[:, words].normal_(std=0.2)
        block.ff.ff[2].weight[words].normal_(std=0.05)
    estimator.norm_out.linear.weight.view(2, WIDTH, -1)[:, words].normal_(std=0.02)
    spans = (1 - torch.cos(torch.linspace(0, 1, 11) * 0.5 * math.pi)).diff()
    reached = (1 + guidance) * (1 - float(torch.prod(1 - HASTE * spans)))
    out = estimator.proj_out.weight
    out[:PITCH, HIGH] = out[PITCH : PITCH + LOUDNESS, LOUD] = HASTE / reached
    out[PITCH + LOUDNESS :, words] = HASTE * torch.eye(SAID)
    out[:, :MEL] -= HASTE * torch.eye(MEL)
