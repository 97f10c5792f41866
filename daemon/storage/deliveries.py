"""Files of ended jobs, in a thread of its own: results are read to be sent, marks of outputs are removed."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from glmtts.protocol.system_words import error_in_words

from ..core import effects, inputs
from ..log.logger import Logger
from ..loop import Background
from . import outputs
from .output_owners import OutputOwners
from .results import ResultLostError, read_result, size_of

#: Files that may wait to be settled, and results that may wait to be read, of all clients: more than jobs can end at a
#: time. And of one client, so that others have room.
_MAX_WAITING, _MAX_OF_CLIENT = 20_000, 5_000
#: A result of at most this size in bytes is read without asking for its size first.
_SMALL_BYTES = 256 << 10
#: Results of one client that are looked at in a turn, to find one that its connection has room for.
_MOST_LOOKS = 64
#: Time between two measurements of the outputs, in seconds: without a reason, with one, and at least this many times
#: as long as the last one took.
_MEASURE_S, _MEASURE_SOON_S, _MEASURE_PART = 60.0, 2.0, 20


class _Stored(NamedTuple):
    effect: effects.SendStored
    size: int


class Receivers(Protocol):
    """The clients' connections, by number."""

    def client_of(self, connection: int) -> str | None:
        """The client of a connection; None when it is gone."""

    def expect(self, connection: int, size: int) -> bool:
        """Whether there is room for a result of ``size`` bytes; if so, ``expected`` follows."""

    def expected(self, connection: int) -> None:
        """The result was sent, or could not be read."""


class Deliveries:
    """Reads one result at a time, when there is room to send it: until then it waits on the disk.

    Clients take turns, and one that does not read its results holds up no other.
    """

    def __init__(
        self,
        wakeup_fd: int,
        log: Logger,
        *,
        receivers: Receivers,
        send: Callable[[effects.Send], None],
        step: Callable[[inputs.Input], None],
        owners: OutputOwners,
        keep_free: Callable[[], int],
    ) -> None:
        """``send`` hands an event with its body to a client; ``step`` takes inputs to the core. ``owners``
        knows whose the outputs are, ``keep_free`` how many bytes they leave on the disk.
        """
        self._background = Background(wakeup_fd, _MAX_WAITING)
        self._receivers = receivers
        self._send = send
        self._step = step
        self._log = log
        #: Results to be read with their sizes, as far as those are known, by client; the client whose result was read
        #: last comes last.
        self._waiting: OrderedDict[str, deque[_Stored]] = OrderedDict()
        self._count = 0
        self._reading = False
        self._owners = owners
        self._keep_free = keep_free
        self._measuring = self._measure_soon = False
        self._measured_at = self._measure_from = float("-inf")

    def send_stored(self, effect: effects.SendStored) -> None:
        """Read a result, and send it."""
        client = self._receivers.client_of(effect.to.connection)
        if client is None:
            return
        waiting = self._waiting.setdefault(client, deque())
        if self._count >= _MAX_WAITING or len(waiting) >= _MAX_OF_CLIENT:
            self._lost(effect, ResultLostError("too many results wait to be read; ask again in a moment"))
            return
        waiting.append(_Stored(effect, _SMALL_BYTES))
        self._count += 1
        self.advance()

    def advance(self) -> None:
        """Read the next result for which there is room."""
        if self._reading or not self._waiting:
            return
        for client in list(self._waiting):
            stored = self._next_of(self._waiting[client])
            if not self._waiting[client]:
                del self._waiting[client]
            else:
                self._waiting.move_to_end(client)
            if stored is not None:
                self._read(client, stored)
                return

    def _next_of(self, waiting: deque[_Stored]) -> _Stored | None:
        """Take the first result that its connection has room for; those of connections that are gone are dropped."""
        for _ in range(min(_MOST_LOOKS, len(waiting))):
            stored = waiting.popleft()
            self._count -= 1
            connection = stored.effect.to.connection
            if self._receivers.client_of(connection) is None:
                continue
            if self._receivers.expect(connection, stored.size):
                return stored
            waiting.append(stored)
            self._count += 1
        return None

    def _read(self, client: str, stored: _Stored) -> None:
        effect = stored.effect

        def read() -> bytes | int:
            size = size_of(effect.path)
            return size if size > stored.size else read_result(effect.path)

        def then(result: object) -> None:
            self._reading = False
            if isinstance(result, int):
                # It has to wait until there is room for so much.
                self._waiting.setdefault(client, deque()).appendleft(_Stored(effect, result))
                self._count += 1
            elif isinstance(result, bytes):
                self._send(effects.Send(effect.to, effect.event, result))
            else:
                self._lost(effect, result)
            self._receivers.expected(effect.to.connection)
            self.advance()

        self._reading = True
        if not self._background.run(read, then):
            then(ResultLostError("too many results wait to be read; ask again in a moment"))

    def _lost(self, effect: effects.SendStored, result: object) -> None:
        problem = str(result) if isinstance(result, ResultLostError) else _in_words(result)
        self._step(inputs.StoredLost(effect.to, effect.event.id, getattr(effect.event, "job", ""), problem))

    def settle(self, effect: effects.SettleOutput) -> None:
        """Remove the mark of an output, and the file too if the job ended badly."""

        def then(result: object) -> None:
            if isinstance(result, Exception):
                self._log.warning("output not settled", job=effect.job, file=effect.path, reason=_in_words(result))

        def settle() -> None:
            path = Path(effect.path)
            if effect.wanted:
                self._owners.note(path.name, effect.client)
                outputs.settle(path, effect.job)
            else:
                outputs.discard(path, effect.job)

        # The next daemon sweeps the marks that are left when too many wait.
        self._background.run(settle, then)

    def measure_soon(self) -> None:
        """Measure the outputs when that was not done just now: a client was refused, and may have removed some."""
        self._measure_soon = True

    def measure_outputs(self) -> None:
        """Measure the outputs if it is time; called every few seconds."""
        now = time.monotonic()
        pause_s = _MEASURE_SOON_S if self._measure_soon else _MEASURE_S
        if self._measuring or now < max(self._measure_from, self._measured_at + pause_s):
            return
        self._measuring, self._measure_soon = True, False

        def then(result: object) -> None:
            self._measuring, self._measured_at = False, time.monotonic()
            self._measure_from = self._measured_at + _MEASURE_PART * (self._measured_at - now)
            if isinstance(result, inputs.OutputsMeasured):
                self._step(result)

        if not self._background.run(lambda: self._owners.measure(self._keep_free()), then):
            self._measuring = False

    def collect(self) -> None:
        """Hand over the results of finished work; called in the loop."""
        self._background.collect()


def _in_words(result: object) -> str:
    if isinstance(result, OSError):
        return error_in_words(result)
    return f"{type(result).__name__}: {result}"
