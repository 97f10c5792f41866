"""What a decision costs: who is next, the acceptance of a job, and the end of one, with up to 100,000 jobs waiting.

The core alone, without sockets and processes; beside it, in the same run, Python's heapq with the same jobs: the
least that any order costs in Python. Processor time of the thread is what counts, so that other processes show as
little as can be. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import overhead
import report
import running
from core_world import CoreWorld, settings

from glmtts.daemon.core.inputs import Client
from glmtts.daemon.core.jobs.job import Account, Job
from glmtts.daemon.core.jobs.queue import WaitingQueue
from glmtts.protocol.requests import Synthesize

HERE = Path(__file__).parent
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
CLIENTS = 100
#: Seconds that a character takes here.
_PACE_S = 0.01
#: The aim: the median time of a decision at this many jobs and clients.
AIM_US, AIM_AT = 50.0, 10_000

#: What the jobs are: the number of clients for each number of jobs, and whether they have deadlines.
CASES: dict[str, tuple[Callable[[int], int], bool]] = {
    "clients": (lambda jobs: min(CLIENTS, jobs), False),
    "deadlines": (lambda jobs: min(CLIENTS, jobs), True),
    "alone": (lambda jobs: jobs, False),
}
LABELS = {
    "clients": "100 clients",
    "deadlines": "100 clients, all with deadlines",
    "alone": "as many clients as jobs",
    "heapq": "heapq: push and pop of a tuple",
}
WHAT = {
    "decision": "push, peek and take: one decision",
    "accept": "a request's whole step",
    "finish": "the step of a job's end",
    "positions": "telling positions, once a second",
}


class Load:
    """Jobs of 20 to 400 characters from some clients, the same ones in every run."""

    def __init__(self, clients: int, *, deadlines: bool) -> None:
        self._random = random.Random(1)
        self._clients = [Client(f"uid:{number}", f"user{number}") for number in range(clients)]
        self._deadlines = deadlines
        self._made = 0

    def client(self) -> Client:
        return self._random.choice(self._clients)

    def text(self) -> str:
        return "x" * self._random.randint(20, 400)

    def deadline_s(self, waiting: int) -> float:
        # From now to four times as far as the queue reaches; nearly all can be met, and none comes in its order.
        return self._random.uniform(10.0, 10.0 + 8.0 * waiting) if self._deadlines else 0.0

    def job(self, now: float, waiting: int) -> Job:
        """A job as the queue gets it."""
        self._made += 1
        text = self.text()
        deadline_s = self.deadline_s(waiting)
        return Job(
            id=f"b-{self._made}",
            client=self.client(),
            request=Synthesize(id="r", v=1, text=text),
            recording=None,
            format="wav",
            sample_rate=None,
            streams=False,
            accepted_at=now,
            created=now,
            deadline_at=now + deadline_s if deadline_s else None,
            account=Account(cost_s=_PACE_S * len(text)),
        )


def figures(taken_ns: list[int]) -> dict[str, float]:
    """Median, p99 and longest in microseconds."""
    return {
        "times": len(taken_ns),
        "p50_us": statistics.median(taken_ns) / 1e3,
        "p99_us": report.percentile(taken_ns, 0.99) / 1e3,
        "longest_us": max(taken_ns) / 1e3,
    }


def decisions(load: Load, waiting: int, times: int) -> dict[str, float]:
    """One job comes and one is chosen and taken, again and again, with ``waiting`` in the queue."""
    queue = WaitingQueue(settings().queue.classes)
    now, clock = 100.0, time.thread_time_ns
    for _ in range(waiting):
        queue.push(load.job(now, waiting))
    taken = []
    for _ in range(times):
        new = load.job(now, waiting)
        begin = clock()
        queue.push(new)
        job = queue.peek(now)
        if job is not None:
            queue.take(job)
        taken.append(clock() - begin)
        assert job is not None
        now += job.account.cost_s
        # Its end: it took a tenth longer than was thought. The machine gives up those that can't be in time.
        job.attempt.earlier_s = 1.1 * job.account.cost_s
        queue.settle(job)
        while (late := queue.peek(now)) is not None and late.deadline_at is not None and late.deadline_at < now:
            queue.remove(late)
            queue.push(load.job(now, waiting))
    return figures(taken)


def heap(load: Load, waiting: int, times: int) -> dict[str, float]:
    """The same with one heap in the order of when jobs are due: what Python's fastest order costs."""
    clock = time.thread_time_ns
    entries: list[tuple[float, int, Job]] = []
    for order in range(waiting):
        heapq.heappush(entries, (random.random(), order, load.job(100.0, waiting)))
    taken = []
    for order in range(waiting, waiting + times):
        new, due = load.job(100.0, waiting), random.random() + order / max(1, waiting)
        begin = clock()
        heapq.heappush(entries, (due, order, new))
        heapq.heappop(entries)
        taken.append(clock() - begin)
    return figures(taken)


def steps(load: Load, waiting: int, times: int) -> dict[str, dict[str, float]]:
    """Whole steps of the machine: a request that is accepted, and the end of a job with the start of the next."""
    world, clock = CoreWorld(), time.thread_time_ns
    world.step(world.request("uid:0", load.text(), final=True))
    # Until the estimates are trained nothing is foretold.
    for _ in range(20):
        world.now += 1.0
        world.step(world.request("uid:0", "x" * 100, final=True))
        world.step(world.finished(1.0))
    for _ in range(waiting):
        # Clients with events "final" get no positions; those would take hours here.
        world.step(world.request(load.client().key, load.text(), load.deadline_s(waiting), final=True))
    accepted, ended, told = [], [], []
    for number in range(times):
        event = world.request(load.client().key, load.text(), load.deadline_s(waiting))
        begin = clock()
        world.step(event)
        accepted.append(clock() - begin)
        # Short enough that positions, told once a second, are in few of these steps.
        world.now += 0.02
        done = world.finished(0.02)
        begin = clock()
        world.step(done)
        ended.append(clock() - begin)
        if number % 20 == 0:
            begin = clock()
            # Not by its timer, which is one of many that a step may find due.
            world.machine.scheduler.notifications.tell_positions()
            told.append(clock() - begin)
    return {"accept": figures(accepted), "finish": figures(ended), "positions": figures(told)}


def growth(by_length: dict[str, dict[str, float]]) -> tuple[float, float]:
    """The exponent of the growth from 100 jobs on (0: none, 1: linear), and microseconds for each doubling."""
    points = [(math.log2(int(length)), found["p50_us"]) for length, found in by_length.items() if int(length) >= 100]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    exponent = statistics.linear_regression(xs, [math.log2(y) for y in ys]).slope
    return exponent, statistics.linear_regression(xs, ys).slope


def measure(lengths: tuple[int, ...], times: int) -> report.Results:
    """Everything, the lengths in turn."""
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}, "heapq": {}}
    for case in CASES:
        results[case] = {what: {} for what in WHAT}
    for waiting in lengths:
        overhead.note(f"{waiting:,} jobs")
        gc.collect()
        results["heapq"][str(waiting)] = heap(Load(1, deadlines=False), waiting, times)
        for case, (clients, deadlines) in CASES.items():
            gc.collect()
            found = decisions(Load(clients(waiting), deadlines=deadlines), waiting, times)
            results[case]["decision"][str(waiting)] = found
            # The forecast takes time by the number of clients: fewer times, where each takes long.
            fewer = times // 20 if clients(waiting) <= 1_000 else 60
            for what, found in steps(Load(clients(waiting), deadlines=deadlines), waiting, fewer).items():
                results[case][what][str(waiting)] = found
    for case in CASES:
        results[case]["growth"] = growth(results[case]["decision"])
    results["heapq_growth"] = growth(results["heapq"])
    return results


def text(results: report.Results) -> str:
    """The tables and the verdict."""
    lengths = list(results["heapq"])
    parts = []
    for what, label in WHAT.items():
        rows = [[f"{label}, us: p50 (p99)", *(f"{int(length):,}" for length in lengths)]]
        for case in CASES:
            cells = (results[case][what][length] for length in lengths)
            rows.append([LABELS[case], *(f"{c['p50_us']:,.1f} ({c['p99_us']:,.0f})" for c in cells)])
        if what == "decision":
            cells = (results["heapq"][length] for length in lengths)
            rows.append([LABELS["heapq"], *(f"{c['p50_us']:,.1f} ({c['p99_us']:,.0f})" for c in cells)])
        parts.append(report.table(rows))
    lines = []
    for case in CASES:
        exponent, doubling = results[case]["growth"]
        lines.append(f"{LABELS[case]}: a decision grows with the {exponent:.2f}th power, {doubling:+.2f} us a doubling")
    exponent, doubling = results["heapq_growth"]
    lines.append(f"{LABELS['heapq']}: {exponent:.2f}th power, {doubling:+.2f} us a doubling")
    parts.append("\n".join(lines))
    found = results["clients"]["decision"].get(str(AIM_AT))
    target = report.Target(
        f"a decision, {AIM_AT:,} jobs, 100 clients, median", found["p50_us"] if found else None, AIM_US, "us"
    )
    parts.append(f"{target.name}: {target.value or 0:.1f} us, aim {AIM_US:g} us: {target.verdict}")
    return "\n\n".join(parts)


def plot(results: report.Results, path: Path) -> None:
    """Cost by length of the queue, on log axes. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    colours = {"clients": "#1f77b4", "deadlines": "#ff7f0e", "alone": "#2ca02c", "heapq": "#7f7f7f"}
    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.8))
    for place, what in zip(axes, ("decision", "accept", "finish"), strict=True):
        for case in CASES:
            _curve(place, results[case][what], LABELS[case], colours[case])
        if what == "decision":
            _curve(place, results["heapq"], LABELS["heapq"], colours["heapq"])
            place.plot([AIM_AT], [AIM_US], "kv", markersize=7, label=f"aim: {AIM_US:g} us at {AIM_AT:,}")
        place.set(xscale="log", yscale="log", xlabel="jobs waiting", title=WHAT[what])
        place.grid(visible=True, which="both", alpha=0.25)
        place.legend(fontsize=8, loc="upper left")
    axes[0].set(ylabel="us: line p50, band up to p99", ylim=(0.3, 2_000))
    for place in axes[1:]:
        # The same for both, so that they can be compared.
        place.set(ylim=(30, 300_000))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _curve(place: Any, found: dict[str, dict[str, float]], label: str, colour: str) -> None:
    lengths = [int(length) for length in found]
    middle = [cell["p50_us"] for cell in found.values()]
    place.plot(lengths, middle, "o-", color=colour, label=label, markersize=4)
    place.fill_between(lengths, middle, [cell["p99_us"] for cell in found.values()], color=colour, alpha=0.12)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write JSON and plot."""
    parser = argparse.ArgumentParser(prog="scheduling.py", description="what a decision of the scheduler costs")
    parser.add_argument("--quick", action="store_true", help="up to 10,000 jobs and fewer times; not a result")
    parser.add_argument("--times", type=int, default=10_000, help="decisions for each length")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plot")
    options = parser.parse_args(argv)
    results = measure(LENGTHS[:4] if options.quick else LENGTHS, 1_000 if options.quick else options.times)
    files = running.save(results, "scheduling", options.out, plot)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
