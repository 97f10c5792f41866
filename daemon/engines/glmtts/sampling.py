"""How the next token of a row is drawn: upstream's two ways, with the job's own random numbers.

Upstream seeds torch's global generator anew for each segment. A generator of the segment's own, with the same seed and
the same draws in the same order, gives the same random numbers. All draws are made on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    values, tokens = _in_order(odds)
    highest = scores.max(-1).values.tolist()
    drawn: list[int | Exception] = []
    for number, one in enumerate(rows):
        try:
            _check(highest[number])
            if one.method == "ras":
                token = _ras(values[number], tokens[number], odds[number], one)
            else:
                token = _topk(odds[number].cpu(), one, None if one.may_end else audio.end)
            if not audio.has(token) or (token == audio.end and not one.may_end):
                token = _redrawn(scores[number].cpu(), one, audio)
            drawn.append(token)
        except Exception as error:
            drawn.append(error)
    return drawn


def _in_order(odds: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest of each row and their tokens, on the CPU, in the order of a stable sort."""
    values, tokens = odds.topk(min(_ORDERED, odds.shape[-1]), -1)
    values, tokens = values.cpu(), tokens.cpu()
    by_token = tokens.argsort(-1)
    values, tokens = values.gather(-1, by_token), tokens.gather(-1, by_token)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values[:, :_TOP_K], tokens.gather(-1, order)[:, :_TOP_K]


def _ras(values: Tensor, tokens: Tensor, odds: Tensor, one: Draws) -> int:
    """``odds``: of the whole vocabulary, on any device; they are needed where a token would come again."""
    kept, total = 0, values.new_zeros(())
    # One by one, in fp32, as upstream adds them up: the rounding decides on the last.
    while kept < len(values) and total < _TOP_P:
        total = total + values[kept]
        kept += 1
    token = int(tokens[values[:kept].multinomial(1, replacement=True, generator=one.generator)])
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
    scores = scores.masked_fill(~possible, -float("inf"))
    _check(float(scores.max()))
    odds = scores.softmax(-1)
    if one.method == "topk":
        return _topk(odds, one)
    values, tokens = _in_order(odds[None])
    return _ras(values[0], tokens[0], odds, one)


def _check(highest: float) -> None:
    """Raise EngineError unless a token can be drawn: on a GPU, drawing from no distribution ends the process."""
    if not highest > -float("inf"):
        raise EngineError(
            "synthesis_failed",
            "the language model gave no probabilities for the next token (not numbers, or all zero); try another seed "
            'or other words, or dtype = "fp32" in place of "bf16"',
        )
