"""Compares the waiting time that is announced at acceptance with the real one.

Real daemons, several clients who come when they like, up to 9 jobs waiting: eSpeak NG with texts of 20 to 3,000
characters, and the fault engine with several kinds of jobs that each have their own pace, with one worker and two; and
once more with a queue that never empties. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import faults
import overhead
import report
import running
from processes import NotMeasured
from speakers import Speakers, Spoken, Together, config, drain

HERE = Path(__file__).parent
CLIENTS = 6
#: Jobs before the first that counts.
WARM_JOBS = 40
#: As many wait by default before a job is refused; another one is spoken by each worker.
MAX_WAITING = 9
#: Shorter waits are not worth telling: the daemon does not judge its estimates by them either.
WORTH_S = 0.05
GOOD, AIM = 0.3, 0.9
#: Waits are grouped by these bounds, in seconds.
BOUNDS = (WORTH_S, 0.25, 1.0, 4.0, float("inf"))
_SENTENCES = (
    "北风与太阳正在争论谁比较有本事。",
    "他们正好看到有个人走过，那个人穿着一件斗篷。",
    "The North Wind and the Sun were disputing which was the stronger. ",
    "A traveller came along wrapped in a warm cloak. ",
)
#: The fault engine's kinds of jobs: each has its own pace, which the daemon has to find out.
_KINDS: tuple[dict[str, Any], ...] = (
    {"options": {"rtf": 0.05}},
    {"options": {"rtf": 0.1, "segments": 3}},
    {"options": {"rtf": 0.02}, "voice": "tone-high"},
)
#: Part of the workers' time that is asked for where clients come when they like.
LOAD = 0.8


@dataclass(frozen=True, slots=True)
class World:
    """A daemon, and how it is asked: ``full`` means that there is always as much waiting as in waves of 1 to 9."""

    label: str
    engine: str
    workers: int = 1
    full: bool = False


WORLDS = {
    "espeak": World("eSpeak NG, one worker", "espeak"),
    "fault": World("fault engine, one worker", "fault"),
    "fault2": World("fault engine, two workers", "fault", workers=2),
    "full": World("fault engine, never idle", "fault", full=True),
}


class Asker:
    """Keeps between 1 and 9 jobs waiting, in waves."""

    def __init__(self, engine: str) -> None:
        self._random = random.Random(1)
        self._engine = engine

    def request(self) -> dict[str, Any]:
        """One of every length, the short ones more often."""
        drawn = self._random
        if self._engine == "espeak":
            length = round(20 * 150 ** drawn.random())
            first = drawn.randrange(len(_SENTENCES))
            # One language for each: real texts don't change theirs with every sentence.
            some = _SENTENCES[:2] if first < 2 else _SENTENCES[2:]
            return {"text": ((some[first % 2] + some[1 - first % 2]) * (length // 30 + 1))[:length]}
        length = round(10 * 20 ** drawn.random())
        return {"text": "x" * length, **drawn.choice(_KINDS)}

    def client(self) -> str:
        """Some come more often than others."""
        return f"c{min(self._random.randrange(CLIENTS), self._random.randrange(CLIENTS))}"

    def level(self) -> int:
        """How many are to wait for the next while."""
        return self._random.randint(1, MAX_WAITING)

    def pause_s(self, mean_s: float) -> float:
        """Seconds until the next arrival of independent clients."""
        return self._random.expovariate(1 / mean_s)


def world(folder: Path, key: str, seconds: float) -> dict[str, Any]:
    """Ask for so long, and compare what was told with what came."""
    about = WORLDS[key]
    asker = Asker(about.engine)
    with ExitStack() as stack:
        text = config(about.engine, workers=about.workers, max_share=1.0)
        speakers = Speakers(stack, folder, key, text, about.workers)
        together = Together([speakers])
        while len(speakers.done) < WARM_JOBS:
            while len(speakers.outstanding) < about.workers + 2:
                speakers.ask(asker.client(), asker.request())
            together.wait(time.perf_counter() + 1.0)
        drain(speakers, 60.0)
        mean_s = statistics.fmean(spoken.synthesis_s for spoken in speakers.done) / about.workers
        speakers.done.clear()
        _ask_on(speakers, asker, about, mean_s, time.perf_counter() + seconds)
        drain(speakers, 60.0)
        return {"refused": speakers.refused, "jobs": len(speakers.done), **compare(speakers.done)}


def _ask_on(speakers: Speakers, asker: Asker, about: World, mean_s: float, until: float) -> None:
    """Ask until then: by chance for LOAD of the workers' time, or whenever fewer wait than are to."""
    together = Together([speakers])
    level, ended = asker.level(), 0
    next_at = time.perf_counter()
    while (now := time.perf_counter()) < until:
        if about.full:
            while len(speakers.outstanding) < level + about.workers:
                speakers.ask(asker.client(), asker.request())
            next_at = now + 1.0
        elif now >= next_at:
            next_at += asker.pause_s(mean_s / LOAD)
            # A full queue refuses, and teaches nothing.
            if len(speakers.outstanding) < MAX_WAITING + about.workers:
                speakers.ask(asker.client(), asker.request())
        ended += len(together.wait(min(next_at, until)))
        # A wave ends when as many have ended as were to wait.
        if ended >= level:
            level, ended = asker.level(), 0


def compare(jobs: list[Spoken]) -> dict[str, Any]:
    """The share of good estimates, the errors, and the same by how long the wait was."""
    pairs = [
        (spoken.estimated_s, spoken.waited_s, spoken.position) for spoken in jobs if spoken.estimated_s is not None
    ]
    judged = [(told, came, position) for told, came, position in pairs if max(told, came) >= WORTH_S]
    if not judged:
        raise NotMeasured("no job waited for as long as is worth telling")
    found: dict[str, Any] = _errors(judged) | {"pairs": [[round(t, 4), round(c, 4), p] for t, c, p in judged]}
    found["by_wait"] = {}
    for least, most in pairwise(BOUNDS):
        some = [pair for pair in judged if least <= max(pair[0], pair[1]) < most]
        if some:
            found["by_wait"][f"{least:g} to {most:g} s"] = _errors(some)
    return found


def _errors(pairs: list[tuple[float, float, int]]) -> dict[str, Any]:
    errors = [(told - came) / came if came else float(told > 0) for told, came, _ in pairs]
    return {
        "compared": len(pairs),
        "within": sum(abs(error) <= GOOD for error in errors) / len(errors),
        "median_error": statistics.median(abs(error) for error in errors),
        "bias": statistics.median(errors),
    }


def text(results: report.Results) -> str:
    """The table and the verdicts."""
    rows = [["", "compared", "within 30 %", "median error", "bias", "verdict"]]
    for key, about in WORLDS.items():
        if key not in results:
            continue
        found, label = results[key], about.label
        target = report.Target(label, found["within"], AIM, "", at_least=True)
        for name, some in ((label, found), *((f"    {span}", by) for span, by in found["by_wait"].items())):
            figures = (f"{100 * some[figure]:.1f} %" for figure in ("within", "median_error"))
            verdict = target.verdict if some is found else ""
            rows.append([name, f"{some['compared']:,}", *figures, f"{100 * some['bias']:+.1f} %", verdict])
    missing = [f"{part}: {reason}" for part, reason in results["not_measured"].items()]
    note = "Split by the wait; bias: median of (told - came) / came. Aim: nine of ten within 30 %."
    return "\n".join([report.table(rows), note, *missing])


def plot(results: report.Results, path: Path) -> None:
    """What was told against what came. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    keys = [key for key in WORLDS if key in results]
    if not keys:
        return
    figure, axes = pyplot.subplots(1, len(keys), figsize=(5.2 * len(keys), 4.8), squeeze=False)
    for place, key in zip(axes[0], keys, strict=True):
        told = [max(pair[0], 1e-2) for pair in results[key]["pairs"]]
        came = [max(pair[1], 1e-2) for pair in results[key]["pairs"]]
        place.scatter(came, told, s=5, alpha=0.4, color="#1f77b4")
        ends = [1e-2, max(*told, *came)]
        place.plot(ends, ends, color="k", linewidth=0.8)
        place.fill_between(
            ends, [end * (1 - GOOD) for end in ends], [end * (1 + GOOD) for end in ends], color="#2ca02c", alpha=0.15
        )
        share = 100 * results[key]["within"]
        place.set(
            xscale="log", yscale="log", xlabel="s waited", ylabel="s told", title=f"{WORLDS[key].label}: {share:.0f} %"
        )
        place.grid(visible=True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(prog="estimates.py", description="whether the announced waiting time comes true")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each")
    parser.add_argument("--only", default=",".join(WORLDS), help=f"with commas between: {', '.join(WORLDS)}")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plot")
    options = parser.parse_args(argv)
    running.end_in_time(900)
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        for key in options.only.split(","):
            overhead.note(f"{WORLDS[key].label}, {options.seconds:g} s")
            try:
                results[key] = world(Path(folder), key, options.seconds)
            except NotMeasured as error:
                results["not_measured"][key] = str(error)
    files = running.save(results, "estimates", options.out, plot)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
