"""Bugs: exceptions in the core at any point of a step, and in the shell's effects, at moments drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.context import INTERNAL_ERROR, Context
from glmtts.daemon.core.machine import Machine

from .accidents import Scene

#: A step meets its bug at one of its first points: before and after each handler, and after each effect.
_POINTS = 12
#: What reckons and judges in the middle of a handler, and so may meet a bug there: by the parts of the core.
_FALLIBLE = {
    "admission": ("check",),
    "notifications": ("tell", "begun"),
    "dispatcher": ("_message", "begin", "_next", "reconcile"),
    "estimator": ("expect_s", "least_s", "judge", "learn"),
    "retries": ("content", "deaths_of", "_after_death", "_blame"),
    "forecast": ("of", "left_s", "view"),
    "gpus": ("obstacle", "device", "on_sampled"),
    "pool": ("unavailable", "_vacate", "reconcile"),
    "restarts": ("_pause_s",),
    "recycler": ("after_job", "_judge_idle", "reconcile"),
    "autoscaler": ("reconcile", "on_waiting"),
    "lifecycle": ("reconcile",),
}
#: Effects that meet no bug: without the first the daemon does not end, and the others do nothing here.
_SAFE = (effects.Exit, effects.UseSettings, effects.InternalError, effects.Log, effects.Publish)


class Injected(Exception):
    """A bug of the simulation's making."""


class Bugs:
    """Decides where they are; ``met`` counts them. It draws from numbers of its own, beside those of the schedule."""

    def __init__(self, seed: int, scene: Scene, without: Iterable[str]) -> None:
        self._random = random.Random(f"bugs of {seed}")
        if self._random.random() < 0.4 and "bugs" not in without and not (scene.gapless or scene.leak_must_be_seen):
            scene.bugs = self._random.choice((0.005, 0.05))
        self._chance = scene.bugs
        self._points = 0
        self.met = 0
        self.effects_met = 0

    def draw(self) -> None:
        """A step begins: one of its points may have a bug."""
        self._points = 0
        if self._chance and self._random.random() < self._chance:
            self._points = self._random.randint(1, _POINTS)

    def quiet(self) -> None:
        """The step is over."""
        self._points = 0

    def stop(self) -> None:
        """There are no more bugs."""
        self._chance = 0.0

    def breaks(self, effect: effects.Effect) -> bool:
        """Whether the shell meets a bug with this effect."""
        hopeless = isinstance(effect, effects.Send) and getattr(effect.event, "message", "") == INTERNAL_ERROR
        if not self._chance or hopeless or isinstance(effect, _SAFE) or self._random.random() >= self._chance / 2:
            return False
        self.effects_met += 1
        return True

    def point(self) -> None:
        """The core is at a point where it may meet a bug."""
        if self._points:
            self._points -= 1
            if not self._points:
                self.met += 1
                raise Injected

    def beset(self, machine: Machine) -> None:
        """Have the core meet the bugs."""
        if not self._chance:
            return
        context: Any = machine._context
        context.__class__ = type("BesetContext", (Context,), {"effects": _effects(self)})
        for part, names in _FALLIBLE.items():
            homes = (machine, machine.state, machine.scheduler, machine.state.pool)
            owner = next(getattr(home, part) for home in homes if hasattr(home, part))
            for name in names:
                setattr(owner, name, self._before(getattr(owner, name)))
        handlers: dict[Any, Callable[..., None]]
        for handlers in (machine._inputs, machine._timers):  # type: ignore[assignment]
            for key, handler in handlers.items():
                if key is inputs.StoodStill:
                    continue  # what time has passed for is looked at job by job
                handlers[key] = self._around(handler)

    def _before(self, part: Callable[..., Any]) -> Callable[..., Any]:
        def beset(*arguments: Any, **keys: Any) -> Any:
            self.point()
            return part(*arguments, **keys)

        return beset

    def _around(self, handler: Callable[..., None]) -> Callable[..., None]:
        def beset(*arguments: Any) -> None:
            self.point()
            handler(*arguments)
            self.point()

        return beset


def _effects(bugs: Bugs) -> property:
    """``Context.effects`` as a list that may raise when something was put into it."""

    class Beset(list[effects.Effect]):
        def append(self, effect: effects.Effect) -> None:
            super().append(effect)
            bugs.point()

        def extend(self, more: Iterable[effects.Effect]) -> None:
            super().extend(more)
            bugs.point()

    def get(context: Any) -> list[effects.Effect]:
        return context.__dict__["effects"]  # type: ignore[no-any-return]

    def put(context: Any, decided: list[effects.Effect]) -> None:
        context.__dict__["effects"] = Beset(decided)

    return property(get, put)
