"""The flight recorder of a simulated process: what it says when the process fails, and whom it blames."""

from __future__ import annotations

import random
from collections.abc import Mapping


class Recorder:
    """Notes of one process. ``at_work`` and ``has`` are its jobs as they change; it draws from numbers of its own."""

    def __init__(self, name: str, at_work: Mapping[str, object], has: Mapping[str, str], *, there: bool) -> None:
        self._dice = random.Random(f"recorder of {name}")
        self._at_work = at_work
        self._has = has
        self._there = there
        #: What it says since something went wrong.
        self._last: tuple[str, ...] | None = None
        #: The texts of jobs that were named as the cause.
        self.named: set[str] = set()

    def note(self) -> tuple[str, ...]:
        """The jobs in the last note: of what went wrong, or of any work that the process may be at."""
        return self._draw(self._dice.choice(list(self._at_work) or [""])) if self._last is None else self._last

    def went_wrong(self, job: str) -> None:
        """A job has gone wrong, with a note of its stage."""
        self._last = self._draw(job)

    def freeze(self) -> None:
        """The process ends: no note comes after this."""
        self._last = self.note()

    def clear(self) -> None:
        """All goes on."""
        self._last = None

    def _draw(self, job: str) -> tuple[str, ...]:
        """A note of the work in which a job is, by itself or with all others; a few come too late."""
        if not self._there or job not in self._at_work:
            return ()
        note = self._dice.choice(((job,), (job,), tuple(self._at_work), ()))
        return self.named_by(note)

    def said(self, job: str) -> tuple[str, ...]:
        """The jobs that the process itself names when it fails in the work of this one."""
        if len(self._at_work) > 1 and self._dice.random() < 0.5:
            return self._draw(job)
        return self.named_by((job,))

    def named_by(self, note: tuple[str, ...]) -> tuple[str, ...]:
        """Remember the text that a note names alone."""
        if len(note) == 1 and note[0] in self._has:
            self.named.add(self._has[note[0]])
        return note
