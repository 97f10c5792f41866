"""How many durable jobs a second a daemon accepts, and how long each waits for its place on the disk.

Through a real daemon whose queue is paused, from several connections; beside it, in turn, the same jobs without the
journal. ``--folder`` names the disk. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faults
import msgpack
import overhead
import report
import running
import zmq
from daemon_under_test import Daemon
from load import TIMEOUT_MS, Template, call, refuse_error
from processes import NotMeasured, cpu_s

HERE = Path(__file__).parent
CONNECTIONS = 8
#: Jobs that each connection waits for at a time.
EACH = (1, 32)
TEXT = "今天天气很好。 " * 25
LABELS = {"durable": "durable", "memory": "not durable"}


class Accepted:
    """What rounds of one kind have found."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self.rates: list[float] = []
        self.cpu_us: list[float] = []

    def figures(self) -> dict[str, Any]:
        """Accepted jobs a second, and the delay of each."""
        return {
            "count": len(self.delays_s),
            "per_s": statistics.median(self.rates),
            "per_s_rounds": [round(rate) for rate in self.rates],
            "cpu_us": statistics.median(self.cpu_us),
            "longest_ms": max(self.delays_s) * 1e3,
            **{f"p{share}_ms": report.percentile(self.delays_s, share / 100) * 1e3 for share in (50, 99)},
        }


class Submitter:
    """Several connections that always have the same number of jobs waiting for ``accepted``."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.daemon = Daemon(stack, folder, "daemon-durable")
        self.daemon.first_job({"op": "synthesize", "text": TEXT})
        call(self.daemon.operator(), {"op": "pause", "id": "pause"})
        self.sockets = [self.daemon.client() for _ in range(CONNECTIONS)]
        self._poller = zmq.Poller()
        for socket in self.sockets:
            self._poller.register(socket, zmq.POLLIN)
        common = {"op": "synthesize", "text": TEXT, "priority": "batch"}
        self._requests = {
            "durable": Template({**common, "durable": True}),
            "memory": Template({**common, "durable": False}),
        }
        self._number = 0

    def round(self, kind: str, seconds: float, each: int, found: Accepted) -> None:
        """Submit for so long."""
        asked: dict[str, float] = {}
        template, clock = self._requests[kind], time.perf_counter

        def submit(socket: zmq.Socket[bytes]) -> None:
            self._number += 1
            asked[f"{self._number:08d}"] = clock()
            socket.send(template(self._number))

        before, begin = cpu_s([self.daemon.child.pid]), clock()
        for socket in self.sockets * each:
            submit(socket)
        accepted = 0
        while asked:
            ready = self._poller.poll(TIMEOUT_MS)
            if not ready:
                raise NotMeasured(f"{len(asked)} jobs were not accepted within {TIMEOUT_MS / 1000:g} s")
            now = clock()
            for socket, _ in ready:
                event = refuse_error(msgpack.unpackb(socket.recv()))
                if event["event"] != "accepted":
                    continue
                found.delays_s.append(now - asked.pop(event["id"]))
                accepted += 1
                if now < begin + seconds:
                    submit(socket)
        found.rates.append(accepted / (clock() - begin))
        found.cpu_us.append((cpu_s([self.daemon.child.pid]) - before) * 1e6 / accepted)


def measure(folder: Path, seconds: float, rounds: int) -> report.Results:
    """Rounds of every kind in turn, each turn in a daemon of its own: a queue that grows is another measurement."""
    found = {f"{kind}_{each}": Accepted() for each in EACH for kind in LABELS}
    for number in range(rounds):
        overhead.note(f"round {number + 1} of {rounds}")
        for each in EACH:
            for kind in LABELS:
                with ExitStack() as stack:
                    Submitter(stack, folder).round(kind, seconds, each, found[f"{kind}_{each}"])
    return {key: accepted.figures() for key, accepted in found.items()}


def text(results: report.Results) -> str:
    """The table."""
    rows = [["", "accepted/s", "p50 ms", "p99 ms", "longest ms", "CPU us a job"]]
    for each in EACH:
        for kind, label in LABELS.items():
            found = results[f"{kind}_{each}"]
            figures = (f"{found[name]:,.1f}" for name in ("p50_ms", "p99_ms", "longest_ms"))
            name = f"{label}, {CONNECTIONS * each} at a time"
            rows.append([name, f"{found['per_s']:,.0f}", *figures, f"{found['cpu_us']:,.0f}"])
    return report.table(rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="durable.py", description="how fast a daemon accepts durable jobs")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each round of each kind")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind")
    parser.add_argument("--folder", type=Path, help="where to write: the disk that is measured")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    options = parser.parse_args(argv)
    running.end_in_time(600)
    gc.disable()  # a collection in the load generator would show as a slow job
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}}
    if options.folder:
        tempfile.tempdir = str(options.folder)
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        results |= measure(Path(folder), options.seconds, options.rounds)
    files = running.save(results, "durable", options.out)
    print(faults.heading(results["machine"]))
    print(f"{text(results)}\n\n{files}")


if __name__ == "__main__":
    main()
