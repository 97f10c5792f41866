"""What the journal of durable jobs costs: adds a second and their delay with one flush for many and with one for each,
and how long a start with many unfinished jobs takes.

``bench/journal.py``, with ``--folder`` on the disk that is meant. Needs no daemon: it is the journal's own thread.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import faults
import overhead
import report
from processes import memory_mib

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.storage.journal import Journal
from glmtts.daemon.storage.store import Store
from glmtts.protocol.requests import Synthesize

HERE = Path(__file__).parent
TEXT = "今天天气很好。 " * 25
#: A flush alone writes a page of SQLite's and its frame.
_FLUSH_BYTES = 4_120
_ROUNDS = 5


def row(number: int) -> inputs.JournalRow:
    """A job of 200 characters."""
    request = Synthesize(id=f"r-{number}", v=1, text=TEXT, priority="batch", durable=True, key=f"key-{number}")
    return inputs.JournalRow(
        job=f"bench-{number}",
        client="uid:1000",
        user="bench",
        request=request,
        content="0" * 64,
        format="wav",
        sample_rate=None,
        created=time.time(),
    )


def flushes(folder: Path, seconds: float) -> report.Results:
    """The disk alone: a page appended and flushed, again and again."""
    taken = []
    fd = os.open(folder / "flushes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        before = time.perf_counter()
        os.write(fd, bytes(_FLUSH_BYTES))
        os.fdatasync(fd)
        taken.append(time.perf_counter() - before)
    os.close(fd)
    return {"flush": _figures(taken, time.perf_counter() - begin)}


class Taken:
    """How long adds took in all rounds of a kind."""

    def __init__(self) -> None:
        self.adds_s: list[float] = []
        self.calls_s: list[float] = []
        self.elapsed_s = 0.0

    def figures(self) -> dict[str, Any]:
        """Adds a second, their delay, and how long the loop was held up by calls of add()."""
        found = _figures(self.adds_s, self.elapsed_s)
        if self.calls_s:
            found |= {"call_p99_us": report.percentile(self.calls_s, 0.99) * 1e6}
            found |= {"call_p999_us": report.percentile(self.calls_s, 0.999) * 1e6}
            found |= {"call_longest_us": max(self.calls_s) * 1e6}
        return found


def group(folder: Path, seconds: float, outstanding: int, taken: Taken) -> None:
    """The journal as the daemon uses it, with so many adds that wait for their answer at any time."""
    wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    journal = Journal(folder, write_end, on_warning=print)
    opened = journal.open()
    if opened.problem:
        sys.exit(opened.problem)
    asked: dict[str, float] = {}
    number, wanted = 0, outstanding
    begin = time.perf_counter()
    while wanted or asked:
        for _ in range(wanted):
            new = row(number)
            number += 1
            asked[new.job] = before = time.perf_counter()
            journal.add(effects.JournalAdd(new))
            taken.calls_s.append(time.perf_counter() - before)
        select.select([wakeup], [], [])
        os.read(wakeup, 4096)
        now = time.perf_counter()
        answers = [answer for answer in journal.collect() if isinstance(answer, inputs.JournalAdded)]
        for answer in answers:
            if answer.problem:
                sys.exit(answer.problem)
            taken.adds_s.append(now - asked.pop(answer.job))
        wanted = len(answers) if now < begin + seconds else 0
    taken.elapsed_s += time.perf_counter() - begin
    journal.close()


def single(folder: Path, seconds: float, outstanding: int, taken: Taken) -> None:
    """The same store with one transaction for each add, which all others wait for."""
    store = Store(folder)
    store.open()
    begin = time.perf_counter()
    asked = deque([begin] * outstanding)
    number = 0
    while asked:
        with store.transaction():
            store.add(row(number))
        number += 1
        now = time.perf_counter()
        taken.adds_s.append(now - asked.popleft())
        if now < begin + seconds:
            asked.append(now)
    taken.elapsed_s += time.perf_counter() - begin
    store.close(for_good=True)


def starts(folder: Path, jobs: int) -> report.Results:
    """A start with so many unfinished jobs, after a clean end, in a process of its own: time, and memory."""
    store = Store(folder)
    store.open()
    with store.transaction():
        for number in range(jobs):
            store.add(row(number))
    store.close(for_good=True)
    size = (folder / "journal.db").stat().st_size
    runs = [json.loads(subprocess.check_output([sys.executable, __file__, "--start", str(folder)])) for _ in range(5)]
    middle = sorted(runs, key=lambda run: float(run["open_s"]))[2]
    return {"start": {"jobs": jobs, "file_mib": size / (1 << 20), **middle}}


def start(folder: Path) -> None:
    """Open a journal and print what that took; the process for :func:`starts`."""
    journal = Journal(folder, os.open(os.devnull, os.O_WRONLY), on_warning=print)
    before = memory_mib(os.getpid())["rss"]
    begin = time.perf_counter()
    opened = journal.open()
    elapsed = time.perf_counter() - begin
    after = memory_mib(os.getpid())["rss"]
    print(json.dumps({"open_s": elapsed, "rows": len(opened.rows), "rss_before_mib": before, "rss_after_mib": after}))
    journal.close()


def _figures(taken: list[float], elapsed: float) -> dict[str, Any]:
    return {
        "count": len(taken),
        "per_s": len(taken) / elapsed,
        **{f"p{share}_ms": report.percentile(taken, share / 100) * 1e3 for share in (50, 99)},
        "longest_ms": max(taken) * 1e3,
    }


def text(results: report.Results) -> str:
    """The figures as a table, and the ratio."""
    names = [("flush", "a flush of one page, by itself")]
    names += [(f"single_{n}", f"one flush for each add, {n} at a time") for n in results["outstanding"]]
    names += [(f"group_{n}", f"group commit, {n} at a time") for n in results["outstanding"]]
    rows = [["", "per s", "p50 ms", "p99 ms", "longest ms"]]
    for key, label in names:
        found = results[key]
        rows.append([label, *(f"{found[name]:,.2f}" for name in ("per_s", "p50_ms", "p99_ms", "longest_ms"))])
    lines = []
    for n in results["outstanding"]:
        one, many = results[f"single_{n}"], results[f"group_{n}"]
        lines.append(
            f"{n} at a time: {many['per_s'] / one['per_s']:.1f} times as many adds a second, the p99 of the delay "
            f"{one['p99_ms'] / many['p99_ms']:.1f} times shorter; add() itself: p99 {many['call_p99_us']:.0f} us, "
            f"p99.9 {many['call_p999_us']:.0f} us, longest {many['call_longest_us']:.0f} us"
        )
    found = results["start"]
    lines.append(
        f"start with {found['rows']:,} unfinished jobs ({found['file_mib']:.1f} MiB): {found['open_s'] * 1e3:.0f} ms; "
        "memory of a process with the journal alone: "
        f"RSS {found['rss_before_mib']:.1f} MiB before and {found['rss_after_mib']:.1f} MiB with all of them in memory"
    )
    return "\n".join([report.table(rows), *lines])


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="journal.py", description="what the journal of durable jobs costs")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind, over all rounds")
    parser.add_argument("--outstanding", default="1,16,64,256", help="adds at a time, with commas between")
    parser.add_argument("--jobs", type=int, default=10_000, help="unfinished jobs at a start")
    parser.add_argument("--folder", type=Path, help="where to write: the disk that is measured")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.start:
        start(options.start)
        return
    outstanding = [int(number) for number in options.outstanding.split(",")]
    results: report.Results = {"machine": overhead.machine(), "outstanding": outstanding}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-", dir=options.folder) as name:
        folder = Path(name)
        results |= flushes(folder, options.seconds)
        taken = {f"{kind.__name__}_{number}": Taken() for kind in (single, group) for number in outstanding}
        # All in turn and again, because the speed of a disk drifts.
        for turn in range(_ROUNDS):
            for number in outstanding:
                overhead.note(f"round {turn + 1} of {_ROUNDS}, {number} adds at a time")
                for kind in (single, group):
                    key = f"{kind.__name__}_{number}"
                    kind(folder / f"{key}-{turn}", options.seconds / _ROUNDS, number, taken[key])
        results |= {key: found.figures() for key, found in taken.items()}
        results |= starts(folder / "start", options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"journal-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(results) + "\n", encoding="utf-8")
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{file}")


if __name__ == "__main__":
    main()
