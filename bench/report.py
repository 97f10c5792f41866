"""What the numbers say: percentiles, ratios to the limits, a verdict for every target, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]

LABELS = {
    "proxy": "zmq.proxy (C)",
    "broker": "bare Python broker",
    "all": 'glmttsd, events "all"',
    "final": 'glmttsd, events "final"',
    "before_all": 'the other version, events "all"',
    "before_final": 'the other version, events "final"',
    "mosec": "mosec",
}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered) + 0.5) - 1))]


def summary(subject: Any) -> Results:
    """The figures of one subjects.Subject, over all its rounds."""
    result: Results = {}
    if subject.trips_s:
        trips = [trip * 1e6 for trip in subject.trips_s]
        result |= {f"p{share}_us": percentile(trips, share / 100) for share in (50, 95, 99)}
        result |= _per_job("sequential", subject.sequential_cpu_s, len(trips))
        result["trips_us"] = [round(trip, 1) for trip in trips]
    if subject.throughputs:
        jobs = sum(round_.jobs for round_ in subject.throughputs)
        rates = [round_.jobs / round_.seconds for round_ in subject.throughputs]
        result["jobs_per_s"] = statistics.median(rates)
        result["jobs_per_s_rounds"] = [round(rate) for rate in rates]
        result |= _per_job("outstanding", subject.outstanding_cpu_s, jobs)
    return result


def _per_job(kind: str, rounds: Sequence[tuple[float, float, float]], jobs: int) -> dict[str, float]:
    sums = [sum(column) for column in zip(*rounds, strict=True)]
    return {f"{who}_us_{kind}": used * 1e6 / jobs for who, used in zip(("broker", "worker", "load"), sums, strict=True)}


@dataclass(frozen=True, slots=True)
class Target:
    """A number to reach: ``value`` at most, or at least, ``bound``. None is what was not measured."""

    name: str
    value: float | None
    bound: float | None
    unit: str
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """``met``, by how much it was missed, or that it was not measured."""
        if self.value is None or self.bound is None:
            return "not measured"
        if (self.value >= self.bound) if self.at_least else (self.value <= self.bound):
            return "met"
        missed = abs(self.value - self.bound)
        return (
            f"MISSED by {100 * missed / self.bound:.0f} %"
            if self.bound
            else f"MISSED by {missed:g} {self.unit}".rstrip()
        )


def targets(results: Mapping[str, Any]) -> list[Target]:
    """The targets of the project and how they stand."""
    found: list[Target] = []
    value = _Lookup(results)
    proxy, broker = value("subjects", "proxy", "p50_us"), value("subjects", "broker", "p50_us")
    bare = value("subjects", "broker", "jobs_per_s")
    mosec_p50, mosec_rate = value("subjects", "mosec", "p50_us"), value("subjects", "mosec", "jobs_per_s")
    for kind in ("all", "final"):
        p50 = value("subjects", kind, "p50_us")
        found += [
            Target(f'round trip p50, events "{kind}": 3 x zmq.proxy', p50, _times(proxy, 3), "us"),
            Target(f'round trip p50, events "{kind}": 2 x bare broker', p50, _times(broker, 2), "us"),
            Target(f'round trip p50, events "{kind}": mosec\'s', p50, mosec_p50, "us"),
        ]
    final = value("subjects", "final", "jobs_per_s")
    cpu, cpu_before = (value("subjects", key, "broker_us_outstanding") for key in ("final", "before_final"))
    if cpu_before is not None:
        rate_before = value("subjects", "before_final", "jobs_per_s")
        p50, p50_before = value("subjects", "final", "p50_us"), value("subjects", "before_final", "p50_us")
        found += [
            Target("supervisor's processor time a job: the other version's", cpu, cpu_before, "us"),
            Target('round trip p50, events "final": the other version\'s', p50, p50_before, "us"),
            Target('jobs/s, events "final": the other version\'s', final, rate_before, "/s", at_least=True),
        ]
    return [
        *found,
        Target('jobs/s, events "final": bare broker / 3', final, _times(bare, 1 / 3), "/s", at_least=True),
        Target('jobs/s, events "final": in any case', final, 2_000.0, "/s", at_least=True),
        Target('jobs/s, events "final": mosec\'s', final, mosec_rate, "/s", at_least=True),
        Target("supervisor's memory at rest (RSS)", value("rest", "rss"), 45.0, "MiB"),
        Target("supervisor's processor time when idle", value("rest", "idle_cpu_percent"), 0.5, "%"),
        Target("from exec until it accepts, median", value("starts", "accepting_s"), 0.5, "s"),
        Target("from a worker's death to the answer, median", _times(value("kills", "answer_s"), 1e3), 50.0, "ms"),
        Target(
            "from a worker's death to the answer: mosec's",
            _times(value("kills", "answer_s"), 1e3),
            _times(value("mosec_kills", "answer_s"), 1e3),
            "ms",
        ),
    ]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


class _Lookup:
    """A figure by its path, None where it was not measured."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._results = results

    def __call__(self, *path: str) -> float | None:
        value: Any = self._results
        for key in path:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return float(value)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the heads, with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def text(results: Mapping[str, Any]) -> str:
    """Everything that a person wants to read, as plain text."""
    return "\n\n".join(
        part for part in (_speed(results), _alone(results), _verdicts(results), _failures(results)) if part
    )


def _speed(results: Mapping[str, Any]) -> str:
    value = _Lookup(results)
    heads = ["", "p50 us", "p95 us", "p99 us", "x proxy", "x broker", "jobs/s", "of broker"]
    heads += ["CPU us", "loaded", "worker", "load"]
    rows = [heads]
    for key, label in LABELS.items():
        if key not in results.get("subjects", {}):
            continue
        p50, rate = value("subjects", key, "p50_us"), value("subjects", key, "jobs_per_s")
        rows.append(
            [
                label,
                *(_number(value("subjects", key, f"p{share}_us"), 0) for share in (50, 95, 99)),
                _number(_ratio(p50, value("subjects", "proxy", "p50_us")), 2),
                _number(_ratio(p50, value("subjects", "broker", "p50_us")), 2),
                _number(rate, 0),
                _number(_ratio(rate, value("subjects", "broker", "jobs_per_s")), 2),
                _number(value("subjects", key, "broker_us_sequential"), 0),
                *(_number(value("subjects", key, f"{who}_us_outstanding"), 0) for who in ("broker", "worker", "load")),
            ]
        )
    notes = (
        "p50, p95, p99: round trip of jobs one by one. jobs/s: median of the rounds, 64 jobs outstanding.\n"
        "CPU us: processor time of the broker for each job one by one; loaded, worker, load: of the broker, the\n"
        "worker and the load generator for each job while 64 are outstanding."
    )
    return f"{table(rows)}\n{notes}"


def _alone(results: Mapping[str, Any]) -> str:
    value = _Lookup(results)
    lines = [
        ("memory at rest: RSS", value("rest", "rss"), "MiB"),
        ("memory at rest: PSS", value("rest", "pss"), "MiB"),
        ("memory at rest: private", value("rest", "private"), "MiB"),
        ("memory after all rounds: RSS", value("after_rounds", "rss"), "MiB"),
        ("processor time when idle", value("rest", "idle_cpu_percent"), "%"),
        (f"memory with {_number(value('queue', 'jobs'), 0)} jobs queued: RSS", value("queue", "rss_full_mib"), "MiB"),
        ("    of that, for each queued job", value("queue", "bytes_per_job"), "bytes"),
        ("    and when they are worked off: RSS", value("queue", "rss_after_mib"), "MiB"),
        ("jobs taken into the queue", value("queue", "queued_per_s"), "/s"),
        ("jobs worked off from the queue", value("queue", "worked_off_per_s"), "/s"),
        ("from exec until it accepts", value("starts", "accepting_s"), "s"),
        ("from exec until a worker was READY and did a job", value("starts", "first_job_s"), "s"),
        ("from kill -9 of a worker to its client's answer", _times(value("kills", "answer_s"), 1e3), "ms"),
        ("    the longest", _times(value("kills", "answer_max_s"), 1e3), "ms"),
        ("from kill -9 until its successor did a job", value("kills", "next_job_s"), "s"),
        ("mosec: from exec until it answers", value("mosec", "ready_s"), "s"),
        ("mosec: memory of all but its worker: PSS", value("mosec", "pss"), "MiB"),
        ("mosec: from kill -9 to its client's answer", _times(value("mosec_kills", "answer_s"), 1e3), "ms"),
    ]
    rows = [["glmttsd alone", "", ""]]
    rows += [[name, _number(figure, 2 if figure < 100 else 0), unit] for name, figure, unit in lines if figure]
    return table(rows) if len(rows) > 1 else ""


def _verdicts(results: Mapping[str, Any]) -> str:
    rows = [["target", "measured", "bound", "verdict"]]
    for target in targets(results):
        bound = f"{'>=' if target.at_least else '<='} {_number(target.bound, 1)} {target.unit}"
        rows.append([target.name, f"{_number(target.value, 2)} {target.unit}", bound, target.verdict])
    value = _Lookup(results)
    proxy, mosec = value("subjects", "proxy", "p50_us"), value("subjects", "mosec", "p50_us")
    if proxy and mosec and mosec < proxy:
        note = "mosec's p50 is below zmq.proxy's own in this run: no broker over ZeroMQ reaches it on this machine."
        return f"{table(rows)}\n{note}"
    return table(rows)


def _failures(results: Mapping[str, Any]) -> str:
    lines = [f"{part}: {reason}" for part, reason in results.get("not_measured", {}).items()]
    return "\n".join(["Not measured:", *lines]) if lines else ""


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw the distribution of round trips, jobs a second and processor time for each job. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = {key: figures for key, figures in results["subjects"].items() if "trips_us" in figures}
    colours = dict(
        zip(LABELS, ("#7f7f7f", "#bcbd22", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#d62728"), strict=True)
    )
    figure, (curves, rates, cost) = pyplot.subplots(1, 3, figsize=(16, 4.6), width_ratios=(1.5, 1, 1))
    for key, figures in found.items():
        trips = sorted(figures["trips_us"])
        share = [100 * (rank + 1) / len(trips) for rank in range(len(trips))]
        curves.plot(trips, share, label=f"{LABELS[key]}, p50 {figures['p50_us']:.0f} us", color=colours[key])
    curves.set(xscale="log", xlabel="round trip, us", ylabel="% of jobs", title="Round trip of jobs one by one")
    curves.grid(visible=True, which="both", alpha=0.25)
    curves.legend(loc="lower right", fontsize=8)
    names = [LABELS[key] for key in found]
    bar_colours = [colours[key] for key in found]
    for axes, name, title in (
        (rates, "jobs_per_s", "Jobs a second, 64 outstanding"),
        (cost, "broker_us_outstanding", "Broker's CPU for each job, us"),
    ):
        bars = axes.barh(names, [figures.get(name, 0.0) for figures in found.values()], color=bar_colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axes.set_title(title)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(axis="y", labelsize=8)
    cost.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
