"""What an urgent sentence waits for while a book is read on the only worker, with preemption and without, and what that
costs the book.

Two engines. The fault engine takes simulated time: an hour's book shrunk to a minute, by 1 : 60 (chapters of 10 s in
segments of 0.2 s, which stands for sentences of 12 s; visitors of 0.1 s, for 6 s). eSpeak NG speaks real text in real
time: chapters of 5,000 characters, a Mandarin one and an English one in turn. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import random
import statistics
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
from speakers import Speakers, Spoken, Together, config

HERE = Path(__file__).parent
#: An answer takes longer than this only when something is broken.
_TIMEOUT_S = 120.0
_MANDARIN = "北风与太阳正在争论谁比较有本事。他们正好看到有个人走过，那个人穿着一件斗篷。"
_ENGLISH = "The North Wind and the Sun were disputing which was the stronger, when a traveller came along. "
LABELS = {
    "preempt": "preempt = true",
    "wait": "preempt = false",
    "alone": "the book alone",
}
COLOURS = {"preempt": "#2ca02c", "wait": "#d62728", "alone": "#7f7f7f"}


class Book:
    """Chapters for one engine, and those who come in between: requests, and seconds between two visitors."""

    def __init__(self, engine: str, chapters: int) -> None:
        self.engine = engine
        common = {"priority": "batch", "durable": False, "events": "final"}
        if engine == "fault":
            options = {"seconds": 10.0, "rtf": 1.0, "segments": 50}
            self.chapters = [{"text": f"chapter {n}", "options": options, **common} for n in range(chapters)]
            self.visit: dict[str, Any] = {"text": "visitor", "options": {"seconds": 0.1, "rtf": 1.0}}
            self.every_s = 1.5
        else:
            texts = [(sentence * (5_000 // len(sentence) + 1))[:5_000] for sentence in (_MANDARIN, _ENGLISH)]
            self.chapters = [{"text": texts[n % 2], "format": "wav", **common} for n in range(chapters)]
            self.visit = {"text": _MANDARIN}
            self.every_s = 0.5


def read(book: Book, folder: Path, kinds: list[str], seed: int) -> dict[str, dict[str, Any]]:
    """Read the book in one daemon for each kind at the same time, with the same visitors, and say how that went."""
    with ExitStack() as stack:
        daemons = {}
        for kind in kinds:
            text = config(book.engine, preempt=kind != "wait", max_waiting=1_000)
            daemons[kind] = Speakers(stack, folder, f"{book.engine}-{kind}", text)
            for _ in range(3):
                daemons[kind].ask("visitor", book.visit)
                _until_done(daemons[kind])
            daemons[kind].done.clear()
        together, arrivals = Together(daemons.values()), random.Random(seed)
        begin = time.perf_counter()
        for speakers in daemons.values():
            for chapter in book.chapters:
                speakers.ask("author", chapter)
        next_at = begin + arrivals.expovariate(1 / book.every_s)
        reading = set(kinds)
        while reading:
            together.wait(min(next_at, time.perf_counter() + 0.5))
            now = time.perf_counter()
            if now > begin + len(book.chapters) * _TIMEOUT_S:
                raise NotMeasured(f"the book was not read within {now - begin:.0f} s")
            # No visitor comes after the book has been read: a later one would meet no book.
            reading = {kind for kind in reading if _reads(daemons[kind])}
            if now >= next_at:
                next_at = now + arrivals.expovariate(1 / book.every_s)
                for kind in reading - {"alone"}:
                    daemons[kind].ask("visitor", book.visit)
        for speakers in daemons.values():
            _until_done(speakers)
        return {kind: _told(speakers, begin) for kind, speakers in daemons.items()}


def _reads(speakers: Speakers) -> bool:
    return any(spoken.client == "author" for spoken in speakers.outstanding.values())


def _until_done(speakers: Speakers) -> None:
    together, until = Together([speakers]), time.perf_counter() + _TIMEOUT_S
    while speakers.outstanding:
        together.wait(until)
        if time.perf_counter() > until:
            raise NotMeasured(f"{len(speakers.outstanding)} jobs did not end within {_TIMEOUT_S:g} s")


def _told(speakers: Speakers, begin: float) -> dict[str, Any]:
    def of(client: str) -> list[Spoken]:
        return [spoken for spoken in speakers.done if spoken.client == client]

    visitors, chapters = of("visitor"), of("author")
    end = max(spoken.done_at for spoken in chapters)
    return {
        "waited_s": [round(spoken.waited_s, 6) for spoken in visitors],
        "answered_s": [round(spoken.done_at - spoken.asked_at, 6) for spoken in visitors],
        "book_s": end - begin,
        # While the book was read: the visitors who were still there at its end were answered after it.
        "visits_s": sum(spoken.synthesis_s for spoken in visitors if spoken.done_at <= end),
    }


def measure(book: Book, folder: Path, rounds: int) -> dict[str, Any]:
    """The fault engine's daemons read side by side, as they mostly sleep; eSpeak NG's one after the other."""
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in LABELS}
    for number in range(rounds):
        groups = [list(LABELS)] if book.engine == "fault" else [[kind] for kind in LABELS]
        for kinds in groups:
            overhead.note(f"{book.engine}, round {number + 1} of {rounds}: {', '.join(LABELS[kind] for kind in kinds)}")
            for kind, found in read(book, folder, kinds, number).items():
                told[kind].append(found)
    alone_s = [found["book_s"] for found in told["alone"]]
    results: dict[str, Any] = {}
    for kind, rounds_of in told.items():
        waited = [value for found in rounds_of for value in found["waited_s"]]
        answered = [value for found in rounds_of for value in found["answered_s"]]
        results[kind] = {
            "visitors": len(waited),
            "waited_s": waited,
            "answered_s": answered,
            "book_s": [found["book_s"] for found in rounds_of],
            "visits_s": [found["visits_s"] for found in rounds_of],
        }
        for name, values in (("waited", waited), ("answered", answered)):
            if values:
                results[kind] |= {f"{name}_p{share}_s": report.percentile(values, share / 100) for share in (50, 99)}
        if kind != "alone":
            extra = [
                (found["book_s"] - found["visits_s"]) / alone - 1
                for found, alone in zip(rounds_of, alone_s, strict=True)
            ]
            results[kind]["cost"] = statistics.median(extra)
            results[kind]["costs"] = extra
    return results


def text(results: report.Results) -> str:
    """One table for each engine."""
    parts = []
    for engine in ("fault", "espeak"):
        if engine not in results:
            continue
        heads = [engine, "visitors", "wait p50 s", "p99 s", "answer p50 s", "p99 s", "book s", "visits s", "cost"]
        rows = [heads]
        for kind, label in LABELS.items():
            found = results[engine][kind]
            figures = ("waited_p50_s", "waited_p99_s", "answered_p50_s", "answered_p99_s")
            rows.append(
                [
                    label,
                    f"{found['visitors']}",
                    *(f"{found[name]:,.3f}" if name in found else "-" for name in figures),
                    f"{statistics.median(found['book_s']):,.2f}",
                    f"{statistics.median(found['visits_s']):,.2f}",
                    f"{100 * found['cost']:+.1f} %" if "cost" in found else "-",
                ]
            )
        parts.append(report.table(rows))
    parts.append(
        "cost: by how much longer the book takes than alone, without what was spoken for the visitors.\n"
        "Answer: from the request to the audio, at the client."
    )
    return "\n\n".join(parts)


def plot(results: report.Results, path: Path) -> None:
    """The visitors' waiting times. Raises ImportError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    engines = [engine for engine in ("fault", "espeak") if engine in results]
    figure, axes = pyplot.subplots(1, len(engines), figsize=(6.5 * len(engines), 4.6), squeeze=False)
    titles = {
        "fault": "Fault engine: chapters of 10 s in segments of 0.2 s",
        "espeak": "eSpeak NG: chapters of 5,000 characters",
    }
    for place, engine in zip(axes[0], engines, strict=True):
        for kind in ("preempt", "wait"):
            waits = sorted(max(value, 1e-4) for value in results[engine][kind]["waited_s"])
            share = [100 * (rank + 1) / len(waits) for rank in range(len(waits))]
            label = f"{LABELS[kind]}: p50 {results[engine][kind]['waited_p50_s']:.3f} s"
            place.step(waits, share, where="post", label=label, color=COLOURS[kind])
        place.set(
            xscale="log",
            xlabel="s from the request to its start",
            ylabel="% of visitors",
            title=titles[engine],
            ylim=(0, 125),
        )
        place.grid(visible=True, which="both", alpha=0.25)
        place.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write JSON and plot."""
    parser = argparse.ArgumentParser(
        prog="preemption.py", description="what an urgent sentence waits for beside a book"
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each book is read")
    parser.add_argument(
        "--chapters", type=int, default=6, help="chapters of the fault engine's book; eSpeak NG's has 2"
    )
    parser.add_argument("--only", default="fault,espeak", help="engines, with commas between")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON and plot")
    options = parser.parse_args(argv)
    running.end_in_time(900)
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        for engine in options.only.split(","):
            results[engine] = measure(
                Book(engine, options.chapters if engine == "fault" else 2), Path(folder), options.rounds
            )
    files = running.save(results, "preemption", options.out, plot)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
