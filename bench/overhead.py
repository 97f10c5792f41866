"""What the daemon costs: measured beside what ZeroMQ and Python allow at best, and beside a peer.

All subjects stay up, and every round visits each of them in turn, so that whatever drifts on the machine hits all
alike. ``make bench`` runs it; docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import report
import zmq
from daemon_under_test import Daemon, kills, queue_memory, rest, starts
from processes import NotMeasured, memory_mib
from subjects import Mosec, Subject, daemon_subject, limit, mosec_kill_s, mosec_subject, synthesize

AUDIO_BYTES = 9_600


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="overhead.py", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look in half a minute, not a result")
    parser.add_argument("--skip-mosec", action="store_true", help="leave the peer out")
    parser.add_argument(
        "--skip-daemon", action="store_true", help="leave the daemon out: the limits and the peer alone"
    )
    parser.add_argument(
        "--beside", metavar="PYTHON", default="", help="also measure the version that this interpreter imports"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for JSON and plot")
    parser.add_argument("--limit-s", type=int, default=900, help="give up after that many seconds")
    return parser.parse_args(argv)


class Bench:
    """One run. Each part that fails is named with its reason, and the others go on."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.stack = stack
        self.quick: bool = options.quick
        self.request = synthesize(AUDIO_BYTES)
        self.subjects: dict[str, Subject] = {}
        self.daemon: Daemon | None = None
        self.mosec: Mosec | None = None
        self.results: report.Results = {
            "machine": machine(),
            "settings": {"audio_bytes": AUDIO_BYTES, "quick": self.quick, "connections": 8, "outstanding": 64},
            "not_measured": {},
        }

    def run(self) -> report.Results:
        """Measure everything."""
        self.part("proxy", self.start_proxy)
        self.part("broker", self.start_broker)
        if not self.options.skip_daemon:
            self.part("starts", self.measure_starts)
            self.part("daemon", self.start_daemon)
            if self.options.beside:
                self.part("beside", self.start_other_version)
        if not self.options.skip_mosec:
            self.part("mosec", self.start_mosec)
        # The daemon's idle time is measured while the others sleep, and before anything has loaded it.
        if self.daemon:
            self.part("rest", self.measure_rest)
        self.rounds()
        self.results["subjects"] = {
            key: report.summary(self.subjects[key]) for key in report.LABELS if key in self.subjects
        }
        if self.daemon:
            self.part("after_rounds", self.measure_after_rounds)
            self.part("queue", self.measure_queue)
            self.part("kills", self.measure_kills)
        if self.mosec:
            self.part("mosec_kills", self.measure_mosec_kills)
        self.results["targets"] = [
            {"name": t.name, "measured": t.value, "bound": t.bound, "unit": t.unit, "verdict": t.verdict}
            for t in report.targets(self.results)
        ]
        return self.results

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """Run a part; what goes wrong with it becomes its reason."""
        note(name)
        try:
            measure()
        except (NotMeasured, OSError, zmq.ZMQError, KeyError, ValueError) as error:
            self.results["not_measured"][name] = _reason(error)

    def start_proxy(self) -> None:
        self.subjects["proxy"] = limit(self.stack, "proxy", "proxy.py", self.folder, AUDIO_BYTES)

    def start_broker(self) -> None:
        self.subjects["broker"] = limit(self.stack, "broker", "broker.py", self.folder, AUDIO_BYTES)

    def start_daemon(self) -> None:
        daemon = Daemon(self.stack, self.folder)
        daemon.first_job(self.request)
        self.daemon = daemon

    def start_other_version(self) -> None:
        # Without symbolic links resolved: they are what makes it the interpreter of an environment.
        daemon = Daemon(self.stack, self.folder, "other-version", python=os.path.abspath(self.options.beside))  # noqa: PTH100
        daemon.first_job(self.request)
        for kind in ("all", "final"):
            subject = daemon_subject(self.stack, f"before_{kind}", daemon, {**self.request, "events": kind})
            self.subjects[f"before_{kind}"] = subject

    def start_mosec(self) -> None:
        subject, self.mosec = mosec_subject(self.stack, "mosec", self.folder, AUDIO_BYTES)
        self.subjects["mosec"] = subject
        pss = sum(memory_mib(pid)["pss"] for pid in self.mosec.broker_pids())
        self.results["mosec"] = {"ready_s": self.mosec.ready_s, "pss": pss}

    def measure_starts(self) -> None:
        self.results["starts"] = starts(self.folder, self.request, 2 if self.quick else 7)

    def measure_rest(self) -> None:
        assert self.daemon
        self.results["rest"] = rest(self.daemon, 2.0 if self.quick else 5.0)
        for kind in ("all", "final"):
            request = {**self.request, "events": kind}
            self.subjects[kind] = daemon_subject(self.stack, kind, self.daemon, request)

    def measure_after_rounds(self) -> None:
        assert self.daemon
        self.results["after_rounds"] = memory_mib(self.daemon.child.pid)

    def measure_queue(self) -> None:
        self.results["queue"] = queue_memory(self.folder, self.request, 10_000)

    def measure_kills(self) -> None:
        self.results["kills"] = kills(self.folder, self.request, 5 if self.quick else 20)

    def measure_mosec_kills(self) -> None:
        times = [mosec_kill_s(self.folder, AUDIO_BYTES) for _ in range(1 if self.quick else 3)]
        self.results["mosec_kills"] = {"times": len(times), "answer_s": statistics.median(times), "answers_s": times}

    def rounds(self) -> None:
        """Interleaved rounds: every subject in turn, first jobs one by one, then many at once."""
        rounds, jobs, seconds = (3, 100, 0.5) if self.quick else (10, 200, 1.0)
        self.results["settings"] |= {"rounds": rounds, "jobs_per_round": jobs, "seconds_per_round": seconds}
        for number in range(rounds):
            note(f"round {number + 1} of {rounds}")
            for measure in ("sequential", "outstanding"):
                for key in report.LABELS:
                    if key in self.subjects and not self.subjects[key].failure:
                        self.one_round(key, self.subjects[key], measure, jobs, seconds)

    def one_round(self, key: str, subject: Subject, measure: str, jobs: int, seconds: float) -> None:
        """One subject's turn; a subject that fails once is left out from then on."""
        try:
            if measure == "sequential":
                subject.sequential_round(jobs)
            else:
                subject.outstanding_round(seconds, each=8)
        except (NotMeasured, OSError, zmq.ZMQError, ValueError) as error:
            subject.failure = self.results["not_measured"][key] = _reason(error)


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = {}
    for name in ("glmtts-supervisor", "pyzmq", "msgspec", "msgpack", "mosec"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        **versions,
    }


def note(text: str) -> None:
    """Tell the person who waits what is going on."""
    print(f"  {text} ...", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, NotMeasured) else f"{type(error).__name__}: {error}"


def _give_up(number: int, _frame: FrameType | None) -> None:
    # Raised in the main thread, so that every ExitStack ends its processes.
    what = "the time limit was reached" if number == signal.SIGALRM else f"ended by {signal.Signals(number).name}"
    sys.exit(f"overhead.py: {what}; what was started has been ended")


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON and the plot."""
    options = parse(argv)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _give_up)
    signal.alarm(options.limit_s)
    gc.disable()  # a collection in the load generator would show as a slow job
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder, ExitStack() as stack:
        results = Bench(options, stack, Path(folder)).run()
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"overhead-{time.strftime('%Y%m%d-%H%M%S')}"
    stem.with_suffix(".json").write_text(json.dumps(results) + "\n")
    about = results["machine"]
    print(f"{about['cpu']}, {about['cpus']} CPUs; Python {about['python']}, libzmq {about['libzmq']}, {about['when']}")
    print(f"load average before: {about['load_before']:.2f}")
    if about["load_before"] > 0.3 * about["cpus"]:
        print("OTHERS USE THIS MACHINE: the numbers are no result. Run it again when the load average is near zero.")
    print()
    print(report.text(results))
    print(f"\n{stem}.json", end="")
    try:
        report.plot(results, stem.with_suffix(".png"))
        print(f", {stem}.png")
    except ImportError:
        print("; no plot: matplotlib is not installed (pip install 'glmtts-supervisor[bench]')")


if __name__ == "__main__":
    main()
