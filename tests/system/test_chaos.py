"""Sixteen clients, every fault of the fault engine, harm from outside and a restless operator, all at random.

``GLMTTS_CHAOS_S`` says for how long each (10 seconds where it is not set, 300 before a release), ``GLMTTS_CHAOS_SEED``
with what dice: what happens when still depends on the machine, so that a seed that failed need not fail again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ..fake_gpu.fake_gpu import FakeGpus
from ..process.conftest import Daemon, MakeGpus, Start, merged
from .caller import Caller, Notes
from .customer import Customer
from .gremlin import Gremlin
from .speech import DISRUPTED, Speech

DURATION_S = float(os.environ.get("GLMTTS_CHAOS_S", "10"))
SEED = os.environ.get("GLMTTS_CHAOS_SEED") or secrets.token_hex(4)
CLIENTS = 16
#: By the settings below a job that is not answered after this time never will be: it waits behind at most 40 others
#: on three workers, has two attempts of a second of silence each, and the queue is never paused for longer than that.
PATIENCE_S = 40.0
#: The ends of healthy jobs that were not cancelled.
HEALTHY = {"audio: done", *(f"audio: {code}" for code in DISRUPTED)}
#: Growth of the supervisor from the end of the warm-up to the end: what the allocator wastes, not what is kept.
GROWTH_MIB = 8.0

CONFIG: dict[str, Any] = {
    "workers": {
        "min": 3,
        "max": 3,
        "hang_timeout_s": 1.0,
        "stop_timeout_s": 0.5,
        "start_timeout_s": 10.0,
        "recycle": {"max_jobs": 50, "max_age_s": 30.0, "max_rss_mib": 160, "idle_trim_s": 0.5},
        "restart": {
            "backoff_initial_s": 0.05,
            "backoff_max_s": 0.3,
            "breaker_failures": 8,
            "breaker_window_s": 5.0,
            "quarantine_s": 15.0,
        },
    },
    "queue": {"max_waiting": 40, "max_waiting_batch": 40, "keep_results_s": 5.0, "keep_results_mib": 4},
}
#: Two GPUs for the three workers, each of which needs a fifth of one.
GPU_MIB = 24_576
ON_GPUS: dict[str, Any] = {
    "engine": {"fault": {"vram_mib": GPU_MIB // 5}},
    "workers": {"gpus": "all", "per_gpu": 2, "recycle": {"max_vram_share": 0.6}},
}


class Watch(threading.Thread):
    """Looks at the supervisor's process twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.process = psutil.Process(pid)
        self.ended = threading.Event()
        #: Seconds since the first, RSS in MiB, descriptors, threads.
        self.samples: list[tuple[float, float, int, int]] = []

    def look(self) -> tuple[float, float, int, int]:
        process = self.process
        return time.monotonic(), process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()

    def run(self) -> None:
        try:
            while not self.ended.wait(0.5):
                self.samples.append(self.look())
        except psutil.NoSuchProcess:
            return

    def rss_between(self, first: float, last: float) -> float:
        """Median RSS from ``first`` to ``last``, as shares of the time watched."""
        chosen = self.samples[int(first * len(self.samples)) : max(1, int(last * len(self.samples)))]
        return statistics.median(sample[1] for sample in chosen)


@pytest.mark.timeout(DURATION_S + 180)
def test_every_client_is_answered_once_and_with_its_own_audio_under_chaos(start: Start, tmp_path: Path) -> None:
    daemon = start(**CONFIG)
    with log_kept(daemon, tmp_path):
        chaos(daemon, CONFIG)


@pytest.mark.timeout(DURATION_S + 180)
def test_nor_do_gpus_in_trouble_change_that(start: Start, make_fake_gpus: MakeGpus, tmp_path: Path) -> None:
    gpus = make_fake_gpus(GPU_MIB, GPU_MIB)
    config = merged(CONFIG, ON_GPUS)
    daemon = start(environment=gpus.environment(), **config)
    with log_kept(daemon, tmp_path):
        chaos(daemon, config, gpus)
        daemon.stop()
    gpus.until(lambda: gpus.used(0) == gpus.used(1) == 0, "all memory of the GPUs is given back", 2.0)


@contextlib.contextmanager
def log_kept(daemon: Daemon, folder: Path) -> Iterator[None]:
    """Keep the whole log: a few minutes fill megabytes, of which a failure shows the end alone."""
    try:
        yield
    finally:
        print(f"the daemon's log: {shutil.copy(daemon.log_file, folder / 'daemon.log')}")


def chaos(daemon: Daemon, config: dict[str, Any], gpus: FakeGpus | None = None) -> None:
    """Let clients, gremlin and operator at the daemon, then see what is left of it."""
    print(f"GLMTTS_CHAOS_SEED={SEED} GLMTTS_CHAOS_S={DURATION_S:g}")
    notes = Notes()
    plain = Speech("an ordinary sentence", options={"seconds": 0.5})
    warm_up(daemon, plain, notes)
    rest = at_rest(daemon)
    watch = Watch(daemon.process.pid)
    watch.start()
    until = time.monotonic() + DURATION_S
    gremlin = Gremlin(daemon, SEED, notes, until=until, restore=config, gpus=gpus)
    customers = [
        Customer(
            daemon.endpoint,
            number,
            SEED,
            notes,
            until=until,
            patience_s=PATIENCE_S,
            vram_mib=GPU_MIB // 8 if gpus else 0,
        )
        for number in range(CLIENTS)
    ]
    for thread in (gremlin, *customers):
        thread.start()
    for thread in (gremlin, *customers):
        thread.join(DURATION_S + 2 * PATIENCE_S + 20.0)
        assert not thread.is_alive(), f"{thread.name} hangs"
    watch.ended.set()
    watch.join()

    # Before anything is judged: does it still do what it is there for?
    daemon.until_ready(3)
    speak(daemon, plain, notes)
    print(summary(daemon, notes, watch))
    assert not notes.findings, "\n".join([f"{len(notes.findings)} findings", *notes.findings[:20]])
    daemon.until(lambda: idle(daemon), "no job is left")
    status = daemon.status()
    assert status["internal_errors"] == 0
    assert status["counts"]["accepted"] == sum(status["counts"]["ended"].values()), "each accepted job has one end"
    daemon.until(lambda: no_zombies(daemon), "no process is left unreaped", 2.0)
    kept = given_back(daemon, rest)
    assert not kept, f"kept, beside what the supervisor had before ({dict(rest)}): {dict(kept)}"
    spoken = notes.counts["audio: done"] / sum(n for what, n in notes.counts.items() if what in HEALTHY)
    assert spoken > 0.8, f"{spoken:.0%} of the jobs that nothing was wrong with were spoken"
    growth = watch.rss_between(0.85, 1.0) - watch.rss_between(0.15, 0.3)
    assert growth < GROWTH_MIB, f"the supervisor grew by {growth:.1f} MiB"
    assert daemon.rss_mib < watch.rss_between(0.15, 0.3) + GROWTH_MIB


def warm_up(daemon: Daemon, plain: Speech, notes: Notes) -> None:
    """Once everything for which the supervisor starts a thread, or opens what it keeps, when it is first needed."""
    for speech in (plain, Speech("long", options={"seconds": 60.0}), Speech("s", stream=True, format="pcm_s16le")):
        speak(daemon, speech, notes)
    daemon.control("reload")


def speak(daemon: Daemon, speech: Speech, notes: Notes) -> None:
    """Have a sentence spoken; nothing is in its way."""
    caller = Caller(daemon.endpoint, "plain", notes)
    try:
        asked = caller.speak(speech)
        assert caller.listen(lambda: asked.last, 10.0), asked.describe()
        assert asked.last and asked.last["event"] == "done", asked.last
    finally:
        caller.close()


def at_rest(daemon: Daemon) -> Counter[str]:
    """What the supervisor has open, by kind, and its threads."""
    process = Path(f"/proc/{daemon.process.pid}")
    held: Counter[str] = Counter(threads=len(list((process / "task").iterdir())))
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            held[str(entry.readlink()).partition(":")[0]] += 1
    return held


def given_back(daemon: Daemon, before: Counter[str]) -> Counter[str]:
    """What it still has beside ``before`` when it had five seconds to let go."""
    deadline = time.monotonic() + 5.0
    while (kept := at_rest(daemon) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return kept


def idle(daemon: Daemon) -> bool:
    queue = daemon.status()["queue"]
    return bool(queue["waiting"] == queue["running"] == 0)


def no_zombies(daemon: Daemon) -> bool:
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    return not any(child.status() == psutil.STATUS_ZOMBIE for child in children)


def summary(daemon: Daemon, notes: Notes, watch: Watch) -> str:
    """What happened, for people."""
    lines = [f"  {count:>6}  {what}" for what, count in sorted(notes.counts.items())]
    ended = daemon.status()["counts"]["ended"]
    causes: dict[str, int] = {}
    for line in Path(daemon.log_file).read_text(errors="replace").splitlines():
        if "WARNING worker failed" in line or "WARNING worker died" in line:
            cause = line.partition("cause=")[2].partition(" ")[0]
            causes[cause] = causes.get(cause, 0) + 1
    lines += [
        f"  jobs by their end: {ended}",
        f"  deaths of workers: {causes}",
        f"  longest wait for an answer: {notes.longest_s:.2f} s",
        "  RSS, descriptors, threads of the supervisor: "
        + "; ".join(
            f"{rss:.1f} MiB {fds} {threads}"
            for _, rss, fds, threads in watch.samples[:: max(1, len(watch.samples) // 8)]
        ),
    ]
    return "\n".join(lines)
