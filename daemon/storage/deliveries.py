"""Files of jobs that have ended, in a thread of their own: results on disk that are sent, marks that are removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core import effects, inputs
from ..log.logger import Logger
from ..loop import Background
from . import outputs
from .results import ResultLostError, read_result

#: Files that may wait to be read or settled: more than jobs can end at a time.
_MAX_WAITING = 20_000


class Deliveries:
    """``send`` hands an event with its body to a client, ``step`` takes what went wrong into the core.

    One file is read at a time, so no more than one lies in memory before it is a client's.
    """

    def __init__(
        self,
        wakeup_fd: int,
        send: Callable[[effects.Send], None],
        step: Callable[[inputs.Input], None],
        log: Logger,
    ) -> None:
        self._background = Background(wakeup_fd, _MAX_WAITING)
        # Its thread is there from the start, so that a daemon that has more of them than before has a leak.
        self._background.run(lambda: None, lambda _: None)
        self._send = send
        self._step = step
        self._log = log

    def send_stored(self, effect: effects.SendStored) -> None:
        """Read a result, and send it."""

        def then(result: Any) -> None:
            if isinstance(result, Exception):
                problem = str(result) if isinstance(result, ResultLostError) else f"{type(result).__name__}: {result}"
                self._step(inputs.StoredLost(effect.to, effect.event.id, effect.event.job, problem))
            else:
                self._send(effects.Send(effect.to, effect.event, result))

        if not self._background.run(lambda: read_result(effect.path), then):
            then(ResultLostError("too many results wait to be read; ask again in a moment"))

    def settle(self, effect: effects.SettleOutput) -> None:
        """Remove the mark of an output, and the file itself where nobody wants it."""

        def then(result: Any) -> None:
            if isinstance(result, Exception):
                self._log.warning("output not settled", job=effect.job, file=effect.path, reason=str(result))

        how = outputs.settle if effect.wanted else outputs.discard
        # What is not done now is swept by the next daemon.
        self._background.run(lambda: how(Path(effect.path), effect.job), then)

    def collect(self) -> None:
        """Hand back what is done; called in the loop."""
        self._background.collect()
