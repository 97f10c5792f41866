"""What the metrics cost: a job in the core, a scrape, and other requests during a scrape; what an ended job leaves.

The core's part is processor time, and needs no daemon. ``make bench`` runs it; docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from daemon_under_test import CONFIG, Daemon
from load import call
from processes import cpu_s, memory_mib

from glmtts.daemon.core import effects, inputs
from glmtts.daemon.core.context import Context
from glmtts.daemon.core.counters import Counters
from glmtts.daemon.core.jobs.job import Job
from glmtts.daemon.core.jobs.job_table import MAX_ENDED
from glmtts.daemon.core.machine import Machine
from glmtts.daemon.core.metric_types import Histogram
from glmtts.daemon.core.settings import EngineSettings, LimitsSettings, Settings, WorkersSettings
from glmtts.daemon.core.state import Installation
from glmtts.daemon.metrics.exposition import written
from glmtts.daemon.metrics.metrics import LAG_S
from glmtts.protocol import events, requests
from glmtts.protocol import worker as wire

_PORT = 19_464
_METRICS = f'{CONFIG}\n[metrics]\nlisten = "127.0.0.1:{_PORT}"\n'
_MEMORY = wire.Memory(rss=100 << 20)
#: Seconds since 1970 at which the core's clock was zero.
_EPOCH = 1.7e9
_ALICE, _TO = inputs.Client("uid:1001", "alice"), inputs.ReplyTo(1)
_READY = wire.Ready(
    engine="fault", engine_version="1", sample_rates=[24_000], voices=[events.Voice(name="tone")], default_voice="tone",
    clones_voices=True, slots=1, load_s=0.1, warmup_s=0.1, memory=_MEMORY,
)  # fmt: skip


def main() -> None:
    """Measure and print; the numbers go to bench/results as JSON."""
    parser = argparse.ArgumentParser(prog="metrics.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a look in half a minute, not a result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the JSON")
    options = parser.parse_args()
    results: dict[str, Any] = {"core": core()}
    with tempfile.TemporaryDirectory(prefix="glmtts-bench-") as folder, ExitStack() as stack:
        results["scrapes"] = scrapes(stack, Path(folder), 3.0 if options.quick else 10.0)
    for line in text(results):
        print(line)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"metrics-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(results) + "\n")


# --- in the core


def core() -> dict[str, Any]:
    """Microseconds of processor time, the least of many rounds."""
    machine = _machine()
    job_us = min(_jobs(machine, 300) for _ in range(60))
    families = machine.measure()
    counters, context, lag = Counters(), Context(Settings(), 0.0, 0.0, 1), Histogram(LAG_S)
    context.stir()
    job, done = _some_job(machine)

    def counted() -> None:
        counters.begun(job)
        counters.estimated(0.1, 0.2)
        counters.done(job, done, 0.5)
        context.stir()
        context.stir()

    return {
        "job_us": job_us,
        "counted_us": _least_us(counted, 10_000),
        "turn_us": _least_us(lambda: lag.add(0.0003), 10_000),
        "judge_us": _least_us(machine._alert_evaluator.judge, 50),
        "snapshot_us": _least_us(machine.measure, 50),
        "text_ms": _least_us(lambda: written(families), 5) / 1e3,
        "ended_bytes": _ended_bytes(),
    }


def _machine() -> Machine:
    """With a worker that is READY."""
    machine = Machine(
        Settings(
            engine=EngineSettings(name="fault"),
            workers=WorkersSettings(gpus="none", max=1),
            limits=LimitsSettings(rate=""),
        ),
        Installation(boot="b", version="1"),
        now=100.0,
        wall=_EPOCH + 100.0,
        seed=1,
    )
    machine.open()
    for event in (inputs.JournalChanged(""), inputs.Spawned(1, 4_000), inputs.WorkerSaid(1, _READY)):
        machine.step(event, 100.0, _EPOCH + 100.0)
    return machine


def _ended_bytes() -> float:
    """What the core keeps of an ended job, but its audio, over as many with a result as it keeps."""
    machine = _machine()
    # The first ones, and what is forgotten of them, are not what each needs.
    _jobs(machine, 100)
    kept = len(machine.state.job_table._ended)
    tracemalloc.start()
    for number in range(MAX_ENDED - kept):
        now = machine.state.context.now + 0.02
        _finished(machine, _accepted(machine, now, f"{number:06} {'x' * 100}"), now)
    bytes_kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return bytes_kept / (len(machine.state.job_table._ended) - kept)


def _jobs(machine: Machine, count: int) -> float:
    """Have jobs accepted and spoken; microseconds for one."""
    now, began = machine.state.context.now, time.thread_time()
    for _ in range(count):
        now += 0.02
        _one(machine, now)
        while (due := machine.next_due) is not None and due <= now:
            machine.step(inputs.TimePassed(), now, _EPOCH + now)
    return (time.thread_time() - began) / count * 1e6


def _one(machine: Machine, now: float) -> list[effects.Effect]:
    return _finished(machine, _accepted(machine, now), now)


def _accepted(machine: Machine, now: float, text: str = "hello") -> str:
    """Have a job accepted, and begun; its id."""
    request = requests.Synthesize(id="r", v=1, text=text)
    accepted = machine.step(inputs.Requested(_ALICE, _TO, request), now, _EPOCH + now)
    return next(e.event.job for e in accepted if isinstance(e, effects.Send) and isinstance(e.event, events.Accepted))


def _finished(machine: Machine, job: str, now: float) -> list[effects.Effect]:
    spoken = wire.Finished(
        job=job, sample_rate=24_000, audio_s=1.0, synthesis_s=0.5, first_audio_s=0.1, voice="tone", sha256="0" * 64,
        chunks=0, bytes=4, path=None, result=None, problem="", memory=_MEMORY,
    )  # fmt: skip
    return machine.step(inputs.WorkerSaid(1, spoken, b"RIFF"), now + 0.01, _EPOCH + now)


def _some_job(machine: Machine) -> tuple[Job, events.Done]:
    now = machine.state.context.now + 1.0
    # As it was while it ran: of an ended job the table keeps less.
    job = machine.state.job_table.live[_accepted(machine, now)]
    ended = _finished(machine, job.id, now)
    return job, next(e.event for e in ended if isinstance(e, effects.Send) and isinstance(e.event, events.Done))


def _least_us(run: Callable[[], object], times: int) -> float:
    run()
    least = float("inf")
    for _ in range(20):
        began = time.thread_time()
        for _ in range(times):
            run()
        least = min(least, time.thread_time() - began)
    return least / times * 1e6


# --- with a daemon


def scrapes(stack: ExitStack, folder: Path, seconds: float) -> dict[str, Any]:
    """A daemon that is scraped at a fixed rate, and pinged meanwhile."""
    daemon = Daemon(stack, folder, text=_METRICS)
    time.sleep(2.0)
    before = memory_mib(daemon.child.pid)["pss"]
    first_s, size = scrape()
    found: dict[str, Any] = {
        "first_ms": first_s * 1e3,
        "bytes": size,
        "pss_grows_mib": memory_mib(daemon.child.pid)["pss"] - before,
        "by_rate": [],
    }
    for rate in (0, 1, 4, 0):
        ended, took = threading.Event(), []

        def ask(rate: int = rate, ended: threading.Event = ended, took: list[float] = took) -> None:
            while not ended.wait(1 / rate):
                took.append(scrape()[0])

        asking = threading.Thread(target=ask)
        cpu_before = cpu_s([daemon.child.pid])
        if rate:
            asking.start()
        pings = _pings(daemon, seconds)
        ended.set()
        if rate:
            asking.join()
        used = cpu_s([daemon.child.pid]) - cpu_before
        found["by_rate"].append(
            {
                "rate": rate,
                "scrape_ms": statistics.median(took) * 1e3 if took else None,
                "cpu_share": used / seconds,
                **{f"ping_p{share}_us": pings[int(len(pings) * share / 100)] * 1e6 for share in (50, 99)},
                "ping_max_us": pings[-1] * 1e6,
            }
        )
    return found


def scrape() -> tuple[float, int]:
    """Seconds and bytes."""
    began = time.perf_counter()
    with closing(http.client.HTTPConnection("127.0.0.1", _PORT, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
    return time.perf_counter() - began, len(text)


def _pings(daemon: Daemon, seconds: float) -> list[float]:
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        call(daemon.socket, {"op": "ping", "id": "p"})
        took.append(time.perf_counter() - began)
        time.sleep(0.0005)
    return sorted(took)


def text(results: dict[str, Any]) -> list[str]:
    """For people."""
    core, scraped = results["core"], results["scrapes"]
    lines = [
        f"a job in the core                 {core['job_us']:8.1f} us of processor time, all in all",
        f"  counting it, for metrics        {core['counted_us']:8.2f} us",
        f"a turn of the loop, counted       {core['turn_us']:8.2f} us",
        f"all alerts judged                 {core['judge_us']:8.1f} us, every five seconds at most",
        f"a snapshot, in the loop           {core['snapshot_us']:8.1f} us",
        f"its text, in a thread             {core['text_ms']:8.2f} ms",
        f"kept of an ended job              {core['ended_bytes']:8.0f} bytes, without its audio",
        f"first scrape                      {scraped['first_ms']:8.1f} ms, {scraped['bytes']:,} bytes; "
        f"{scraped['pss_grows_mib']:.1f} MiB more from then on",
        "",
        "scrapes a second   each ms   pings: p50 us   p99 us   max us   processor",
    ]
    for row in scraped["by_rate"]:
        each = f"{row['scrape_ms']:9.1f}" if row["scrape_ms"] is not None else f"{'-':>9}"
        lines.append(
            f"{row['rate']:16} {each} {row['ping_p50_us']:15.0f} {row['ping_p99_us']:8.0f} {row['ping_max_us']:8.0f} "
            f"{row['cpu_share']:10.1%}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
