"""How a token is drawn so that speech does not repeat itself."""

from __future__ import annotations

import torch


def ras_sampling(
    weighted_scores: torch.Tensor,
    decoded_tokens: list[int],
    sampling: int,
    top_p: float = 0.8,
    top_k: int = 25,
    win_size: int = 10,
    tau_r: float = 0.1,
    temperature: float = 1.0,
) -> torch.Tensor:
    """One of the likeliest tokens; if that was drawn a moment ago, any."""
    del sampling
    odds, indices = (weighted_scores / temperature).softmax(dim=0).topk(top_k)
    kept = int((odds.cumsum(0) - odds < top_p).sum())
    drawn = indices[odds[: max(kept, 1)].multinomial(1, replacement=True)]
    if decoded_tokens[-win_size:].count(int(drawn)) >= win_size * tau_r:
        return weighted_scores.softmax(dim=0).multinomial(1, replacement=True)
    return drawn
