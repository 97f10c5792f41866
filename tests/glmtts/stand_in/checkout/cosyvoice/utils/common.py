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
    everything = (weighted_scores / temperature).softmax(dim=0)
    # Of equal ones the first; sorting all would take far longer.
    indices = everything.topk(2 * top_k).indices.sort().values
    odds, order = everything[indices].sort(descending=True, stable=True)
    odds, indices = odds[:top_k], indices[order][:top_k]
    kept, sum_of_odds = 0, torch.zeros_like(odds[0])
    while kept < top_k and sum_of_odds < top_p:
        sum_of_odds += odds[kept]
        kept += 1
    drawn = indices[odds[:kept].multinomial(1, replacement=True)]
    if decoded_tokens[-win_size:].count(int(drawn)) >= win_size * tau_r:
        return weighted_scores.softmax(dim=0).multinomial(1, replacement=True)
    return drawn
