"""The clocks of the simulation: the wall clock is set both ways, and now and then the daemon, a worker or all stand
still. It draws from numbers of its own, beside those of the schedule."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from glmtts.daemon.core import inputs

if TYPE_CHECKING:
    from .processes import Process
    from .world import World

#: Seconds between the machine's clock and the one on the wall, while that is right.
WALL = 1.7e9
#: By how much the wall clock is set.
_SET_S = (90.0, 3_600.0, 3 * 86_400.0, 20 * 365 * 86_400.0)
#: For how long something stands still, at most; a hang is noticed after 2 s.
_STILL_S = (0.5, 4.0, 30.0, 3_600.0)


class Clocks:
    """``core_now`` is the core's clock, which does not count the time in which its daemon stood still."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"clocks of {world.seed}")
        self._set_s = 0.0
        self._stood_still_s = 0.0
        #: Until when the daemon stands still, and whether everything else does.
        self.frozen_until: float | None = None
        #: When the daemon ran again for the last time.
        self.thawed_at = -math.inf
        self._all = False
        #: How often each thing happened.
        self.sets = self.freezes = self.workers_frozen = 0

    @property
    def core_now(self) -> float:
        """The time as the daemon counts it."""
        return self._world.now - self._stood_still_s

    @property
    def wall(self) -> float:
        """The date as the machine shows it."""
        return self._world.now + WALL + self._set_s

    def real(self, core: float) -> float:
        """When the core's clock shows this, if the daemon does not stand still before."""
        now = core + self._stood_still_s
        while now - self._stood_still_s < core:
            now = math.nextafter(now, math.inf)
        return now

    def open(self) -> None:
        """The first accident comes later."""
        if self._world.scene.clocks:
            self._world.after(self._random.expovariate(0.2), self._act)

    def _act(self) -> None:
        world, rng = self._world, self._random
        if world.ending:
            return
        what = rng.choice(("set", "set", "daemon", "daemon", "all", "worker"))
        lasts_s = rng.choice(_STILL_S) * rng.random()
        if what == "set":
            self.sets += 1
            self._set_s = 0.0 if self._set_s and rng.random() < 0.5 else rng.choice((-1, 1)) * rng.choice(_SET_S)
        elif what == "worker":
            if alive := [process for process in world.processes.values() if process.alive]:
                self.workers_frozen += 1
                rng.choice(alive).freeze(min(lasts_s, 30.0))
        else:
            self.freezes += 1
            self.frozen_until, self._all = world.now + lasts_s, what == "all"
            self._froze_at = world.now
        world.after(rng.expovariate(0.2), self._act)

    def holds(self, process: Process | None, now: float) -> float | None:
        """Until when an action that is due ``now`` waits; None: it happens. ``process``: what would do it."""
        if self.frozen_until is not None and (process is None or self._all):
            return self.frozen_until
        if process is not None and process.frozen_until > now:
            return process.frozen_until
        return None

    def thaw(self) -> None:
        """The daemon runs again, and notices that it had stood still."""
        world = self._world
        assert self.frozen_until is not None
        world.now = self.thawed_at = self.frozen_until
        self.frozen_until = None
        seconds = world.now - self._froze_at
        self._stood_still_s += seconds
        world.clients.had_to_wait()
        world.happen(inputs.StoodStill(seconds))
