"""Counters for the metrics, of everything that no other part of the core counts already.

They change with every job, so they are plain numbers; monitoring/metrics.py makes metrics of them on request.
"""

from __future__ import annotations

from collections.abc import Iterable

from glmtts.protocol.events import Done
from glmtts.protocol.requests import PRIORITIES

from .exit_causes import Cause
from .jobs.job import Job
from .metric_types import Histogram

#: Upper bounds of the buckets, in seconds. A sentence is begun in tenths of a second, a book waits for hours.
WAIT_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
FIRST_AUDIO_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0)
DURATION_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
#: Half a second is a word, ten seconds are a long sentence, a minute is a page's paragraph.
AUDIO_S = (0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0)
#: Finest around 1, where a stream begins to have gaps.
REAL_TIME_FACTOR = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
ERROR_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

#: Why processes are replaced: on request, at a limit, or for growing memory (memory_watch.Kind).
RECYCLE_REASONS = (
    "operator",
    "configuration",
    "max_jobs",
    "max_age",
    "fresh",
    "limit",
    "host_limit",
    "leak",
    "fragmentation",
    "outside_torch",
    "host_leak",
)


class Counters:
    """Owns the counters. They only ever grow."""

    def __init__(self) -> None:
        self.wait = _by_class(WAIT_S)
        self.first_audio = _by_class(FIRST_AUDIO_S)
        self.duration = _by_class(DURATION_S)
        self.real_time_factor = Histogram(REAL_TIME_FACTOR)
        self.audio = Histogram(AUDIO_S)
        self.estimate_error = Histogram(ERROR_S)
        #: Seconds of synthesis, and of the speech that it made.
        self.synthesis_s = self.spoken_s = 0.0
        #: Jobs that were created; and those of them that the journal refused, which were never accepted.
        self.created = self.withdrawn = 0
        #: Refused requests, by error code.
        self.refused: dict[str, int] = {}
        self.retries = 0
        self.restarts = 0
        self.deaths = _zeros(cause.value for cause in Cause)
        self.recycles = _zeros(RECYCLE_REASONS)

    @property
    def accepted(self) -> int:
        """Jobs that were accepted, or will be once the journal has them."""
        return self.created - self.withdrawn

    def refuse(self, code: str) -> None:
        """A request was refused."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def begun(self, job: Job) -> None:
        """A worker begins a job."""
        if job.attempts == 1:
            self.wait[job.request.priority].add(job.waited_s)
        else:
            self.retries += 1

    def done(self, job: Job, done: Done, duration_s: float) -> None:
        """The end of a spoken job was sent, ``duration_s`` after the job was accepted."""
        priority = job.request.priority
        self.first_audio[priority].add(done.first_audio_s)
        self.duration[priority].add(duration_s)
        self.audio.add(done.audio_s)
        if done.synthesis_s > 0.0 and done.audio_s > 0.0:  # 0 if an earlier attempt did the work
            self.synthesis_s += done.synthesis_s
            self.spoken_s += done.audio_s
            self.real_time_factor.add(done.synthesis_s / done.audio_s)

    def died(self, cause: Cause) -> None:
        """A process has ended."""
        self.deaths[cause.value] += 1

    def recycled(self, reason: str) -> None:
        """A process is to be replaced."""
        self.recycles[reason] = self.recycles.get(reason, 0) + 1

    def estimated(self, estimated_s: float, waited_s: float) -> None:
        """A job has waited for ``waited_s``; its client had the estimate ``estimated_s``."""
        self.estimate_error.add(abs(estimated_s - waited_s))


def _by_class(bounds: tuple[float, ...]) -> dict[str, Histogram]:
    return {priority: Histogram(bounds) for priority in PRIORITIES}


def _zeros(names: Iterable[str]) -> dict[str, int]:
    """Every series exists from the start: Prometheus does not see the first increase of a new one."""
    return dict.fromkeys(names, 0)
