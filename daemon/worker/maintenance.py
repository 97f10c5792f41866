"""The worker's work on its engine as a whole: warm it up, check it, free its memory, measure it."""

from __future__ import annotations

import gc

from glmtts.protocol.worker import Memory

from .. import malloc
from ..engines.base import BatchEngine
from ..gpu.process_tree import ProcessTree
from . import audio
from .failures import exit_code, failed
from .preparation import Preparation


class Maintenance:
    """Cares for the engine between jobs. :meth:`warm_up` and :meth:`check` need an engine without a running job."""

    def __init__(self, engine: BatchEngine, preparation: Preparation, default_rate: int) -> None:
        """``default_rate``: of jobs that name none, in Hz."""
        self._engine = engine
        self._preparation = preparation
        self._default_rate = default_rate
        self._tree = ProcessTree()

    def warm_up(self, text: str) -> None:
        """Speak ``text`` and discard it, at the rate that jobs have, so that the first job finds everything loaded."""
        if not text:
            return
        utterance = self._preparation.warm_up(text)
        native, rate = utterance.sample_rate, self._default_rate
        resampler = None if native == rate else audio.Resampler(native, rate)
        for piece in self._engine.synthesize(utterance):
            if resampler:
                resampler.add(piece.samples)

    def check(self, text: str) -> tuple[str, int]:
        """Speak ``text`` as :meth:`warm_up` does.

        Returns:
            Why that failed, or "", and the exit code with which the process must end, or 0.
        """
        try:
            self.warm_up(text)
        except Exception as error:
            message = failed("", error)
            return message.message, exit_code(message)
        return "", 0

    def trim(self) -> None:
        """Collect garbage, and release the cached memory of the engine and of the C library; jobs may be running."""
        self._engine.trim()
        gc.collect()
        malloc.trim()

    def memory(self) -> Memory:
        """The memory of the process, its children and its engine now; jobs may be running."""
        figures = self._engine.memory()
        return Memory(
            rss=self._tree.rss(),
            torch_allocated=figures.torch_allocated,
            torch_reserved=figures.torch_reserved,
            settled=self._engine.settled,
        )
