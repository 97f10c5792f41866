"""Masks of what is only there to fill."""

from __future__ import annotations

import torch


def make_pad_mask(lengths: torch.Tensor, max_len: int = 0) -> torch.Tensor:
    """Of shape (batch, longest): True beyond the length."""
    longest = max_len or int(lengths.max())
    return torch.arange(longest)[None] >= lengths[:, None]
