"""The runtime folder is removed now and then, and comes back, or another daemon takes it: then this one ends."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from glmtts.daemon.core import inputs

from .accidents import Scene

if TYPE_CHECKING:
    from .world import World


class Folders:
    """Owns what the daemon sees of its surroundings; draws random numbers of its own, so that other accidents stay."""

    def __init__(self, world: World, seed: int, scene: Scene, without: Iterable[str]) -> None:
        self._world = world
        self._random = random.Random(f"folders {seed}")
        wanted = self._random.random() < 0.4 and "folders" not in without
        self._every_s = (
            self._random.choice([3.0, 15.0]) if wanted and not (scene.gapless or scene.leak_must_be_seen) else 0.0
        )
        self._over = False
        #: How often the folder was gone for a while.
        self.gone = 0

    def open(self) -> None:
        """Begin; the life's later daemons go on with it."""
        if self._every_s:
            self._world.after(self._random.expovariate(1 / self._every_s), self._go)

    def heal(self) -> None:
        """Nothing is removed any more."""
        self._over = True
        self._come_back()

    def _go(self) -> None:
        if self._over:
            return
        self.gone += 1
        problems = {"runtime_folder": "it was removed", "voices": "they are gone"}
        taken = self._random.random() < 0.5
        self._world.happen(inputs.SurroundingsSeen(problems, out_of_reach=self._random.random() < 0.8, taken=taken))
        self._world.after(self._random.choice([2.0, 10.0, 30.0]), self._come_back)

    def _come_back(self) -> None:
        if self._every_s:
            self._world.happen(inputs.SurroundingsSeen({}))
            if not self._over:
                self.open()
