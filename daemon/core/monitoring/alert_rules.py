"""The alerts that go by figures: what each says of them, as pure functions. docs/alerts.md is their table.

deploy/prometheus/glmtts.rules.yml has the same alerts, by the same names and numbers, for whoever has a Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from glmtts.protocol.errors import ErrorCode

from ..settings import AlertSettings
from ..workers.floors import Trend

#: Ends of jobs, and refusals, that are the fault of the service, and not of a client that asks for too much or leaves.
FAILURES = frozenset(
    {
        ErrorCode.OUTPUT_FAILED.value,
        ErrorCode.DEADLINE_EXCEEDED.value,
        ErrorCode.WORKER_CRASHED.value,
        ErrorCode.OUT_OF_MEMORY.value,
        ErrorCode.HUNG.value,
        ErrorCode.SYNTHESIS_FAILED.value,
        ErrorCode.UNAVAILABLE.value,
    }
)
#: Xids that programs bring about, each in its own context: no fault of the GPU (NVIDIA's list of Xid errors).
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
#: An average of fewer jobs says nothing.
FEWEST_JOBS = 3
#: What was over its threshold counts as better from this share of it on: what wavers there is not told at each turn.
_BETTER = 0.9


class Totals(NamedTuple):
    """Counters that only grow, of which the last minutes are told by a difference. Times in seconds."""

    #: Jobs done of those for whom somebody waits (vip and interactive), and the sum of their times until then.
    responses: int = 0
    response_s: float = 0.0
    #: All jobs that ended, and requests refused for want of a worker; and those of them that FAILURES names.
    ended: int = 0
    failed: int = 0
    spoken: int = 0
    synthesis_s: float = 0.0
    audio_s: float = 0.0
    #: Processes of workers that died of a fault.
    faults: int = 0

    def since(self, before: Totals) -> Totals:
        """What has been added."""
        return Totals._make(now - then for now, then in zip(self, before, strict=True))


class GpuFigures(Struct, frozen=True):
    """Bytes of a GPU; None where nobody knows. ``xid``: one that is no program's, in the last minutes; 0: none."""

    used: int | None
    total: int | None
    xid: int = 0


class Figures(Struct, frozen=True, kw_only=True):
    """What the rules look at. ``lately``: the counters over ``[alerts] window_s``."""

    lately: Totals = Totals()
    #: Jobs that wait and for whom somebody waits; and from how many on that is many (0: never).
    waiting: int = 0
    warn_waiting: int = 0
    serving: int = 0
    wanted: int = 0
    gpus: dict[int, GpuFigures] = {}
    trends: dict[str, Trend] = {}


class Finding(NamedTuple):
    """What a rule says of one thing, ``of`` being its number or name, or ``""`` for the daemon.

    ``bad``: None where it is neither bad enough to raise an alert, nor good enough to clear one.
    """

    of: str
    bad: bool | None
    message: str = ""


Rule = Callable[[Figures, AlertSettings], Iterator[Finding]]


def _level(value: float, limit: float, better: float) -> bool | None:
    """Over the limit, or better again, or between the two."""
    return True if value > limit else False if value <= better else None


def gpu_memory_high(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    limit = settings.gpu_memory_share
    for index, gpu in figures.gpus.items():
        if gpu.used is not None and gpu.total:
            share = gpu.used / gpu.total
            message = (
                f"GPU {index}: {gpu.used >> 20:,} of {gpu.total >> 20:,} MiB are taken, over {limit:.0%}; "
                "a longer text may not fit (glmttsctl gpus shows who has them)"
            )
            yield Finding(str(index), _level(share, limit, limit - 0.05), message)


def queue_long(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    many = figures.warn_waiting
    message = f"{figures.waiting} vip and interactive jobs wait, {many} or more are many (glmttsctl queue)"
    yield Finding("", 0 < many <= figures.waiting, message)


def responses_slow(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    mean_s = lately.response_s / lately.responses if lately.responses >= FEWEST_JOBS else 0.0
    message = (
        f"vip and interactive jobs took {mean_s:.1f} s on average, from acceptance to their end, over "
        f"{settings.response_s:g} s: too few workers, too long texts, or a slow GPU (glmttsctl queue, workers, gpus)"
    )
    yield Finding("", _level(mean_s, settings.response_s, _BETTER * settings.response_s), message)


def errors_many(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    share = lately.failed / lately.ended if lately.failed >= FEWEST_JOBS else 0.0
    message = (
        f"{lately.failed} of {lately.ended} jobs failed ({share:.0%}), over {settings.error_share:.0%}; glmttsctl "
        "status has them by code, and the log says why"
    )
    yield Finding("", _level(share, settings.error_share, _BETTER * settings.error_share), message)


def crash_loop(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    faults, many = figures.lately.faults, settings.faults
    bad = True if faults >= many else False if 2 * faults <= many else None
    message = (
        f"{faults} processes of workers died of a fault in {settings.window_s:g} s (glmttsctl workers says of what)"
    )
    yield Finding("", bad, message)


def no_worker_ready(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    message = (
        f"no worker has been ready for {2 * settings.for_s:g} s, where {figures.wanted} should be; nobody is spoken to"
    )
    yield Finding("", figures.wanted > 0 and not figures.serving, message)


def slower_than_real_time(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    factor = lately.synthesis_s / lately.audio_s if lately.spoken >= FEWEST_JOBS and lately.audio_s else 0.0
    message = (
        f"a second of speech took {factor:.2f} s to make, over {settings.rtf:g}: who listens to a stream hears gaps "
        "(does somebody else use the GPU? is it hot?)"
    )
    yield Finding("", _level(factor, settings.rtf, _BETTER * settings.rtf), message)


def memory_trend(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    for name, trend in figures.trends.items():
        message = (
            f"worker {name} grows by {trend.words.removeprefix('+')} ({trend.kind.replace('_', ' ')}); it is replaced "
            "before its memory runs out, again and again"
        )
        yield Finding(name, True, message)


def gpu_xid(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    for index, gpu in figures.gpus.items():
        message = f"GPU {index} reported Xid {gpu.xid}, which is a fault of the GPU or its driver: see 'dmesg'"
        yield Finding(str(index), bool(gpu.xid), message)


class Timing(NamedTuple):
    """How long something is bad before that is told, and good until it is over: so many ``for_s`` and ``window_s``.

    What goes by the last minutes needs no more patience than that.
    """

    raise_for: float = 0.0
    clear_for: float = 0.0
    raise_windows: float = 0.0
    clear_windows: float = 0.0


RULES: dict[str, tuple[Rule, Timing]] = {
    "gpu_memory_high": (gpu_memory_high, Timing(raise_for=1, clear_for=1)),
    "queue_long": (queue_long, Timing(raise_for=1, clear_for=1)),
    "responses_slow": (responses_slow, Timing()),
    "errors_many": (errors_many, Timing()),
    "crash_loop": (crash_loop, Timing()),
    "no_worker_ready": (no_worker_ready, Timing(raise_for=2)),
    "slower_than_real_time": (slower_than_real_time, Timing()),
    "memory_trend": (memory_trend, Timing(raise_windows=1, clear_windows=1)),
    "gpu_xid": (gpu_xid, Timing()),
}

#: Alerts that the core raises where they arise: each is on or off, without a figure to go by.
EVENTS = (
    "breaker_open",
    "unavailable",
    "journal",
    "results",
    "nvml",
    "gpu_lost",
    "worker_stuck",
    "metrics",
    "configuration",
)
#: Those that are raised of one GPU or worker: as ``gpu_lost.0``, and in Prometheus with a label.
OF_GPU = frozenset({"gpu_memory_high", "gpu_xid", "gpu_lost"})
OF_WORKER = frozenset({"memory_trend", "worker_stuck"})


class Condition(Struct):
    """Whether an alert is raised, and since when it is the other way, if it is."""

    raised: bool = False
    turned_at: float | None = None

    def judge(self, finding: Finding, now: float, raise_after_s: float, clear_after_s: float) -> bool:
        """Take in what the rule says now; returns whether the alert is to be raised."""
        if finding.bad is None or finding.bad == self.raised:
            self.turned_at = None
            return self.raised
        if self.turned_at is None:
            self.turned_at = now
        if now - self.turned_at >= (clear_after_s if self.raised else raise_after_s):
            self.raised, self.turned_at = finding.bad, None
        return self.raised
