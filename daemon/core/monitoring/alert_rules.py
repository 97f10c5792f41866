"""The rules of the alerts that figures raise, as pure functions; alert_table.py has the rest of each alert."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from glmtts.protocol.errors import ErrorCode

from ..exit_causes import POLICIES
from ..settings import AlertSettings
from ..workers.memory_watch import Trend

#: Ends of jobs, and refusals, that are the fault of the service and not of a client.
FAILURES: tuple[ErrorCode, ...] = (
    *(ErrorCode.DEADLINE_EXCEEDED, ErrorCode.HUNG, ErrorCode.OUT_OF_MEMORY, ErrorCode.OUTPUT_FAILED),
    *(ErrorCode.SYNTHESIS_FAILED, ErrorCode.UNAVAILABLE, ErrorCode.WORKER_CRASHED),
)
#: Causes of an exit that are faults.
FAULTS = tuple(sorted(cause.value for cause, policy in POLICIES.items() if policy.fault))
#: Xids that programs cause, each in its own context: no fault of the GPU (NVIDIA's list of Xid errors).
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
#: An average of fewer jobs means nothing.
FEWEST_JOBS = 3
#: A figure counts as good again from this share of its threshold on: one that wavers at the threshold raises one alert.
_BETTER = 0.9


class Totals(NamedTuple):
    """Counters that only grow: the difference of two describes the time between them. Times in seconds."""

    #: vip and interactive jobs that were spoken, and the sum of their times from acceptance to end.
    responses: int = 0
    response_s: float = 0.0
    #: All jobs that ended, and requests refused for want of a worker; and those of them that FAILURES names.
    ended: int = 0
    failed: int = 0
    spoken: int = 0
    synthesis_s: float = 0.0
    audio_s: float = 0.0
    #: Processes of workers that ended with a fault.
    faults: int = 0
    #: Rows of full tables that clients lost early, because they held most of what several share.
    removed: int = 0

    def since(self, before: Totals) -> Totals:
        """The growth since ``before``."""
        return Totals._make(now - then for now, then in zip(self, before, strict=True))


class GpuFigures(Struct, frozen=True):
    """Bytes of a GPU, None where unknown. ``xid``: the last fault of the GPU's own in the window; 0: none."""

    used: int | None
    total: int | None
    xid: int = 0


class Figures(Struct, frozen=True, kw_only=True):
    """The input of the rules. ``lately``: the counters over ``[alerts] window_s``."""

    lately: Totals = Totals()
    #: vip and interactive jobs that wait, and the number from which on that is many (0: never).
    waiting: int = 0
    warn_waiting: int = 0
    serving: int = 0
    wanted: int = 0
    gpus: dict[int, GpuFigures] = {}
    trends: dict[str, Trend] = {}
    #: The client that lost a row last, and of which rows (shares.TABLES).
    loser: tuple[str, str] = ("", "")


class Finding(NamedTuple):
    """A rule's verdict on the GPU or worker ``of``, or on the daemon (``""``).

    ``bad``: None where the figure is neither bad enough to raise an alert nor good enough to clear one.
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
                f"GPU {index}: {gpu.used >> 20:,} of {gpu.total >> 20:,} MiB are in use, over {limit:.0%}; "
                "a longer text may not fit (glmttsctl gpus shows which programs use them)"
            )
            yield Finding(str(index), _level(share, limit, limit - 0.05), message)


def queue_long(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    many = figures.warn_waiting
    message = f"{figures.waiting} vip and interactive jobs wait; the threshold is {many} (glmttsctl queue)"
    yield Finding("", 0 < many <= figures.waiting, message)


def responses_slow(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    mean_s = lately.response_s / lately.responses if lately.responses >= FEWEST_JOBS else 0.0
    message = (
        f"vip and interactive jobs took {mean_s:.1f} s on average from acceptance to end, over "
        f"{settings.response_s:g} s: too few workers, long texts, or a slow GPU (glmttsctl queue, workers, gpus)"
    )
    yield Finding("", _level(mean_s, settings.response_s, _BETTER * settings.response_s), message)


def errors_many(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    share = lately.failed / lately.ended if lately.failed >= FEWEST_JOBS else 0.0
    message = (
        f"{lately.failed} of {lately.ended} jobs failed ({share:.0%}), over {settings.error_share:.0%}; glmttsctl "
        "status has their codes, and the log has the reasons"
    )
    yield Finding("", _level(share, settings.error_share, _BETTER * settings.error_share), message)


def crash_loop(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    faults, many = figures.lately.faults, settings.faults
    bad = True if faults >= many else False if 2 * faults <= many else None
    message = f"{faults} worker processes failed within {settings.window_s:g} s (glmttsctl workers has the reasons)"
    yield Finding("", bad, message)


def no_worker_ready(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    message = (
        f"no worker has been ready for {2 * settings.for_s:g} s, and {figures.wanted} should be; "
        "no requests are being served"
    )
    yield Finding("", figures.wanted > 0 and not figures.serving, message)


def slower_than_real_time(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    lately = figures.lately
    factor = lately.synthesis_s / lately.audio_s if lately.spoken >= FEWEST_JOBS and lately.audio_s else 0.0
    message = (
        f"a second of speech took {factor:.2f} s to make, over {settings.rtf:g}: streams have gaps "
        "(is the GPU hot, or does another program use it?)"
    )
    yield Finding("", _level(factor, settings.rtf, _BETTER * settings.rtf), message)


def share_exhausted(figures: Figures, settings: AlertSettings) -> Iterator[Finding]:
    client, rows = figures.loser
    message = (
        f"{figures.lately.removed} rows of full tables were removed early within {settings.window_s:g} s; the last: "
        f"{client} holds most of all clients' {rows}, and loses its oldest (glmttsctl limits)"
    )
    yield Finding("", figures.lately.removed > 0, message)


def memory_trend(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    for name, trend in figures.trends.items():
        message = (
            f"worker {name} grows by {trend.words.removeprefix('+')} ({trend.kind.replace('_', ' ')}); it is replaced "
            "before its memory runs out, again and again"
        )
        yield Finding(name, True, message)


def gpu_xid(figures: Figures, _: AlertSettings) -> Iterator[Finding]:
    for index, gpu in figures.gpus.items():
        message = f"GPU {index} reported Xid {gpu.xid}, a fault of the GPU or its driver (see dmesg)"
        yield Finding(str(index), bool(gpu.xid), message)


class Condition(Struct):
    """Whether an alert is raised, and since when the rule has said the opposite, if it does."""

    raised: bool = False
    turned_at: float | None = None

    def judge(self, finding: Finding, now: float, raise_after_s: float, clear_after_s: float) -> bool:
        """Apply the rule's present verdict. Returns whether the alert is raised."""
        if finding.bad is None or finding.bad == self.raised:
            self.turned_at = None
            return self.raised
        if self.turned_at is None:
            self.turned_at = now
        if now - self.turned_at >= (clear_after_s if self.raised else raise_after_s):
            self.raised, self.turned_at = finding.bad, None
        return self.raised
