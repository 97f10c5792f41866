"""Observes upstream's loops: every drawn token, and every pass of the flow model.

Upstream's token loop has no hook, but draws each token by a method of the model, which is replaced here. As long as a
token can be spoken, it is drawn exactly as upstream draws it, from the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..base import EngineError

#: Upstream draws again while the end of speech comes too early, forever if no other token is possible. Where the end
#: has a probability of 99 % that takes hundreds of draws, and the token has to be upstream's.
MOST_DRAWS = 1_000


class Watch:
    """Calls :attr:`step` for every token and every pass of the flow model; an exception of it ends the segment."""

    def __init__(self, llm: Any, flow: Any) -> None:
        self._llm = llm
        self._draw_ras: Callable[..., Any] = llm.sampling_ids_ras
        self._draw_topk: Callable[..., Any] = llm.sampling_ids
        self._speakable: Any = None
        self.step: Callable[[], None] = _ignore
        llm.sampling_ids_ras = self._ras
        llm.sampling_ids = self._topk
        flow.estimator.register_forward_pre_hook(lambda *_: self.step())

    def release(self) -> None:
        """Stop calling :attr:`step`, and drop the reference to it."""
        self.step = _ignore

    def _ras(self, scores: Any, decoded: list[int], sampling: int) -> Any:
        self.step()
        _check_scores(scores)
        return self._checked(
            self._draw_ras(scores, decoded, sampling), scores, lambda s: self._draw_ras(s, decoded, sampling)
        )

    def _topk(self, scores: Any, sampling: int, beam_size: int = 1, ignore_eos: bool = True) -> Any:
        self.step()
        _check_scores(scores)
        sampling = min(sampling, scores.shape[-1])

        def draw(scores: Any) -> Any:
            return self._draw_topk(scores, sampling, beam_size, ignore_eos=False)

        if not ignore_eos:
            return self._checked(draw(scores), scores, draw)
        for _ in range(MOST_DRAWS):
            drawn = draw(scores)
            if self._llm.eoa not in drawn:
                if self._can_be_spoken(drawn):
                    return drawn
                break
        # Make the end impossible; upstream would only draw again.
        scores = scores.clone()
        scores[self._llm.eoa] = -float("inf")
        return self._redrawn(scores, draw)

    def _checked(self, drawn: Any, scores: Any, draw: Callable[[Any], Any]) -> Any:
        """``drawn``, or another token if it can't be spoken.

        Upstream only prints a warning, and then the flow model fails; on a GPU that breaks the context.
        """
        return drawn if self._can_be_spoken(drawn) else self._redrawn(scores, draw)

    def _can_be_spoken(self, drawn: Any) -> bool:
        token = int(drawn)
        return bool(token == self._llm.eoa or self._llm.ats <= token <= self._llm.ate)

    def _redrawn(self, scores: Any, draw: Callable[[Any], Any]) -> Any:
        import torch

        if self._speakable is None:
            self._speakable = torch.zeros(scores.shape[-1], dtype=torch.bool, device=scores.device)
            self._speakable[self._llm.ats : self._llm.ate + 1] = True
            self._speakable[self._llm.eoa] = True
        # An impossible end of speech stays impossible.
        scores = scores.masked_fill(~self._speakable, -float("inf"))
        _check_scores(scores)
        return draw(scores)


def _check_scores(scores: Any) -> None:
    """Raise EngineError unless a token can be drawn: on a GPU, drawing from no distribution ends the process."""
    highest = float(scores.max())
    if not highest > -float("inf"):
        raise EngineError(
            "synthesis_failed",
            "the language model gave no probabilities for the next token (not numbers, or all zero); try another seed "
            'or other words, or dtype = "fp32" in place of "bf16"',
        )


def _ignore() -> None:
    """The step between jobs."""
