"""Many lives of the simulation, on every core: ``python -m tests.simulation.soak 1000 --jobs 1000``.

``SEEDS`` is how many, or ``FIRST:LAST``. A life that fails is shrunk, and the command that lives it again is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass

from .accidents import KINDS
from .shrink import Life, shrunk


@dataclass
class Lived:
    """How a life went: what is wrong, or ``""``."""

    life: Life
    jobs: int
    steps: int
    codes: dict[str, int]
    processes: int
    problem: str


def live(life: Life) -> Lived:
    """One life."""
    try:
        world = life.run()
    except Exception as error:
        smallest = shrunk(life)
        problem = "".join(traceback.format_exception_only(error)).strip()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem += (
            f"\n  at {frame.filename}:{frame.lineno}\n  again: {life.command}\n  the smallest: {smallest.command}"
        )
        return Lived(life, 0, 0, {}, 0, problem)
    return Lived(life, world.clients.accepted, world.steps, world.clients.codes, world.starts, "")


def seeds(text: str) -> range:
    """``"20"`` as seeds 0 to 19, ``"7:9"`` as 7, 8 and 9."""
    first, colon, last = text.partition(":")
    return range(int(first), int(last) + 1) if colon else range(int(first))


def main() -> int:
    """Run them, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("seeds", nargs="?", default="400", help="how many, or FIRST:LAST")
    parser.add_argument("--jobs", type=int, default=1_000, help="requests in each life")
    parser.add_argument("--without", default="", help=f"kinds of accidents to leave out: {', '.join(KINDS)}")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    without = tuple(filter(None, options.without.split(",")))
    if unknown := set(without) - set(KINDS):
        parser.error(f"--without: there is no kind of accident called {', '.join(sorted(unknown))}")
    lives = [Life(seed, options.jobs, without) for seed in seeds(options.seeds)]
    began = told = time.monotonic()
    done = failed = jobs = steps = started = 0
    codes: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(min(options.processes, len(lives))) as pool:
        for lived in pool.imap_unordered(live, lives):
            done, jobs, steps, started = done + 1, jobs + lived.jobs, steps + lived.steps, started + lived.processes
            codes.update(lived.codes)
            if lived.problem:
                failed += 1
                print(f"seed {lived.life.seed} FAILED: {lived.problem}", flush=True)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{done} of {len(lives)} lives, {jobs:,} jobs, {jobs / (told - began):,.0f} a second", flush=True)
    took = time.monotonic() - began
    print(f"{done} lives with {done * options.jobs:,} requests: {jobs:,} jobs accepted, {started:,} processes started,")
    print(f"{steps:,} steps in {took:.0f} s, {jobs / took:,.0f} jobs a second; {failed} lives failed")
    print(", ".join(f"{code} {count:,}" for code, count in codes.most_common()))
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
