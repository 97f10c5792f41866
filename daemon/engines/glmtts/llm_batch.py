"""Speech tokens for many texts at once: each has a row of the language model, and joins and leaves it at any step.

On a GPU, all rows are computed in every step, whether they are used or not. So all steps have one shape, and a row's
numbers are the same bit by bit, whatever the other rows hold. On a CPU, where each row costs time, a few rows are
computed one by one, and many by such a number of first rows that gives the same bits as all.

A suspended text keeps its part of the cache, because that could be computed again only up to rounding: where another
text needs its row, the part is copied to a row that no step computes, and later into any row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import torch_memory
from ..base import EngineError, SharedStepError
from ..cuda_errors import fatal_kind
from .device import PLACES
from .llama import Llama
from .sampling import Audio, Draws, draw

#: The numbers of places of each row that a step can read; it takes the smallest that covers all rows.
_REACHES = (256, 512, 1_024, 1_536, PLACES)
#: On a CPU, up to this many rows are computed one by one. In fp32, products of one to three rows may not round as
#: those of four do, so one job would pay for four rows; four jobs pay at most twice what one step of all four costs.
_ONE_BY_ONE = 4
#: The most tokens of a prompt that are taken in between two steps; the other jobs wait for that.
_MOST_AT_ONCE = 256


@dataclass(eq=False, slots=True)
class Reading:
    """One segment in the language model. ``ids``: its prompt; ``most``: the limit of its tokens.

    It is over when ``ended`` or ``error`` is set; ``draws.tokens`` has what was drawn, in the model's numbers.
    """

    job: str
    ids: list[int]
    draws: Draws
    most: int
    held: bool = False
    #: Whether ``most`` was reached before the model ended the segment.
    cut_off: bool = False
    ended: bool = False
    error: Exception | None = None
    #: In the cache; -1: none. From ``rows`` on, no step computes it.
    row: int = -1
    #: Tokens of ``ids`` that were taken in.
    taken_in: int = 0

    @property
    def places(self) -> int:
        """The filled places of the cache: the last token that was drawn is not in it yet."""
        return self.taken_in + max(len(self.draws.tokens) - 1, 0)


def fit(prompt: int, most: int) -> int:
    """``most`` tokens, or fewer, if a prompt of that length leaves no room. Raises EngineError."""
    if prompt >= PLACES:
        raise EngineError(
            "synthesis_failed",
            f"a segment's prompt (the recording, its transcript, and what it follows) has {prompt} tokens, and with "
            f"batching the model takes {PLACES}: use a shorter recording, set use_cache = false, or set "
            'batching = "off" in [engine.glmtts]',
        )
    return min(most, PLACES - prompt)


@dataclass(slots=True)
class _Inputs:
    """The inputs of a step, at fixed addresses, because a captured step reads them only there."""

    last: Any
    at: Any
    graphs: dict[int, tuple[Any, Tensor]] = field(default_factory=dict)


class BatchedLlm:
    """``rows`` readings at once, and ``parked`` held ones. ``llm``: upstream's ``GLMTTS``. Raises UpstreamError."""

    def __init__(self, llm: Any, *, rows: int, parked: int, warn: Callable[[str], None]) -> None:
        self._llama = Llama(llm.llama, rows=rows, parked=parked, places=PLACES)
        self.audio = Audio(llm.ats, llm.ate, llm.eoa)
        self._warn = warn
        self._computed = rows
        #: The rows that a step computes, and those for held readings.
        self._rows: list[Reading | None] = [None] * (rows + parked)
        #: Rows that may hold NaN, from a reading that failed or was dropped.
        self._unclean: set[int] = set()
        #: Readings whose prompt is not taken in yet, in order.
        self._joining: deque[Reading] = deque()
        zeros = torch.zeros(rows, dtype=torch.long, device=self._llama.device)
        self._inputs = _Inputs(zeros, zeros.clone())
        self._captures = self._llama.device.type == "cuda"
        for reach in _REACHES:
            if self._captures:
                self._capture(reach)
        on_cpu = self._llama.device.type == "cpu"
        self._one_by_one = on_cpu and rows <= _ONE_BY_ONE
        #: The numbers of first rows that a step may compute.
        self._counts = self._llama.equal_counts() if on_cpu and not self._one_by_one else [rows]

    @property
    def has_room(self) -> bool:
        """Whether another can join."""
        free = self._free_row()
        return free < self._computed or (free < len(self._rows) and self._held_in_a_row() is not None)

    @property
    def joining(self) -> Reading | None:
        """The reading that is next for :meth:`take_in`."""
        return next((one for one in self._joining if not one.held and one.row < self._computed), None)

    @property
    def live(self) -> list[Reading]:
        """The readings that a step draws a token for."""
        rows = self._rows[: self._computed]
        return [one for one in rows if one is not None and one.taken_in == len(one.ids) and not one.held]

    def join(self, reading: Reading) -> None:
        """Give a reading a row."""
        self._make_room()
        self._take(reading, self._free_row())
        self._joining.append(reading)

    def hold(self, reading: Reading) -> None:
        """Give it no step. Its row is given to another when one is needed."""
        reading.held = True
        self._bring_back()

    def go_on(self, reading: Reading) -> None:
        """Give it steps again, as soon as there is a row."""
        reading.held = False
        self._bring_back()

    def leave(self, reading: Reading) -> None:
        """Drop a reading, and free its row."""
        if reading in self._joining:
            self._joining.remove(reading)
        if reading.row >= 0:
            self._free(reading, clean=reading.ended)
            self._bring_back()

    def _free_row(self) -> int:
        """The first; behind the last, if there is none."""
        return self._rows.index(None) if None in self._rows else len(self._rows)

    def _held_in_a_row(self) -> Reading | None:
        return next((one for one in self._rows[: self._computed] if one is not None and one.held), None)

    def _take(self, reading: Reading, row: int) -> None:
        self._rows[row] = reading
        reading.row = row
        if row in self._unclean:
            self._unclean.discard(row)
            self._llama.wipe(row)

    def _free(self, reading: Reading, *, clean: bool) -> None:
        if not clean:
            self._unclean.add(reading.row)
        self._rows[reading.row] = None
        reading.row = -1

    def _make_room(self) -> None:
        """If all rows that are computed are taken, park one that is held."""
        free = self._free_row()
        if self._computed <= free < len(self._rows) and (held := self._held_in_a_row()) is not None:
            self._move(held, free)

    def _bring_back(self) -> None:
        """Give a row to those that were parked and have steps again."""
        for one in self._rows[self._computed :]:
            if one is not None and not one.held:
                if (free := self._free_row()) < self._computed:
                    self._move(one, free)
                elif (held := self._held_in_a_row()) is not None:
                    self._swap(one, held)

    def _move(self, reading: Reading, target: int) -> None:
        source = reading.row
        self._free(reading, clean=False)
        self._take(reading, target)
        with torch.inference_mode():
            self._llama.move(source, target, reading.places)

    def _swap(self, one: Reading, other: Reading) -> None:
        rows = one.row, other.row
        with torch.inference_mode():
            self._llama.swap(*rows, max(one.places, other.places))
        other.row, one.row = rows
        self._rows[one.row], self._rows[other.row] = one, other

    def take_in(self, reading: Reading) -> None:
        """Take in the next part of its prompt; after the last part, draw its first token.

        Raises the model's exceptions, after which only this reading has to leave.
        """
        begin = reading.taken_in
        ids = reading.ids[begin : begin + _MOST_AT_ONCE]
        with torch.inference_mode():
            logits = self._llama.read(reading.row, ids, begin)
            if begin + len(ids) < len(reading.ids):
                reading.taken_in += len(ids)
                return
            self._joining.remove(reading)
            reading.taken_in += len(ids)
            self._draw(logits, [reading])

    def step(self) -> None:
        """Draw a token for all live readings. Raises SharedStepError."""
        self._close_up()
        live = self.live
        if live:
            with torch.inference_mode():
                self._draw(self._step(live), live)

    def _step(self, live: list[Reading]) -> Tensor:
        try:
            return self._logits(live)
        except Exception as error:
            kind = fatal_kind(error)
            if kind not in ("", "out_of_memory"):
                raise SharedStepError([one.job for one in live], error) from error
            self._warn(f"a step of {len(live)} jobs failed, and is repeated: {type(error).__name__}")
            torch_memory.trim()
        try:
            # It writes the same values into the cache as the first attempt.
            return self._logits(live)
        except Exception as error:
            raise SharedStepError([one.job for one in live], error) from error

    def _logits(self, live: list[Reading]) -> Tensor:
        """The logits of the live readings, of shape (n, vocabulary)."""
        last, at = [0] * self._computed, [0] * self._computed
        for row, reading in enumerate(self._rows[: self._computed]):
            if reading is None:
                continue
            # The next part of the prompt overwrites the values that the step writes there. For a held reading that has
            # its prompt, the step writes the same values as its own next step will.
            at[row] = reading.places
            if reading.draws.tokens:
                last[row] = reading.draws.tokens[-1]
        rows = [one.row for one in live]
        if self._one_by_one:
            return torch.cat([self._computed_logits(last, at, [row], row, row + 1) for row in rows])
        count = next(count for count in self._counts if count > rows[-1])
        logits = self._computed_logits(last, at, rows, 0, count)
        return logits[: len(rows)] if rows[-1] == len(rows) - 1 else logits[rows]

    def _computed_logits(self, last: list[int], at: list[int], live: list[int], first: int, end: int) -> Tensor:
        """The logits of the rows from ``first`` to ``end``, of which some are live."""
        reach = next(reach for reach in _REACHES if reach > max(at[row] for row in live))
        inputs = self._inputs
        inputs.last.copy_(torch.tensor(last))
        inputs.at.copy_(torch.tensor(at))
        if reach in inputs.graphs:
            graph, logits = inputs.graphs[reach]
            graph.replay()
            return logits
        return self._llama.step(inputs.last[first:end], inputs.at[first:end], reach, first)

    def _close_up(self) -> None:
        """Move live readings to free rows before them, where the step then computes fewer rows."""
        rows = [] if self._one_by_one else [one.row for one in self.live]
        for count in self._counts:
            if not rows or count > rows[-1]:
                return
            free = [row for row in range(count) if self._rows[row] is None]
            beyond = [one for one in self.live if one.row >= count]
            if len(beyond) <= len(free):
                for one, row in zip(beyond, free, strict=False):
                    self._move(one, row)
                return

    @torch.inference_mode()
    def _capture(self, reach: int) -> None:
        """Record the launches of a step, which then cost one. If that fails, steps are launched as on a CPU."""
        try:
            # This was not run on a GPU yet. Torch has no types for a stream.
            other_stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            other_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other_stream):
                # The first call initialises the libraries, which can't be captured.
                self._llama.step(self._inputs.last, self._inputs.at, reach)
            torch.cuda.current_stream().wait_stream(other_stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = self._llama.step(self._inputs.last, self._inputs.at, reach)
            self._inputs.graphs[reach] = graph, logits
        except Exception as error:
            if fatal_kind(error) not in ("", "out_of_memory"):
                raise
            self._captures = False
            self._inputs.graphs.clear()
            self._warn(
                "the language model's step can't be captured as a CUDA graph, and runs slower without: "
                f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )

    def _draw(self, logits: Tensor, readings: list[Reading]) -> None:
        for reading, token in zip(readings, draw(logits, [one.draws for one in readings], self.audio), strict=True):
            if isinstance(token, Exception):
                reading.error = token
            elif token == self.audio.end:
                reading.ended = True
            else:
                reading.draws.tokens.append(token)
                if len(reading.draws.tokens) >= reading.most:
                    reading.ended = reading.cut_off = True
            if reading.ended or reading.error is not None:
                self.leave(reading)
