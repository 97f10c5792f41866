"""Cores that reckon with the wrong clock."""

from __future__ import annotations

from typing import Any

import pytest

from glmtts.daemon.core import effects, inputs, machine
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.scheduling.completion import Completion
from glmtts.daemon.core.scheduling.durable import DurableJobs

Patch = pytest.MonkeyPatch


def standstills_count_for_workers(patch: Patch) -> None:
    step, next_due = Machine.step, Machine.next_due

    def by_real_time(self: Any, event: inputs.Input, now: float, wall: float) -> list[effects.Effect]:
        known = getattr(self, "stood_still_s", 0.0)
        if isinstance(event, inputs.StoodStill):
            self.stood_still_s = known + event.seconds
            event = inputs.TimePassed()
        return step(self, event, now + getattr(self, "stood_still_s", 0.0), wall)

    def due(self: Any) -> float | None:
        at = next_due.fget(self)  # type: ignore[attr-defined]
        return None if at is None else at - getattr(self, "stood_still_s", 0.0)

    patch.setattr(Machine, "step", by_real_time)
    patch.setattr(Machine, "next_due", property(due))


def deadlines_stand_still_with_the_daemon(patch: Patch) -> None:
    patch.setattr(machine, "age", lambda *_: None)


def deadlines_follow_the_wall_clock(patch: Patch) -> None:
    recover = DurableJobs._recover

    def by_the_wall(self: DurableJobs, row: inputs.JournalRow, found: Any) -> None:
        if row.deadline_in_s is not None:
            row.deadline_in_s -= self._context.wall - row.created - row.age_s
        recover(self, row, found)

    patch.setattr(DurableJobs, "_recover", by_the_wall)


def results_are_dated_by_the_clock_of_the_start(patch: Patch) -> None:
    end = Completion.end

    def dated(self: Any, *arguments: Any) -> None:
        context = self._context
        at_start = context.__dict__.setdefault("ahead_at_start", context.wall - context.now)
        end(self, *arguments)
        for effect in context.effects:
            if isinstance(effect, effects.JournalEnd):
                effect.keep_s -= context.wall - context.now - at_start

    patch.setattr(Completion, "end", dated)
