"""What a worker's death costs: until its client knows, until another worker has done the job, until a hang is noticed,
and what a thousand deaths leave behind in the supervisor.

Real daemons with the fault engine, real signals. ``make bench`` runs it after overhead.py; single parts:
``bench/faults.py --only answers,hangs``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import faults_report
import msgpack
import overhead
import report
import zmq
from faults_report import GPUS, WORKERS
from faulty_daemon import FaultyDaemon, holds
from load import TIMEOUT_MS, Socket, ask, call, next_event, refuse_error
from processes import NotMeasured, cpu_s
from subjects import mosec_kill_s, synthesize

HERE = Path(__file__).parent
AUDIO_BYTES = 9_600
#: The first cycles fill caches and arenas: growth is counted from here on.
WARM_CYCLES = 200
SAMPLE_EVERY = 50


def figures(seconds: list[float]) -> dict[str, Any]:
    """Median, 99th percentile and longest."""
    return {
        "times": len(seconds),
        "median_s": statistics.median(seconds),
        "p99_s": report.percentile(seconds, 0.99),
        "longest_s": max(seconds),
        "all_s": [round(value, 6) for value in seconds],
    }


def answers(folder: Path, times: int) -> report.Results:
    """From SIGKILL of a worker in mid-stream to its client's error."""
    request = synthesize(AUDIO_BYTES, stream=True)
    request["options"] = {"fault": "sleep", "seconds": 60, "after_segments": 1}
    found = []
    with ExitStack() as stack:
        daemon = FaultyDaemon(stack, folder, "daemon-answers", workers=2)
        client = daemon.client()
        for number in range(times):
            pids = daemon.pids()
            # Every time another text: a job that has killed two workers is not tried again.
            ask(client, {**request, "id": f"{number}", "text": f"killed {number}"})
            worker = until(client, "started")["worker"]
            # It comes after the segment's audio: the job can't be started again unnoticed any more.
            until(client, "progress")
            begin = time.perf_counter()
            os.kill(pids[worker], signal.SIGKILL)
            answer = next_event(client)
            found.append(time.perf_counter() - begin)
            if answer.get("code") != "worker_crashed":
                raise NotMeasured(f"the job of a killed worker was answered {answer}")
    return {"answers": figures(found)}


def retries(folder: Path, times: int) -> report.Results:
    """From SIGKILL of a worker to its job's start, and end, on another one that is READY."""
    starts, ends = [], []
    with ExitStack() as stack:
        daemon = FaultyDaemon(stack, folder, "daemon-retries", workers=2, max_attempts=2)
        client = daemon.client()
        for number in range(times):
            pids = daemon.pids()
            # Both stand still, so that a job of a millisecond is sure to be interrupted.
            for pid in pids.values():
                os.kill(pid, signal.SIGSTOP)
            ask(client, {**synthesize(AUDIO_BYTES), "id": f"{number}", "text": f"retried {number}"})
            victim = pids.pop(until(client, "started")["worker"])
            for pid in pids.values():
                os.kill(pid, signal.SIGCONT)
            begin = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            until(client, "started")
            starts.append(time.perf_counter() - begin)
            if until(client, "done")["attempts"] != 2:
                raise NotMeasured("a job was done without its second attempt")
            ends.append(time.perf_counter() - begin)
    return {"retry_started": figures(starts), "retry_done": figures(ends)}


def hangs(folder: Path, times: int) -> report.Results:
    """From the last sign of life of a hanging job to its client's error: one that sleeps, one that holds the GIL."""
    found: report.Results = {}
    with ExitStack() as stack:
        daemon = FaultyDaemon(stack, folder, "daemon-hangs", workers=4)
        for fault in ("hang", "hang_gil"):
            clients = [daemon.client() for _ in range(daemon.workers)]
            noticed: list[float] = []
            while len(noticed) < times:
                daemon.pids()
                noticed += hang_together(clients, fault, len(noticed))
            found[fault] = figures(noticed)
    return found


def hang_together(clients: list[Socket], fault: str, number: int) -> list[float]:
    """One hang for each client at the same time; how long each took to be noticed."""
    poller = zmq.Poller()
    last: dict[Socket, float] = {}
    request = synthesize(AUDIO_BYTES, stream=True, id="hangs")
    request["options"] = {"fault": fault, "after_segments": 1}
    for place, client in enumerate(clients):
        poller.register(client, zmq.POLLIN)
        ask(client, {**request, "text": f"{fault} {number + place}"})
    noticed: list[float] = []
    while len(noticed) < len(clients):
        ready = poller.poll(TIMEOUT_MS)
        if not ready:
            raise NotMeasured(f"{fault}: not noticed within {TIMEOUT_MS / 1000:g} s")
        now = time.perf_counter()
        for client, _ in ready:
            event = next_event(client)
            if event["event"] != "error":
                last[client] = now
            elif event["code"] == "hung":
                noticed.append(now - last[client])
            else:
                refuse_error(event)
    return noticed


def cycles(folder: Path, times: int) -> report.Results:
    """Kill each worker as soon as it is READY, ``times`` times, and look at what that leaves in the supervisor."""
    with ExitStack() as stack:
        daemon = FaultyDaemon(stack, folder, "daemon-cycles", workers=4)
        pid = daemon.child.pid
        subscriber = daemon.watch("worker.ready")
        client = daemon.client()
        call(client, {**synthesize(AUDIO_BYTES), "id": "before"})
        daemon.pids()
        before = holds(pid)
        begin = time.perf_counter()
        samples: list[dict[str, float]] = []
        # Killed by hand as long as their successors are not heard of.
        for victim in daemon.pids().values():
            os.kill(victim, signal.SIGKILL)
        dead = daemon.workers
        for victim in ready_pids(subscriber):
            if dead % SAMPLE_EVERY == 0:
                samples.append({"crashes": dead} | holds(pid))
            if dead >= times:
                break
            os.kill(victim, signal.SIGKILL)
            dead += 1
        seconds = time.perf_counter() - begin
        daemon.pids()
        call(client, {**synthesize(AUDIO_BYTES), "id": "after"})
        after = holds(pid)
    warm = [sample for sample in samples if sample["crashes"] >= WARM_CYCLES]
    slope = None
    if len(warm) > 5:
        slope = statistics.linear_regression([s["crashes"] for s in warm], [s["rss_mib"] for s in warm]).slope * 1000
    found = {
        "times": dead,
        "seconds": seconds,
        "samples": samples,
        "grows_mib_per_1000": slope,
        "before": before,
        "after": after,
        "grown": {key: after[key] - before[key] for key in before},
    }
    return {"cycles": found}


def ready_pids(subscriber: zmq.Socket[bytes]) -> Iterator[int]:
    """The processes of workers as they get READY."""
    while True:
        try:
            _, header = subscriber.recv_multipart()
        except zmq.Again:
            raise NotMeasured(f"no worker got READY for {TIMEOUT_MS / 1000:g} s") from None
        yield msgpack.unpackb(header)["pid"]


def until(client: Socket, name: str) -> dict[str, Any]:
    """The next event of that name. Raises NotMeasured when the job ends before it."""
    while (event := refuse_error(next_event(client)))["event"] != name:
        pass
    return event


def sampling(folder: Path, seconds: int) -> report.Results:
    """Share of a core that looking at GPUS GPUs and WORKERS workers takes: the sampler alone, and the idle daemon."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from fake_gpu.fake_gpu import CannotBuildError, FakeGpus

    with ExitStack() as stack:
        try:
            gpus = stack.enter_context(FakeGpus(*[24_576] * GPUS))
        except CannotBuildError as error:
            raise NotMeasured(str(error)) from None
        daemon = FaultyDaemon(
            stack,
            folder,
            "daemon-sampling",
            workers=WORKERS,
            gpus=f'gpus = "all"\nper_gpu = {WORKERS // GPUS}',
            environment=gpus.environment(),
        )
        pids = daemon.pids().values()
        for number, pid in enumerate(pids):
            gpus.take(number % GPUS, 8_000, pid=pid)
        begin, before = time.perf_counter(), cpu_s([daemon.child.pid])
        time.sleep(seconds)
        idle = 100 * (cpu_s([daemon.child.pid]) - before) / (time.perf_counter() - begin)
        argv = [sys.executable, str(HERE / "sampler_cost.py"), str(seconds), *map(str, pids)]
        found = subprocess.run(argv, env=os.environ | gpus.environment(), capture_output=True, text=True, check=False)
    if found.returncode:
        raise NotMeasured(f"sampler_cost.py ended with status {found.returncode}: {found.stderr[-1000:]}")
    alone = json.loads(found.stdout)
    if (alone.get("gpus"), alone.get("processes"), alone.get("listed")) != (GPUS, WORKERS, WORKERS):
        raise NotMeasured(f"the sampler did not see {GPUS} GPUs and {WORKERS} workers: {alone}")
    return {"sampling": alone | {"idle_daemon_percent": idle}}


def mosec(folder: Path, times: int) -> report.Results:
    """From SIGKILL of a peer's only worker in mid-job until its client hears of it."""
    return {"mosec": figures([mosec_kill_s(folder, AUDIO_BYTES) for _ in range(times)])}


#: Each gives its results by name; how often it is measured, and how often for a quick look.
PARTS: dict[str, tuple[Callable[[Path, int], report.Results], int, int]] = {
    "answers": (answers, 100, 10),
    "retries": (retries, 100, 10),
    "hangs": (hangs, 20, 4),
    "cycles": (cycles, 1_000, 100),
    "sampling": (sampling, 20, 5),
    "mosec": (mosec, 3, 1),
}


def measure(part: str, folder: Path, times: int, results: report.Results) -> None:
    """Run one part; what goes wrong with it becomes its reason."""
    overhead.note(f"{part}, {times} times")
    try:
        results |= PARTS[part][0](folder, times)
    except (NotMeasured, OSError, zmq.ZMQError, KeyError, ValueError) as error:
        results["not_measured"][part] = str(error) if isinstance(error, NotMeasured) else f"{error!r}"


def heading(about: dict[str, Any]) -> str:
    """What the numbers hold for, and whether they hold at all."""
    lines = [
        f"{about['cpu']}, {about['cpus']} CPUs; Python {about['python']}, libzmq {about['libzmq']}, {about['when']}"
    ]
    lines.append(f"load average before: {about['load_before']:.2f}")
    if about["load_before"] > 0.3 * about["cpus"]:
        lines.append("OTHERS USE THIS MACHINE: the numbers are no result. Run it again when it is near zero.")
    return "\n".join([*lines, ""])


def _give_up(number: int, _frame: FrameType | None) -> None:
    # Raised in the main thread, so that every ExitStack ends its processes.
    sys.exit(f"faults.py: ended by {signal.Signals(number).name}; what was started has been ended")


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="faults.py", description="what a worker's death costs")
    parser.add_argument("--quick", action="store_true", help="a look in under a minute, not a result")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between: {', '.join(PARTS)}")
    parser.add_argument("--cycles", type=int, default=0, help="the number of crashes in a row instead of 1,000")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON")
    parser.add_argument("--limit-s", type=int, default=600, help="give up after that many seconds")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _give_up)
    signal.alarm(options.limit_s)
    results: report.Results = {"machine": overhead.machine(), "not_measured": {}}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder:
        for part in chosen:
            times = options.cycles if part == "cycles" and options.cycles else PARTS[part][1 + options.quick]
            measure(part, Path(folder), times, results)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"faults-{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.write_text(json.dumps(results) + "\n", encoding="utf-8")
    print(heading(results["machine"]))
    print(f"{faults_report.text(results)}\n\n{file}")


if __name__ == "__main__":
    main()
