"""How the next token of a row is drawn: upstream's two ways, with the job's own random numbers.

Upstream seeds torch's global generator anew for each segment. A generator of the segment's own, with the same seed and
the same draws in the same order, gives the same random numbers. All draws are made on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from ..base import EngineError
from .token_watch import MOST_DRAWS

#: Upstream's ``ras_sampling``: the likeliest tokens up to this sum and number; none of the last tokens again.
_TOP_P, _TOP_K, _WINDOW = 0.8, 25, 10
#: The number of likeliest tokens that are put in upstream's order, in which equally likely ones are in number order.
_ORDERED = 64


@dataclass(frozen=True, slots=True)
class Audio:
    """The tokens of audio, from ``first`` to ``last``, and the token that ends it."""

    first: int
    last: int
    end: int

    def has(self, token: int) -> bool:
        return token == self.end or self.first <= token <= self.last


@dataclass(slots=True)
class Draws:
    """How one segment draws its tokens. ``method``: as in the options; ``least``: the fewest tokens before the end."""

    method: str
    top_k: int
    generator: Generator
    least: int
    tokens: list[int] = field(default_factory=list)

    @property
    def may_end(self) -> bool:
        return len(self.tokens) >= self.least


def draw(logits: Tensor, rows: list[Draws], audio: Audio) -> list[int | Exception]:
    """The next token of each row, or why there is none. ``logits``: of shape (rows, vocabulary), fp32."""
    scores = logits.log_softmax(-1)
    early = [number for number, one in enumerate(rows) if one.method == "ras" and not one.may_end]
    if early:
        scores[torch.tensor(early, device=scores.device), audio.end] = -float("inf")
    odds = scores.softmax(-1)
    likeliest = _likeliest(odds)
    drawn: list[int | Exception] = []
    for number, one in enumerate(rows):
        try:
            _check(likeliest[number][0])
            if one.method == "ras":
                token = _ras(*likeliest[number], odds[number], one)
            else:
                token = _topk(odds[number].cpu(), one, None if one.may_end else audio.end)
            if not audio.has(token) or (token == audio.end and not one.may_end):
                token = _redrawn(scores[number].cpu(), one, audio)
            drawn.append(token)
        except Exception as error:
            drawn.append(error)
    return drawn


def _likeliest(odds: Tensor) -> list[tuple[Tensor, list[int]]]:
    """The likeliest of each row that upstream draws from, in the order of a stable sort, and their tokens."""
    values, tokens = odds.topk(min(_ORDERED, odds.shape[-1]), -1)
    values, tokens = values.cpu(), tokens.cpu()
    by_token = tokens.argsort(-1)
    values, tokens = values.gather(-1, by_token), tokens.gather(-1, by_token)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    values, tokens = values[:, :_TOP_K], tokens.gather(-1, order)[:, :_TOP_K]
    # Added up one by one, in fp32, as upstream does: the rounding decides on the last.
    sums = np.add.accumulate(values.numpy(), axis=-1)
    kept = (sums[:, :-1] < np.float32(_TOP_P)).sum(-1) + 1
    return [(row[:count], some) for row, count, some in zip(values, kept.tolist(), tokens.tolist(), strict=True)]


def _ras(values: Tensor, tokens: list[int], odds: Tensor, one: Draws) -> int:
    """``odds``: of the whole vocabulary, on any device; they are needed where a token would come again."""
    token = tokens[int(values.multinomial(1, replacement=True, generator=one.generator))]
    if token in one.tokens[-_WINDOW:]:
        token = int(odds.cpu().multinomial(1, replacement=True, generator=one.generator))
    return token


def _topk(odds: Tensor, one: Draws, too_early: int | None = None) -> int:
    """``too_early``: a token for which another is drawn, that often."""
    values, tokens = odds.topk(min(one.top_k, len(odds)))
    for _ in range(MOST_DRAWS):
        token = int(tokens[values.multinomial(1, replacement=True, generator=one.generator)])
        if token != too_early:
            break
    return token


def _redrawn(scores: Tensor, one: Draws, audio: Audio) -> int:
    """A token that can be spoken: upstream would draw for ever, or make the flow model fail."""
    possible = torch.zeros_like(scores, dtype=torch.bool)
    possible[audio.first : audio.last + 1] = True
    possible[audio.end] = one.may_end
    odds = scores.masked_fill(~possible, -float("inf")).softmax(-1)
    _check(odds.max()[None])
    if one.method == "topk":
        return _topk(odds, one)
    return _ras(*_likeliest(odds[None])[0], odds, one)


def _check(values: Tensor) -> None:
    """Raise EngineError unless a token can be drawn: on a GPU, drawing from no distribution ends the process.

    ``values``: the probabilities of some tokens, the highest first.
    """
    if not values[0] > 0:
        raise EngineError(
            "synthesis_failed",
            "the language model gave no probabilities for the next token (not numbers, or all zero); try another seed "
            'or other words, or dtype = "fp32" in place of "bf16"',
        )
