"""Files of ended jobs, in a thread of its own: results are read to be sent, marks of outputs are removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glmtts.protocol.system_words import error_in_words

from ..core import effects, inputs
from ..log.logger import Logger
from ..loop import Background
from . import outputs
from .results import ResultLostError, read_result

#: Files that may wait to be read or settled: more than jobs can end at a time.
_MAX_WAITING = 20_000


class Deliveries:
    """Reads one file at a time, so that no more than one is in memory before it is sent."""

    def __init__(
        self,
        wakeup_fd: int,
        send: Callable[[effects.Send], None],
        step: Callable[[inputs.Input], None],
        log: Logger,
    ) -> None:
        """``send`` hands an event with its body to a client; ``step`` takes a lost result to the core."""
        self._background = Background(wakeup_fd, _MAX_WAITING)
        self._send = send
        self._step = step
        self._log = log

    def send_stored(self, effect: effects.SendStored) -> None:
        """Read a result, and send it."""

        def then(result: object) -> None:
            if isinstance(result, bytes):
                self._send(effects.Send(effect.to, effect.event, result))
            else:
                problem = str(result) if isinstance(result, ResultLostError) else _in_words(result)
                self._step(inputs.StoredLost(effect.to, effect.event.id, effect.event.job, problem))

        if not self._background.run(lambda: read_result(effect.path), then):
            then(ResultLostError("too many results wait to be read; ask again in a moment"))

    def settle(self, effect: effects.SettleOutput) -> None:
        """Remove the mark of an output, and the file too if the job ended badly."""

        def then(result: object) -> None:
            if isinstance(result, Exception):
                self._log.warning("output not settled", job=effect.job, file=effect.path, reason=_in_words(result))

        settle = outputs.settle if effect.wanted else outputs.discard
        # The next daemon sweeps the marks that are left when too many wait.
        self._background.run(lambda: settle(Path(effect.path), effect.job), then)

    def collect(self) -> None:
        """Hand over the results of finished work; called in the loop."""
        self._background.collect()


def _in_words(result: object) -> str:
    if isinstance(result, OSError):
        return error_in_words(result)
    return f"{type(result).__name__}: {result}"
