"""How well leaks are caught, and healthy processes left alone: the memory policy against thresholds as others have.

The traces are generated (memory_worlds.py says what from) or were recorded from real worker processes (traces/, made by
record_memory.py). The policies to compare with: a threshold at 80 % of the limit on what a process holds when idle, as
uWSGI's reload-on-rss; the same on the most that it ever held, as Celery's worker_max_memory_per_child, which reads
ru_maxrss; and the statistics alone: recycled as soon as growth is certain, wherever it leads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import memory_worlds as worlds
import report

from glmtts.daemon.core.workers.memory_watch import MIB, IdleSample, Limit, MemoryLimits, MemoryVerdict, MemoryWatch

TRACES = Path(__file__).parent / "traces"
THRESHOLD = 0.8
#: What a leak is to be caught before, as a share of the limit.
LEVEL = 0.9
POLICIES = {
    "policy": "this policy",
    "floor": "80 % of the limit, when idle",
    "peak": "80 % of the limit, at any time",
    "trend": "any certain trend",
}
#: A leak that is not caught within this number of jobs after its onset is given up.
MOST_JOBS = 60_000
#: The most times that a policy may replace a process before its leak begins; then the trace ends.
MOST_LIVES = 20


class Process(Protocol):
    """What is watched: a world's process, or a recording of a real one."""

    jobs: int
    device_share: float
    rss_share: float
    device_peak: float
    rss_peak: float

    def job(self) -> IdleSample: ...
    def trim(self) -> IdleSample: ...


@dataclass
class Recording:
    """A recorded process. What a trim would have done to it is not known: it does nothing."""

    limits: MemoryLimits
    rss: list[int]
    vram: list[int]
    jobs: int = 0
    device_share: float = 0.0
    rss_share: float = 0.0
    device_peak: float = 0.0
    rss_peak: float = 0.0

    def job(self) -> IdleSample:
        self.jobs += 1
        return self.trim()

    def trim(self) -> IdleSample:
        rss = self.rss[self.jobs]
        vram = self.vram[self.jobs] if self.vram else None
        self.rss_share = rss / self.limits.rss.bytes if self.limits.rss else 0.0
        self.device_share = vram / self.limits.vram.bytes if vram and self.limits.vram else 0.0
        self.rss_peak, self.device_peak = max(self.rss_peak, self.rss_share), max(self.device_peak, self.device_share)
        return IdleSample(jobs=self.jobs, rss=rss, vram=vram)


@dataclass
class Life:
    """How one process fared under a policy. ``share`` is the fullest of its limits that it came to, idle."""

    jobs: int
    share: float
    recycled: bool
    reason: str = ""
    trims: int = 0
    #: After how many jobs a trend was there for people to see.
    recognised: int | None = None
    ran_out: bool = False
    cost_s: float = 0.0


def live(
    process: Process, limits: MemoryLimits, policy: str, jobs: int, *, onset: int | None = None, mib: float = 0.0
) -> Life:
    """Let a process work for at most ``jobs`` jobs under a policy. ``onset``, ``mib``: of its leak, if it has one."""
    watch = MemoryWatch()
    life = Life(0, 0.0, False)
    watches = policy in ("policy", "trend")
    if watches:
        watch.add(process.trim(), limits)
    while process.jobs < jobs and not life.recycled:
        floor = process.job()
        life.share = max(life.share, process.device_share, process.rss_share)
        if onset is not None and life.share > 1:
            life.ran_out = True
            break
        if watches:
            begun = time.thread_time()
            verdict = watch.add(floor, limits)
            life.cost_s += time.thread_time() - begun
            if onset is not None and life.recognised is None and process.jobs > onset and process.jobs % 8 == 0:
                trend = watch.trend
                # What else grows is not the leak: its rate has to be about right.
                if trend is not None and mib / 2 <= trend.per_job / MIB <= mib * 2:
                    life.recognised = process.jobs
            if policy == "trend":
                life.recycled = process.jobs % 8 == 0 and watch.trend is not None
            else:
                _obey(verdict, process, watch, life)
        elif policy == "floor":
            life.recycled = max(process.device_share, process.rss_share) > THRESHOLD
        else:
            life.recycled = max(process.device_peak, process.rss_peak) > THRESHOLD
    life.jobs = process.jobs
    return life


def _obey(verdict: MemoryVerdict, process: Process, watch: MemoryWatch, life: Life) -> None:
    if verdict.action == "trim":
        life.trims += 1
        watch.trimmed(process.trim())
    elif verdict.action == "recycle":
        life.recycled, life.reason = True, verdict.reason


@dataclass
class Outcome:
    """A world, or a recording, under a policy: its lives one after the other."""

    group: str
    policy: str
    name: str
    onset: int | None
    mib: float = 0.0
    lives: list[Life] = field(default_factory=list)

    @property
    def last(self) -> Life:
        return self.lives[-1]


def in_world(task: tuple[str, int, str], jobs: int) -> Outcome:
    """One generated world under one policy."""
    group, seed, policy = task
    world = MAKE[group](seed)
    leaks = bool(world.leaks)
    outcome = Outcome(group, policy, world.name, world.onset if leaks else None, sum(leak.mib for leak in world.leaks))
    # Several in one figure of a process show as their sum, in several each for itself.
    mib = max((leak.mib for leak in world.leaks), default=0.0)
    done = number = 0
    most = world.onset + MOST_JOBS if leaks else jobs
    while done < most:
        process = worlds.Process(world, number)
        life = live(process, world.limits(), policy, most - done, onset=outcome.onset, mib=mib)
        outcome.lives.append(life)
        done += life.jobs
        number += 1
        # What leaks is looked at until it is caught; a process that was replaced before it leaked starts afresh.
        if leaks and life.jobs > world.onset:
            break
        if number >= MOST_LIVES:
            break
    return outcome


MAKE: dict[str, Callable[[int], worlds.World]] = {
    "leaks": worlds.leaking,
    "tight leaks": partial(worlds.leaking, tight=True),
    "stuck fragments": partial(worlds.fragmenting, stuck=True),
    "fragments": worlds.fragmenting,
    "healthy": worlds.healthy,
    "healthy, nearly full": partial(worlds.healthy, highest=(0.9, 0.97)),
}


def recordings() -> dict[str, dict[str, Any]]:
    """The recorded traces by name, in bytes."""
    found = {}
    for path in sorted(TRACES.glob("*.json")):
        trace = json.loads(path.read_bytes())
        for key in ("rss", "vram"):
            total, values = 0, []
            for difference in trace[f"{key}_kib"]:
                total += difference * 1024
                values.append(total)
            trace[key] = values
        found[trace["name"]] = trace
    return found


def in_recording(trace: dict[str, Any], policy: str) -> Outcome:
    """One recorded process under one policy."""
    limits_mib = trace["limits_mib"]
    limits = MemoryLimits(
        vram=Limit(limits_mib["vram"] * MIB, "max_vram_mib") if "vram" in limits_mib else None,
        rss=Limit(limits_mib["rss"] * MIB, "max_rss_mib") if "rss" in limits_mib else None,
    )
    leaks = bool(trace["leaks"])
    process = Recording(limits, trace["rss"], trace["vram"])
    life = live(process, limits, policy, len(trace["rss"]) - 1, onset=0 if leaks else None)
    return Outcome("recorded", policy, trace["about"], 0 if leaks else None, lives=[life])


# --- what it comes to


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The figures of one group of worlds under one policy."""
    outcomes = list(outcomes)
    lives = [life for outcome in outcomes for life in outcome.lives]
    leaking = [outcome for outcome in outcomes if outcome.onset is not None]
    # Before the onset, a process that will leak is a healthy one.
    early = [life for outcome in leaking for life in outcome.lives if life.jobs <= (outcome.onset or 0)]
    # Some policies never let one grow old enough to leak.
    leaking = [outcome for outcome in leaking if outcome.last.jobs > (outcome.onset or 0)]
    calm = [life for outcome in outcomes if outcome.onset is None for life in outcome.lives] + early
    healthy_jobs = sum(life.jobs for life in calm) + sum(outcome.onset or 0 for outcome in leaking)
    needless = sum(life.recycled for life in calm)
    result: dict[str, Any] = {
        "worlds": len(outcomes),
        "jobs": sum(life.jobs for life in lives),
        "healthy_jobs": healthy_jobs,
        "needless": needless,
        "needless_per_100k": 1e5 * needless / healthy_jobs if healthy_jobs else None,
        "trims": sum(life.trims for life in lives),
        "add_us": 1e6 * sum(life.cost_s for life in lives) / max(1, sum(life.jobs for life in lives)),
    }
    if leaking:
        caught = [outcome for outcome in leaking if outcome.last.recycled]
        shares = [outcome.last.share for outcome in caught]
        delays = [outcome.last.jobs - (outcome.onset or 0) for outcome in caught]
        seen = [o.last.recognised - (o.onset or 0) for o in leaking if o.last.recognised is not None]
        result |= {
            "caught": len(caught) / len(leaking),
            "before_level": sum(share <= LEVEL for share in shares) / len(leaking),
            "ran_out": sum(outcome.last.ran_out for outcome in leaking),
            "share_median": statistics.median(shares) if shares else None,
            "share_most": max(shares, default=None),
            "delay_median": report.percentile(delays, 0.5) if delays else None,
            "delay_p90": report.percentile(delays, 0.9) if delays else None,
            "recognised_median": report.percentile(seen, 0.5) if seen else None,
            "recognised_p90": report.percentile(seen, 0.9) if seen else None,
        }
    return result


def table(results: dict[str, Any]) -> str:
    """Everything that a person wants to read."""
    parts = []
    for group, by_policy in results["groups"].items():
        first = next(iter(by_policy.values()))
        leaks = "caught" in first
        heads = [f"{group} ({first['worlds']} traces)"]
        heads += ["before 90 %", "before 100 %", "ran out", "at, median", "at, most"] if leaks else []
        heads += ["jobs to alarm", "p90", "seen after", "p90"] if leaks else []
        heads += ["healthy jobs", "needless", "per 100,000", "trims"]
        rows = [heads]
        for policy, got in by_policy.items():
            row = [POLICIES[policy]]
            if leaks:
                row += [_percent(got["before_level"]), _percent(got["caught"]), str(got["ran_out"])]
                row += [_percent(got["share_median"]), _percent(got["share_most"])]
                row += [
                    _number(got[key]) for key in ("delay_median", "delay_p90", "recognised_median", "recognised_p90")
                ]
            row += [_number(got["healthy_jobs"]), _number(got["needless"]), _number(got["needless_per_100k"])]
            row += [_number(got["trims"])]
            rows.append(row)
        parts.append(report.table(rows))
    rows = [["recorded from real processes", *POLICIES.values()]]
    for name, by_policy in results["recorded"].items():
        rows.append([name, *(by_policy[policy] for policy in POLICIES)])
    parts.append(report.table(rows))
    notes = (
        "before 90 %: recycled before that share of the limit was held when idle; ran out: held more than there is.\n"
        "jobs to alarm: from the leak's onset to the recycling, which waits until the leak matters; seen after: until\n"
        "its rate was shown to people within a factor of two. needless: recycled without a leak, or before it began;\n"
        f"what a policy has replaced {MOST_LIVES} times is looked at no further, which flatters such policies."
    )
    cost = results["groups"]["healthy"]["policy"]["add_us"], results["groups"]["leaks"]["policy"]["add_us"]
    notes += f"\nA floor costs {cost[0]:.0f} us of a processor in healthy traces, {cost[1]:.0f} us in leaking ones."
    return "\n\n".join([*parts, notes])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _verdict(outcome: Outcome) -> str:
    life = outcome.last
    if outcome.onset is None:
        return f"RECYCLED after {life.jobs:,}" if life.recycled else "let be"
    if life.recycled:
        return f"after {life.jobs:,} at {100 * life.share:.0f} %"
    return f"MISSED at {100 * life.share:.0f} %"


def plot(outcomes: list[Outcome], results: dict[str, Any], path: Path) -> None:
    """Draw where leaks were caught, what it took, and one leak among noise. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(POLICIES, ("#1f77b4", "#ff7f0e", "#d62728", "#9467bd"), strict=True))
    figure, ((where, needless), (seen, example)) = pyplot.subplots(2, 2, figsize=(14, 9))
    for policy, label in POLICIES.items():
        mine = [o for o in outcomes if o.group == "leaks" and o.policy == policy and o.last.recycled]
        where.scatter(
            [o.mib for o in mine], [100 * o.last.share for o in mine], s=9, color=colours[policy], label=label
        )
    where.axhline(100 * LEVEL, color="black", linewidth=0.8, linestyle="--")
    where.set(
        xscale="log",
        xlabel="leak, MiB per job",
        ylabel="% of the limit held",
        title="When leaks were caught",
        ylim=(0, 100),
    )
    where.legend(fontsize=8, loc="lower left", ncols=2)
    groups = [group for group in ("healthy", "healthy, nearly full", "fragments") if group in results["groups"]]
    for index, (policy, label) in enumerate(POLICIES.items()):
        values = [results["groups"][group][policy]["needless_per_100k"] or 0.0 for group in groups]
        places = [number + (index - 1.5) * 0.2 for number in range(len(groups))]
        bars = needless.bar(places, values, 0.2, color=colours[policy], label=label)
        needless.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
    needless.set_xticks(range(len(groups)), groups)
    needless.set_yscale("symlog")
    needless.set(title="Needless recycles for 100,000 jobs without a leak")
    needless.margins(y=0.15)
    mine = [o for o in outcomes if o.group == "leaks" and o.policy == "policy" and o.last.recycled]
    for values, label, colour in (
        ([o.last.jobs - (o.onset or 0) for o in mine], "until it is recycled", colours["policy"]),
        ([(o.last.recognised or o.last.jobs) - (o.onset or 0) for o in mine], "until its rate is shown", "#17becf"),
    ):
        seen.scatter([o.mib for o in mine], values, s=9, color=colour, label=label)
    seen.set(
        xscale="log",
        yscale="log",
        xlabel="leak, MiB per job",
        ylabel="jobs",
        title="This policy: jobs from a leak's onset",
    )
    seen.legend(fontsize=8)
    _draw_example(example)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_example(axes: Any) -> None:
    """A leak under a warm-up, a bounded cache and long texts: what is held, and what the policy does."""
    world = worlds.World(
        name="example",
        seed=5,
        limit=24_576,
        base_live=8_000,
        base_outside=700,
        rss_limit=16_384,
        base_rss=3_000,
        warmups=(("live", 1_500, 40),),
        saws=(worlds.Saw("live", 2_500, 160),),
        leaks=(worlds.Leak("live", 12, 400),),
        working=2_500,
    )
    process, watch, limits = worlds.Process(world), MemoryWatch(), world.limits()
    held, verdict = [100 * process.device_share], MemoryVerdict()
    while verdict.action != "recycle" and process.jobs < 2_000:
        verdict = watch.add(process.job(), limits)
        held.append(100 * process.device_share)
        if verdict.action == "trim":
            axes.axvline(process.jobs, color="#2ca02c", linewidth=1, label="trim")
            watch.trimmed(process.trim())
    axes.plot(held, linewidth=0.9, color="black")
    axes.axvline(400, color="#bcbd22", linewidth=1, label="the leak begins")
    axes.axvline(process.jobs, color="#d62728", linewidth=1, label="recycle")
    axes.axhline(100 * LEVEL, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="jobs", ylabel="% of the limit held", title="A cache that is emptied every 160 jobs, and a leak")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, loc="upper left")
    axes.text(0.02, 0.04, verdict.reason, transform=axes.transAxes, fontsize=7)


def run(counts: dict[str, int], jobs: int, processes: int) -> tuple[list[Outcome], dict[str, Any]]:
    """Every world under every policy."""
    tasks = [
        (group, seed, policy)
        # The longest first, so that all end at the same time.
        for policy in POLICIES
        for group, count in counts.items()
        for seed in range(count)
    ]
    work = partial(in_world, jobs=jobs)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            outcomes = list(pool.map(work, tasks, chunksize=4))
    else:
        outcomes = [work(task) for task in tasks]
    results: dict[str, Any] = {"groups": {}, "recorded": {}}
    for group in counts:
        results["groups"][group] = {
            policy: summary(o for o in outcomes if o.group == group and o.policy == policy) for policy in POLICIES
        }
    for trace in recordings().values():
        got = {policy: in_recording(trace, policy) for policy in POLICIES}
        jobs_recorded = len(trace["rss"]) - 1
        results["recorded"][f"{trace['about']} ({jobs_recorded:,} jobs)"] = {
            policy: _verdict(outcome) for policy, outcome in got.items()
        }
    return outcomes, results


def main(argv: list[str] | None = None) -> None:
    """Run all, print the table, write the JSON and the plot."""
    parser = argparse.ArgumentParser(prog="leaks.py", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the traces: a look, not a result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for JSON and plot")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(argv)
    counts = {
        "leaks": 240,
        "tight leaks": 60,
        "stuck fragments": 40,
        "fragments": 40,
        "healthy": 150,
        "healthy, nearly full": 50,
    }
    if options.quick:
        counts = {group: count // 10 for group, count in counts.items()}
    begun = time.perf_counter()
    outcomes, results = run(counts, 1_000, options.processes)
    results["seconds"] = time.perf_counter() - begun
    late = [o for o in outcomes if o.policy == "policy" and o.onset is not None and not o.last.recycled]
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"leaks-{time.strftime('%Y%m%d-%H%M%S')}"
    stem.with_suffix(".json").write_text(json.dumps(results) + "\n")
    print(table(results))
    for outcome in late:
        print(f"MISSED: {outcome.group}, {outcome.name}, {outcome.mib:.1f} MiB a job: {outcome.last}")
    print(f"\n{results['seconds']:.0f} s; {stem}.json", end="")
    try:
        plot(outcomes, results, stem.with_suffix(".png"))
        print(f", {stem}.png")
    except ImportError:
        print("; no plot: matplotlib is not installed (pip install 'glmtts-supervisor[bench]')")


if __name__ == "__main__":
    sys.exit(main())
