"""The daemon's core through seeded lives full of accidents, and whether the simulation would notice if it were broken.

``GLMTTS_SIM_SEEDS`` (how many, or ``FIRST:LAST``) and ``GLMTTS_SIM_JOBS`` (requests in each life) make it longer; a
seed that failed is in the name of the test, and fails again with ``GLMTTS_SIM_SEEDS=SEED:SEED``. ``make soak`` lives
many more, on all cores.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from . import shrink
from .broken import BROKEN, BrokenCore
from .broken_jobs import deadlines_forgotten
from .rules import Broken, Rule
from .shrink import Life, shrunk
from .soak import seeds
from .world import World

# A life takes as long as the machine has other work.
pytestmark = pytest.mark.timeout(600)

JOBS = int(os.environ.get("GLMTTS_SIM_JOBS", "700"))


@pytest.mark.parametrize("seed", seeds(os.environ.get("GLMTTS_SIM_SEEDS", "20")))
def test_whatever_happens_every_job_ends_once_and_nobody_hears_another_s(seed: int) -> None:
    life = Life(seed, JOBS)
    try:
        world = life.run()
    except Exception as error:
        error.add_note(f"the same life again: {life.command}\nthe smallest that fails so: {shrunk(life).command}")
        raise
    assert world.clients.accepted > JOBS // 10


@pytest.mark.parametrize("seed", range(8))
def test_a_client_that_floods_every_table_takes_nothing_from_its_neighbours(seed: int) -> None:
    world = World(seed, 250, floods=True)
    world.run()
    assert world.removals > 5


@dataclass
class Happened:
    """The accidents of some lives."""

    counts: Counter[str] = field(default_factory=Counter)
    codes: set[str] = field(default_factory=set)
    causes: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)

    def note(self, world: World) -> None:
        """Add those of a life."""
        self.codes |= set(world.clients.codes)
        self.causes |= world.causes
        self.problems |= world.journal.problems
        self.counts.update(
            kills=world.kills,
            stops=world.stops,
            aside=world.suspended,
            bugs=min(world.bugs.met, world.bugs.effects_met),
            folders_gone=world.folders.gone,
            clocks_set=world.clocks.sets,
            freezes=world.clocks.freezes,
            workers_frozen=world.clocks.workers_frozen,
            pieces=world.pieces.taken,
            pieces_refused=world.pieces.refused,
            voices=world.voices.kept,
            voices_refused=world.voices.refused,
        )

    @property
    def lacking(self) -> set[str]:
        """The accidents that have not happened, or not often enough."""
        often = {name for name, least in OFTEN.items() if self.counts[name] < least}
        return often | (CODES - self.codes) | (CAUSES - self.causes) | ({"journal"} if not self.problems else set())


OFTEN = {
    "bugs": 16, "folders_gone": 6, "clocks_set": 6, "freezes": 11, "workers_frozen": 1, "pieces": 501,
    "pieces_refused": 21, "voices": 101, "voices_refused": 101, "kills": 6, "stops": 1, "aside": 51,
}  # fmt: skip
CODES = {
    "done", "queue_full", "unavailable", "cancelled", "worker_crashed", "hung", "out_of_memory", "quarantined",
    "deadline_exceeded", "slow_consumer", "synthesis_failed", "shutting_down", "job_not_found", "output_exists",
    "rate_limited", "forbidden", "bad_request",
}  # fmt: skip
CAUSES = {
    "requested", "operator", "recycled", "leak", "unloaded", "crashed", "host_oom", "out_of_memory", "cuda_context",
    "hung", "protocol", "start_timeout", "start_failed",
}  # fmt: skip


def test_the_accidents_do_happen() -> None:
    happened = Happened()
    # In few lives a worker is unloaded, or ended by the host for want of memory: in the first two.
    for seed in (34, 16, *range(16), *range(17, 34)):
        world = World(seed, 300)
        world.run()
        happened.note(world)
        if not happened.lacking:
            return
    pytest.fail(f"in 35 lives there was too little of: {happened.lacking}; {happened.counts}")


def test_a_seed_replays_exactly_in_another_process() -> None:
    script = "from tests.simulation.world import World; w = World(7, 150); w.run(); print(w.digest)"
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("core", BROKEN, ids=str)
def test_a_broken_core_is_noticed(core: BrokenCore, monkeypatch: pytest.MonkeyPatch) -> None:
    core.break_it(monkeypatch)
    noticed: list[str] = []
    for world in itertools.islice(lives_for(core), 30):
        try:
            world.run()
        except Broken as broken:
            noticed.append(broken.rule.name)
            if broken.rule is core.rule:
                return
    pytest.fail(f"that {core.rule.name} does not hold was not found in 30 lives; what was: {noticed}")


def lives_for(core: BrokenCore) -> Iterator[World]:
    """Lives in which it can show, from its first seed on."""
    worlds = (World(seed, core.jobs, core.without, floods=core.floods) for seed in itertools.count(core.first))
    return (world for world in worlds if core.shows_in(world.scene))


def test_every_invariant_of_the_design_is_broken_by_some_core() -> None:
    assert {core.rule for core in BROKEN} == set(Rule)


def test_a_failure_is_reduced_to_the_few_requests_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines_forgotten(monkeypatch)
    monkeypatch.setattr(shrink, "_PATIENCE_S", 600.0)
    lives = (Life(seed, 300) for seed in range(9))
    smallest = next(small for life in lives if (small := shrunk(life)) != life)
    assert smallest.jobs < 100 and len(smallest.without) > 5 and "deadlines" not in smallest.without
    with pytest.raises(Broken, match="deadline"):
        smallest.run()
