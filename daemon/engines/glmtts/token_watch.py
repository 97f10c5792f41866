"""Watches upstream's loops from inside: it looks at every token that is drawn, and at every step of the flow model.

Upstream's token loop has no hook, but it draws each token by a method of the model, which is replaced here. As long as
a token is one that can be spoken, what is drawn, and from which random numbers, is as upstream draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..base import EngineError

#: Upstream draws again while the end of speech comes too early, for ever if nothing else can come.
_MOST_DRAWS = 100


class Watch:
    """Calls :attr:`step` for every token and every pass of the flow model; what it raises ends the segment there."""

    def __init__(self, llm: Any, flow: Any) -> None:
        self._llm = llm
        self._draw_ras: Callable[..., Any] = llm.sampling_ids_ras
        self._draw_topk: Callable[..., Any] = llm.sampling_ids
        self._speakable: Any = None
        self.step: Callable[[], None] = _nobody
        llm.sampling_ids_ras = self._ras
        llm.sampling_ids = self._topk
        flow.estimator.register_forward_pre_hook(lambda *_: self.step())

    def release(self) -> None:
        """Nobody is to be told of steps any more, nor kept in memory."""
        self.step = _nobody

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
        for _ in range(_MOST_DRAWS):
            drawn = draw(scores)
            if self._llm.eoa not in drawn:
                if self._can_be_spoken(drawn):
                    return drawn
                break
        # Upstream leaves the end as likely as it is, and looks away: drawn again, it must not come.
        scores = scores.clone()
        scores[self._llm.eoa] = -float("inf")
        return self._redrawn(scores, draw)

    def _checked(self, drawn: Any, scores: Any, draw: Callable[[Any], Any]) -> Any:
        """What was drawn, or else, if nobody can speak that, one that can be spoken.

        Of any other token upstream only prints a warning; the flow model fails of it, on a GPU beyond repair.
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
        # The end of speech stays as impossible as it was.
        scores = scores.masked_fill(~self._speakable, -float("inf"))
        _check_scores(scores)
        return draw(scores)


def _check_scores(scores: Any) -> None:
    """On a GPU, to draw from what is no distribution ends the process; on a CPU it raises."""
    highest = float(scores.max())
    if not highest > -float("inf"):
        raise EngineError(
            "synthesis_failed",
            "the language model gave no probabilities for the next token (they are no numbers, or all zero); another "
            'seed or other words may help, and with dtype = "bf16" so may "fp32"',
        )


def _nobody() -> None:
    """Between jobs nobody waits for a step."""
