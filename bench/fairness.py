"""Who gets how much of a worker: twenty clients who all want more than there is, with jobs of very different length.

A real daemon with one worker of the fault engine; beside it, at the same time and with the same jobs, another one that
takes all of them for one client's, and so speaks them in the order in which they come. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faults
import overhead
import report
import running
from processes import NotMeasured
from speakers import Speakers, Together, config

HERE = Path(__file__).parent
CLIENTS = 20
#: The shortest jobs and the longest, in characters.
SHORTEST, LONGEST = 4, 200
#: A character takes 2.4 ms: jobs take from 10 to 480 ms.
RTF = 0.04
#: Jobs that each client has in the daemon at any time.
OUTSTANDING = 4
#: What was served before counts for nothing: the estimates are trained, and all have work waiting.
WARM_S = 5.0
AIM = 0.95
LABELS = {"fair": "glmttsd", "fcfs": "first come, first served"}


def lengths() -> list[int]:
    """The characters of each client's jobs, longer by the same factor from each to the next."""
    factor = (LONGEST / SHORTEST) ** (1 / (CLIENTS - 1))
    return [round(SHORTEST * factor**number) for number in range(CLIENTS)]


def jain(served: list[float]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has everything."""
    squares = sum(value * value for value in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 0.0


def measure(folder: Path, seconds: float) -> report.Results:
    """Keep all clients backlogged in both daemons, and add up what each was served."""
    queue = {"max_waiting": 1_000, "max_share": 1.0}
    with ExitStack() as stack:
        both = {key: Speakers(stack, folder, key, config("fault", **queue)) for key in LABELS}
        keys = {id(speakers): key for key, speakers in both.items()}
        texts = ["x" * length for length in lengths()]

        def ask(key: str, number: int) -> None:
            request = {"text": texts[number], "events": "final", "options": {"rtf": RTF}}
            both[key].ask("everybody" if key == "fcfs" else f"c{number:02d}", request, number=number)

        for _ in range(OUTSTANDING):
            for number in range(CLIENTS):
                for key in both:
                    ask(key, number)
        together, begin = Together(both.values()), time.perf_counter()
        end = begin + WARM_S + seconds
        while (now := time.perf_counter()) < end:
            for speakers, spoken in together.wait(min(end, now + 1.0)):
                ask(keys[id(speakers)], spoken.note["number"])
        return {key: figures(speakers, begin + WARM_S, end) for key, speakers in both.items()}


def figures(speakers: Speakers, begin: float, end: float) -> dict[str, Any]:
    """Who was served how much, and for how long each waited."""
    counted = [spoken for spoken in speakers.done if begin <= spoken.done_at <= end]
    if not counted:
        raise NotMeasured("no job was done")
    served = [0.0] * CLIENTS
    waited: list[list[float]] = [[] for _ in range(CLIENTS)]
    curve: list[tuple[float, int, float]] = []
    for spoken in counted:
        number = spoken.note["number"]
        served[number] += spoken.synthesis_s
        waited[number].append(spoken.waited_s)
        curve.append((round(spoken.done_at - begin, 3), number, served[number]))
    short = [value for values in waited[:5] for value in values]
    return {
        "jain": jain(served),
        "served_s": served,
        "least_s": min(served),
        "most_s": max(served),
        "busy": sum(served) / (end - begin),
        "jobs": len(counted),
        "short_waited_p50_s": report.percentile(short, 0.5) if short else None,
        "short_waited_p99_s": report.percentile(short, 0.99) if short else None,
        "curve": curve,
    }


def text(results: report.Results) -> str:
    """The table and the verdict."""
    rows = [["", "Jain's index", "least s", "most s", "jobs", "worker busy", "five shortest: wait p50 s", "p99 s"]]
    for key, label in LABELS.items():
        found = results[key]
        numbers = (f"{found[name]:,.2f}" for name in ("least_s", "most_s"))
        waits = (f"{found[f'short_waited_{share}_s'] or 0:,.2f}" for share in ("p50", "p99"))
        rows.append(
            [label, f"{found['jain']:.4f}", *numbers, f"{found['jobs']:,}", f"{100 * found['busy']:.0f} %", *waits]
        )
    target = report.Target("Jain's index of served seconds", results["fair"]["jain"], AIM, "", at_least=True)
    what = f"{CLIENTS} clients, jobs of {SHORTEST} to {LONGEST} characters (1 : {LONGEST // SHORTEST}), one worker"
    return f"{what}\n{report.table(rows)}\n{target.name}: {target.value:.4f}, aim {AIM}: {target.verdict}"


def plot(results: report.Results, path: Path) -> None:
    """What each client has been served by and by. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import colormaps, pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.8))
    shades = colormaps["viridis"]
    chars = lengths()
    for place, (key, label) in zip(axes, LABELS.items(), strict=True):
        for number in range(CLIENTS):
            points = [(at, total) for at, who, total in results[key]["curve"] if who == number]
            name = f"{chars[number]} characters" if number in (0, CLIENTS // 2, CLIENTS - 1) else None
            place.step(
                [0.0, *(at for at, _ in points)],
                [0.0, *(total for _, total in points)],
                where="post",
                color=shades(number / CLIENTS),
                label=name,
            )
        place.set(title=f"{label}: Jain's index {results[key]['jain']:.3f}", xlabel="s", ylabel="seconds served")
        place.grid(visible=True, alpha=0.25)
        place.legend(title="jobs of", fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(prog="fairness.py", description="who gets how much of a worker")
    parser.add_argument("--seconds", type=float, default=75.0, help="for so long")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plot")
    options = parser.parse_args(argv)
    running.end_in_time(round(options.seconds) + 120)
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}, "seconds": options.seconds}
    overhead.note(f"{CLIENTS} clients for {WARM_S + options.seconds:g} s, in two daemons at a time")
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        results |= measure(Path(folder), options.seconds)
    files = running.save(results, "fairness", options.out, plot)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
