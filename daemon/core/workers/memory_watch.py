"""When a worker's memory grows: which part of it, whether a trim helps, and when to replace the process.

A :class:`MemoryWatch` judges the idle samples of one process: its memory when it was idle after a job, never a peak,
because one long text must not cost a healthy process. It answers with the mildest measure that will do: nothing, a
trim, or a recycle, and says why in words.

The part that grows decides what may help. Live tensors (``leak``), or the whole figure where torch reports nothing: one
trim is tried. The cache above the live tensors (``fragmentation``): trims, as long as they bring it back. Memory
outside torch (``outside_torch``) and on the host (``host_leak``): as for tensors.

When. The first ramp of a cache that fills and empties looks like a leak, and waiting costs nothing: leaked memory hurts
only at the limit. So growth, however certain, is ignored until it matters: it is about to pass 90 % of the limit, or to
reach the limit within ``horizon_jobs``. Growth up to a level that was reached before without harm does not count.

How certain. A projection reaches no further than a third of the jobs that it is projected from: twenty jobs ahead after
sixty of growth. That makes a warm-up harmless without a guess at how long it is, because a figure that settles projects
to hardly more than its final value: one that approaches A exponentially to at most 1.2 A. Only where the next job may
be the last are four samples in a row enough, if they grew by as much as is left.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .trend import Series, Slope, amount_of, count_of, share_of

MIB = 1024 * 1024

Kind = Literal["", "limit", "leak", "fragmentation", "outside_torch", "host_leak", "host_limit"]


class IdleSample(Struct, frozen=True, kw_only=True):
    """Memory of a process that was idle after ``jobs`` jobs, in bytes; None where a figure is unknown.

    A process with several slots need not be idle: its engine says which figures are without working memory, and
    of GPU memory the least of the last samples counts. ``vram`` is the memory that the device has given to
    this process alone: None where another process may be in the figure.
    """

    jobs: int
    rss: int | None = None
    vram: int | None = None
    torch_allocated: int | None = None
    torch_reserved: int | None = None


class Limit(Struct, frozen=True, order=True):
    """Bytes that a process may hold, and the origin of the number in words: ``max_vram_mib``, ``GPU 0``.

    A hard limit was configured: one sample above it is enough. Any other is the size of the machine: to be near it is
    no fault, only to grow towards it.
    """

    bytes: int
    words: str = ""
    hard: bool = True


class MemoryLimits(Struct, frozen=True, kw_only=True):
    """Limits of one process on its GPU and on the host; None for no limit.

    ``leak_min``: growth of fewer bytes is ignored. ``horizon_jobs``: a process is replaced when its growth will reach
    the limit within that number of jobs; 0 never replaces one because of growth.
    """

    vram: Limit | None = None
    rss: Limit | None = None
    leak_min: int = 256 * MIB
    horizon_jobs: int = 20


class MemoryVerdict(Struct, frozen=True):
    """What to do, which kind of growth calls for it, and why in words. ``urgent``: give the process no further job."""

    action: Literal["none", "trim", "recycle"] = "none"
    kind: Kind = ""
    reason: str = ""
    urgent: bool = False


class Trend(Struct, frozen=True):
    """Growth, in bytes per job over ``jobs`` jobs, of the figure that grows most."""

    kind: Kind
    per_job: float
    jobs: int

    @property
    def words(self) -> str:
        """``+38 MiB per job``."""
        return f"+{amount_of(self.per_job)} per job"


#: The share of a limit that growth must not pass.
_LEVEL = 0.9
#: A trim is tried when the growth still possible up to that level is at most this share of the growth so far.
_SOON = 0.25
#: z of Mann-Kendall that makes a trend; the lower one, for haste, is reached by four samples in a row.
_CERTAIN, _HASTY = 3.0, 1.6
#: This few jobs from the limit there is no time for more evidence or for a trim.
_HASTE_JOBS = 1.5
#: How far a projection goes, as a share of the jobs that it is projected from.
_REACH = 1 / 3
#: The level counts as reached this many jobs, or that share of the limit, before it: growth comes in lumps. Where one
#: figure holds growth and noise, up to the third share, if it has jumped that far before.
_MARGIN_JOBS, _MARGIN, _MOST_MARGIN = 3, 0.02, 0.06
#: A trim has helped if it took away this share of the growth that it was for.
_HELPED = 0.5
#: A worker that has not trimmed within this many jobs will not.
_PATIENCE_JOBS = 8
#: A limit below what a fresh process holds is replaced by this multiple of what that process held.
_ROOM_TO_START = 1.02
#: The horizon for trims where ``horizon_jobs`` is 0.
_TRIM_HORIZON_JOBS = 20

_FIGURES: dict[str, str] = {
    "leak": "live tensors",
    "fragmentation": "torch's cache",
    "outside_torch": "memory outside torch",
    "device": "GPU memory",
    "host_leak": "host memory",
}


_NOTHING = MemoryVerdict()


class _Asked(Struct):
    """A trim requested after ``jobs`` jobs, to bring the figure ``name`` down to ``wanted`` bytes."""

    kind: Kind
    name: str
    jobs: int
    wanted: float
    #: The process has trimmed; the next sample with that figure shows the result.
    answered: bool = False


class _Bound(Struct):
    """A limit as it is applied to the figure ``name``; ``first`` is that figure of the fresh process."""

    name: str
    limit: Limit
    first: int

    @property
    def bytes(self) -> int:
        return self.limit.bytes


class MemoryWatch:
    """Owns the idle samples of one process. A sample costs a few microseconds while nothing grows."""

    def __init__(self) -> None:
        self._series = {name: Series() for name in _FIGURES}
        self._jobs = 0
        self._leak_min = 0
        #: The figures of the fresh process.
        self._first: dict[str, int] = {}
        self._outside = 0
        self._device_seen = False
        self._asked: _Asked | None = None
        #: Kinds of growth that a trim did not help.
        self._vain: set[Kind] = set()
        #: The numbers of jobs after which the newest three trims were requested.
        self._trims: list[int] = []
        self._first_trim = 0
        #: The most memory that a text needed above the live tensors: torch's cache shows it when it had to grow.
        self._working = 0
        self._reserved = 0
        self._trend: tuple[int, Trend | None] = (-16, None)

    def add(self, sample: IdleSample, limits: MemoryLimits) -> MemoryVerdict:
        """Judge the process by one more sample. A sample of an earlier job than the last is ignored."""
        if sample.jobs < self._jobs:
            return _NOTHING
        self._jobs = sample.jobs
        self._leak_min = limits.leak_min
        held = self._note(sample)
        if self._asked is not None and sample.jobs - self._asked.jobs >= _PATIENCE_JOBS:
            self._vain.add(self._asked.kind)
            self._asked = None
        verdict = _NOTHING
        if held is not None and limits.vram is not None:
            cache = self._series["fragmentation"].last
            bound = self._bound("device", limits.vram)
            verdict = self._over("limit", held, bound, cache) or self._grows(held, bound, limits)
        if sample.rss is not None and limits.rss is not None and verdict.action != "recycle":
            bound = self._bound("host_leak", limits.rss)
            host = self._over("host_limit", sample.rss, bound, None) or self._grows(sample.rss, bound, limits)
            if host.action != "none" or not verdict.reason:
                verdict = host
        return verdict

    def trimmed(self, sample: IdleSample | None) -> None:
        """The process has trimmed, requested or not, and holds this now; the next sample is judged by it.

        None while jobs are at work: then the next sample shows what it holds.
        """
        if sample is None:
            if self._asked is not None:
                self._asked.answered = True
            return
        held = self._parts(sample)
        self._reserved = sample.torch_reserved or 0
        self._keep(sample.jobs, held)
        if self._asked is not None:
            self._asked.answered = True
            self._judge_trim(held)

    def _judge_trim(self, held: dict[str, int]) -> None:
        asked = self._asked
        if asked is None or not asked.answered or asked.name not in held:
            return
        self._asked = None
        if held[asked.name] > asked.wanted:
            self._vain.add(asked.kind)
            return
        self._vain.discard(asked.kind)
        self._series[asked.name].restart()
        self._series[asked.name].add(self._jobs, held[asked.name])
        if asked.name == "fragmentation":
            self._working = 0

    @property
    def trend(self) -> Trend | None:
        """The growth that people see, long before anything needs to be done about it."""
        judged, trend = self._trend
        # Read with every sample: a process that has done 1,000 jobs does not change its trend within ten.
        if self._jobs - judged >= max(16, judged // 64):
            trend = self._find_trend()
            self._trend = (self._jobs, trend)
        return trend

    def _find_trend(self) -> Trend | None:
        found: list[Trend] = []
        for name, series in self._series.items():
            if name == "device" and self._series["leak"].last is not None:
                continue
            slope = series.slope(max(self._leak_min / 4, (series.last or 0) / 1000), _CERTAIN)
            if slope is not None:
                found.append(Trend(_kind(name), slope.per_job, slope.jobs))
        return max(found, key=lambda trend: trend.per_job, default=None)

    def _parts(self, sample: IdleSample) -> dict[str, int]:
        """The sample as figures that grow for different reasons."""
        parts: dict[str, int] = {}
        allocated, reserved, vram = sample.torch_allocated, sample.torch_reserved, sample.vram
        if allocated is not None:
            parts["leak"] = allocated
        if reserved is not None:
            if allocated is not None and reserved >= allocated:
                parts["fragmentation"] = reserved - allocated
            # A figure below torch's own was not read at the same time.
            if vram is not None and vram >= reserved:
                parts["outside_torch"] = vram - reserved
        if vram is not None:
            parts["device"] = vram
        elif reserved is not None:
            parts["device"] = reserved + parts.get("outside_torch", self._outside)
        if sample.rss is not None:
            parts["host_leak"] = sample.rss
        return parts

    def _keep(self, jobs: int, parts: dict[str, int]) -> None:
        for name, value in parts.items():
            # Where torch reports its parts, the whole is not judged.
            if name != "device" or self._series["leak"].last is None:
                self._series[name].add(jobs, value)

    def _note(self, sample: IdleSample) -> int | None:
        """Remember a sample. Returns its figure for the device."""
        parts = self._parts(sample)
        self._outside = parts.get("outside_torch", self._outside)
        if sample.torch_reserved is not None:
            if sample.torch_reserved > self._reserved:
                self._working = max(self._working, parts.get("fragmentation", 0))
            self._reserved = sample.torch_reserved
        if sample.vram is not None and not self._device_seen:
            # Until now the figure was torch's share alone: the rest coming into view is no growth.
            self._device_seen = True
            self._series["device"] = Series()
            self._first.pop("device", None)
        self._keep(sample.jobs, parts)
        self._judge_trim(parts)
        for name, value in parts.items():
            self._first.setdefault(name, value)
        return parts.get("device")

    # --- over a limit

    def _bound(self, name: str, limit: Limit) -> _Bound:
        first = self._first[name]
        least = round(first * _ROOM_TO_START)
        if limit.hard and limit.bytes < least:
            # Its successor would hold as much and be replaced as well, for ever.
            limit = Limit(least, f"{limit.words} is less than a fresh process holds, so: that much")
        return _Bound(name, limit, first)

    def _over(self, kind: Kind, held: int, bound: _Bound, cache: int | None) -> MemoryVerdict | None:
        """Judge by a hard limit. ``cache``: bytes that a trim can give back, None if unknown."""
        if not bound.limit.hard or held <= bound.bytes:
            return None
        excess = held - bound.bytes
        reason = f"holds {share_of(held, bound.limit.bytes, bound.limit.words)} when idle"
        if self._asked is not None:
            return MemoryVerdict("none", kind, f"{reason}, and was asked to trim")
        # Without torch's figures only a trial shows what a trim gives back.
        if kind in self._vain or (cache is not None and cache < excess):
            return MemoryVerdict("recycle", kind, reason, urgent=True)
        return self._ask(kind, bound.name, bound.bytes, reason)

    # --- growth

    def _grows(self, held: int, bound: _Bound, limits: MemoryLimits) -> MemoryVerdict:
        """Judge growth towards a limit."""
        # Where there is little room from the start, less has to count as growth.
        least = min(limits.leak_min, max(limits.leak_min / 8, (bound.bytes - bound.first) / 2))
        # Growth that has gone less of the way matters to no rule below: this check keeps the watch cheap.
        least = max(least, held / 1000, (_LEVEL * bound.bytes - held) / 3)
        growing = self._growing(held, bound, least, _CERTAIN)
        verdict = self._judge_all(held, growing, least, bound, limits) if growing else _NOTHING
        if verdict.action == "none" and limits.horizon_jobs:
            growing = self._growing(held, bound, max(least, bound.bytes - held), _HASTY)
            verdict = self._in_haste(held, growing, bound) if growing else _NOTHING
        return verdict

    def _growing(self, held: int, bound: _Bound, least: float, certainty: float) -> dict[str, Slope]:
        """The figures that grow beyond what was seen before, by name."""
        if bound.name == "host_leak":
            names: tuple[str, ...] = ("host_leak",)
        elif self._series["leak"].last is not None:
            names = ("leak", "fragmentation", "outside_torch")
        else:
            names = ("device",)
        growing = {}
        for name in names:
            slope = self._series[name].slope(least, certainty)
            # A level that was reached before does no harm, unless there was more room then.
            if slope is not None and (slope.above > 0 or held - slope.above >= _LEVEL * bound.bytes):
                growing[name] = slope
        return growing

    def _judge_all(
        self, held: int, growing: dict[str, Slope], least: float, bound: _Bound, limits: MemoryLimits
    ) -> MemoryVerdict:
        cache = self._series["fragmentation"]
        if bound.name == "host_leak" or cache.last is None:
            # One figure for everything: its noise has to fit, too.
            figure = self._series[bound.name]
            return self._judge(held, max(held, figure.highest_lately()), growing, bound, limits, jump=figure.jump)
        grown = growing.get("fragmentation")
        if grown is not None and "fragmentation" in self._vain:
            # The useless trim gave back the memory that a long text needed: that comes again.
            again = held - cache.last + cache.highest_lately()
            return self._judge(held, again, growing, bound, limits, jump=cache.jump)
        leaks = {name: slope for name, slope in growing.items() if name != "fragmentation"}
        if leaks:
            # Memory that a trim brings back is no reason to recycle. But the next long text will need as much again.
            refills = cache.slope(least, _CERTAIN)
            counted: float = (
                held - refills.rise if refills is not None else max(held, held - cache.last + self._working)
            )
            verdict = self._judge(held, counted, leaks, bound, limits)
            if verdict.action != "none":
                return verdict
        if grown is None:
            return _NOTHING
        return self._judge(held, held, growing, bound, limits, trim="fragmentation", jump=cache.jump)

    def _judge(
        self,
        held: int,
        counted: float,
        growing: dict[str, Slope],
        bound: _Bound,
        limits: MemoryLimits,
        *,
        trim: str = "",
        jump: int = 0,
    ) -> MemoryVerdict:
        """Judge growth from ``counted`` bytes. ``trim``: the figure that a trim is known to reduce, if any."""
        name = trim or max(growing, key=lambda name: growing[name].per_job)
        main = growing[name]
        per_job = sum(slope.per_job for slope in growing.values())
        grown = sum(slope.rise for slope in growing.values())
        begun = counted - grown
        level = max(_LEVEL * bound.bytes, begun + min(limits.leak_min, (bound.bytes - begun) / 2))
        jobs_left = (bound.bytes - counted) / per_job
        margin = max(_MARGIN * bound.bytes, min(jump, _MOST_MARGIN * bound.bytes))
        horizon = limits.horizon_jobs or (_TRIM_HORIZON_JOBS if trim else 0)
        near = horizon > 0 and (
            jobs_left <= min(max(horizon, 2 * main.gap), main.jobs * _REACH)
            or counted + max(_MARGIN_JOBS * main.gap * per_job, margin) >= level
        )
        soon = not trim and level - counted <= _SOON * grown
        if not (near or soon):
            return _NOTHING
        kind = _kind(name)
        reason = _growth(name, growing, held, jobs_left, bound)
        urgent = jobs_left <= _HASTE_JOBS * main.gap
        if near and not trim and (kind in self._vain or urgent):
            return MemoryVerdict("recycle", kind, reason, urgent)
        if self._asked is not None or kind in self._vain:
            return _NOTHING
        if trim and len(growing) > 1 and limits.horizon_jobs:
            lasts = (level - held + main.rise) / per_job
            if lasts < horizon / 4:
                return MemoryVerdict(
                    "recycle", kind, f"{reason}; a trim would last {count_of(max(0.0, lasts), 'job')}", urgent
                )
        return self._ask(kind, name, self._wanted(name, main), reason)

    def _in_haste(self, held: int, growing: dict[str, Slope], bound: _Bound) -> MemoryVerdict:
        """The next job may be the last that fits: a few samples in a row have to be enough."""
        name = max(growing, key=lambda name: growing[name].per_job)
        jobs_left = (bound.bytes - held) / sum(slope.per_job for slope in growing.values())
        if jobs_left > _HASTE_JOBS * growing[name].gap:
            return _NOTHING
        reason = _growth(name, growing, held, jobs_left, bound)
        if name == "fragmentation" and name not in self._vain:
            if self._asked is not None:
                return _NOTHING
            return self._ask(_kind(name), name, self._wanted(name, growing[name]), reason)
        return MemoryVerdict("recycle", _kind(name), reason, urgent=True)

    def _wanted(self, name: str, slope: Slope) -> float:
        """The size of the figure at which a trim has taken the growth away."""
        wanted = (self._series[name].last or 0) - _HELPED * slope.rise
        if name in ("fragmentation", "device"):
            # The memory of the last text comes back in any case: that alone says nothing about the growth.
            return min(wanted, self._first[name] + _HELPED * slope.rise)
        return wanted

    def _ask(self, kind: Kind, name: str, wanted: float, reason: str) -> MemoryVerdict:
        """Request a trim, or a recycle where trims have become too frequent."""
        trims = self._trims
        if len(trims) == 3:
            apart = (self._jobs - trims[0]) / 3
            # A process that needed them as often when it was fresh would be replaced by another that does.
            if apart < _TRIM_HORIZON_JOBS / 4 and (self._first_trim >= 4 * apart or kind == "host_limit"):
                return MemoryVerdict("recycle", kind, f"{reason}; trims are needed every {count_of(apart, 'job')}")
            del trims[0]
        if not trims:
            self._first_trim = self._jobs
        trims.append(self._jobs)
        self._asked = _Asked(kind, name, self._jobs, wanted)
        return MemoryVerdict("trim", kind, reason)


def _kind(name: str) -> Kind:
    # The other series carry the name of their kind.
    return "leak" if name == "device" else name  # type: ignore[return-value]


def _growth(name: str, growing: dict[str, Slope], held: int, jobs_left: float, bound: _Bound) -> str:
    main = growing[name]
    others = [f"{_FIGURES[other]} {amount_of(slope.per_job)}" for other, slope in growing.items() if other != name]
    also = f" (and {', '.join(others)})" if others else ""
    return (
        f"{_FIGURES[name]} grew {amount_of(main.per_job)} per job over {count_of(main.jobs, 'job')}{also}, "
        f"{share_of(held, bound.limit.bytes, bound.limit.words)}, full in {count_of(max(0.0, jobs_left), 'job')}"
    )
