"""Durable jobs over all daemons of a life: none is lost, none ends twice, and no end that was told is another later."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from glmtts.daemon.core import effects, inputs
from glmtts.protocol.events import Accepted, Done, Error

from .rules import Rule, must

if TYPE_CHECKING:
    from .world import World


class Promises:
    """What clients may rely on, whichever daemon told them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._durable: set[str] = set()
        #: Attempts that this daemon knows of.
        self._attempts: dict[str, int] = {}
        #: How a job ended by what was told, and whether that was on disk then.
        self._told: dict[str, tuple[str, bool]] = {}

    def asked(self, effect: effects.Effect) -> None:
        """The core has something written."""
        if isinstance(effect, effects.JournalAdd):
            self._durable.add(effect.row.job)
            self._attempts[effect.row.job] = 0
        elif isinstance(effect, effects.JournalStart):
            job, known = effect.job, self._attempts.get(effect.job)
            right = known is not None and effect.attempts == known + 1
            must(Rule.OUTPUT_ONCE, right, job, "begins attempt", effect.attempts, "after", known)
            must(Rule.OUTPUT_ONCE, not self._world.journal.ends(job), job, "is begun again after its end")
            self._attempts[job] = effect.attempts

    def recovered(self, rows: list[inputs.JournalRow]) -> None:
        """A new daemon is handed these."""
        if rows or self._world.journal.problem is None:
            self._attempts = {}
        self._attempts.update((row.job, row.attempts) for row in rows)

    def sent(self, effect: effects.Send) -> None:
        """Somebody is told something."""
        event = effect.event
        job = getattr(event, "job", None)
        if not isinstance(job, str) or job not in self._durable:
            return
        journal = self._world.journal
        row = journal.rows.get(job)
        if isinstance(event, Accepted):
            known = row is not None or job in self._told
            must(Rule.OUTPUT_ONCE, known, job, "is accepted, and not on disk")
        elif isinstance(event, Error) and event.code == "shutting_down" and "is durable" in event.message:
            # Not so of one that was never accepted, because the daemon stopped before it was on disk.
            must(Rule.OUTPUT_ONCE, row is not None, job, "is said to go on later, and is not on disk")
        elif isinstance(event, Error) and (
            event.code == "slow_consumer" or "event was not sent" in event.message or "tried again" in event.message
        ):
            pass  # the end of what this client hears, and not of the job
        elif isinstance(event, Done | Error):
            code = event.code if isinstance(event, Error) else "done"
            on_disk = row is not None and row.event is not None
            known = on_disk or job in journal.answered or job in self._told
            must(Rule.OUTPUT_ONCE, known, job, "is told to be", code, "before that is on disk")
            before, sure = self._told.get(job, (code, False))
            must(Rule.OUTPUT_ONCE, before == code or not sure, job, "was", before, "and now is", code)
            self._told[job] = (code, on_disk or (sure and before == code))

    def look(self, live: Container[str], *, leaving: bool) -> None:
        """What this daemon has to bring to an end is not forgotten."""
        journal = self._world.journal
        if not leaving:
            lost = [job for job in journal.due if job not in live and not journal.ends(job)]
            lost = [job for job in lost if job in journal.rows and job not in journal.lost]
            must(Rule.OUTPUT_ONCE, not lost, "accepted jobs are lost:", lost)

    def look_at_the_end(self) -> None:
        """Nothing more comes."""
        world = self._world
        left = [job for job in world.journal.unfinished() if job not in world.journal.lost]
        must(Rule.OUTPUT_ONCE, not left, "durable jobs have no end:", left)
        for row in world.journal.rows.values():
            if isinstance(row.event, Done) and isinstance(row.event.path, str):
                wrote = world.files.get(row.event.path)
                must(Rule.OUTPUT_ONCE, wrote == row.job, row.job, "is done, and its output is of", wrote)
