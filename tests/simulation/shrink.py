"""The smallest life that fails in the same way: fewer requests, fewer kinds of accidents."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .accidents import KINDS
from .rules import Broken
from .world import World

#: Seconds that it may take.
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Life:
    """What decides a life of the simulation, and nothing else does."""

    seed: int
    jobs: int
    without: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that lives it again."""
        kinds = f" --without {','.join(self.without)}" if self.without else ""
        return f"python -m tests.simulation.soak {self.seed}:{self.seed} --jobs {self.jobs}{kinds}"

    def run(self) -> World:
        """Live it. Raises what goes wrong."""
        world = World(self.seed, self.jobs, self.without)
        world.run()
        return world


def failure(life: Life) -> tuple[str, int] | None:
    """What goes wrong in a life, in a word, and how many requests it had come to by then; None if nothing does."""
    world = World(life.seed, life.jobs, life.without)
    try:
        world.run()
    except Broken as broken:
        return broken.rule.name, life.jobs - max(0, world.jobs_left)
    except Exception as error:
        return type(error).__name__, life.jobs - max(0, world.jobs_left)
    return None


def shrunk(life: Life) -> Life:
    """The smallest life found that fails as this one does; the same one if it does not fail."""
    found = failure(life)
    if found is None:
        return life
    kind, needed = found
    until = time.monotonic() + _PATIENCE_S

    def fails(smaller: Life) -> int | None:
        """Requests that it takes, if it fails in the same way."""
        if time.monotonic() > until:
            return None
        found = failure(smaller)
        return found[1] if found is not None and found[0] == kind else None

    best = life
    if needed < best.jobs and fails(Life(life.seed, needed, life.without)) is not None:
        best = Life(life.seed, needed, life.without)
    for accident in KINDS:
        if accident not in best.without:
            tried = Life(best.seed, best.jobs, (*best.without, accident))
            if (needed_now := fails(tried)) is not None:
                best = Life(tried.seed, min(tried.jobs, max(1, needed_now)), tried.without)
                if fails(best) is None:
                    best = tried
    step = best.jobs // 2
    while step:
        tried = Life(best.seed, best.jobs - step, best.without)
        if tried.jobs > 0 and fails(tried) is not None:
            best = tried
            step = min(step, best.jobs // 2)
        else:
            step //= 2
    return best
