"""When a worker's memory grows: what it is that grows, whether a trim helps, and when to replace the process.

A :class:`MemoryWatch` judges the floors of one process: what it held when it was idle after a job. Never the peaks: one
long text must not cost a healthy process. It answers with the mildest that will do: nothing, then a trim, then a
recycle, and says why in words.

What grows tells what may help. Live tensors (``leak``), or all there is to see where torch says nothing: a trim is
tried once. The cache over the live tensors (``fragmentation``): trims, as long as they bring it back. Beyond torch
(``outside_torch``) and on the host (``host_leak``): as for tensors.

When. The first ramp of a cache that fills and empties can't be told from a leak, and nothing is lost by waiting: memory
that leaked hurts only at the limit. So growth, however certain, is let be until it matters: it is about to pass 90 % of
the limit, or to reach the limit within ``horizon_jobs``. Nor does growth count that was there before without harm.

How certain. A projection goes no further than a third of the jobs that it is projected from: twenty jobs ahead after
sixty of growth. That makes a warm-up harmless without a guess at how long it is, since whatever settles projects to
hardly more than it comes to: what approaches A exponentially to at most 1.2 A. Only where there may be no job after
the next are four floors in a row enough, if they grew by as much as is left.
"""

from __future__ import annotations

from msgspec import Struct

from .floors import Floor, Kind, Limits, Trend, Verdict, amount_of, count_of, share_of
from .trend import Series, Slope

__all__ = ["Floor", "Kind", "Limits", "MemoryWatch", "Trend", "Verdict"]

#: The share of a limit that nothing that grows shall pass.
_LEVEL = 0.9
#: Growth is tried to be trimmed away once it has this much, or less, of its way to the level left, in its own length.
_SOON = 0.25
#: z of Mann-Kendall that makes a trend; and in haste, which four floors in a row reach.
_CERTAIN, _HASTY = 3.0, 1.6
#: So few jobs from the limit there is no time for more evidence, nor for a trim.
_HASTE_JOBS = 1.5
#: How far a projection goes, as a share of the jobs that it is projected from.
_REACH = 1 / 3
#: The level counts as reached so many jobs, or that share of the limit, before it: growth comes in lumps. Where there
#: is one figure for growth and noise, up to the third share, if it jumped that far before.
_MARGIN_JOBS, _MARGIN, _MOST_MARGIN = 3, 0.02, 0.06
#: A trim gave something back if it took away this share of the growth that it was for.
_HELPED = 0.5
#: A worker that did not get round to a trim within so many jobs won't.
_PATIENCE_JOBS = 8
#: A limit that a fresh process does not keep is taken as this many times what that process held.
_ROOM_TO_START = 1.02
#: Without a horizon trims still go by this one.
_TRIM_HORIZON_JOBS = 20

_WHAT: dict[str, str] = {
    "leak": "live tensors",
    "fragmentation": "torch's cache",
    "outside_torch": "memory outside torch",
    "device": "GPU memory",
    "host_leak": "host memory",
}


_NOTHING = Verdict()


class _Asked(Struct):
    """A trim that was asked for after ``jobs`` jobs, to bring the figure ``name`` down to ``wanted``."""

    kind: Kind
    name: str
    jobs: int
    wanted: float
    #: The process was trimmed; what it brought is seen as soon as the figure is.
    answered: bool = False


class _Bound(Struct):
    """A limit as it is applied to the figure ``name``; ``first`` is what a fresh process held."""

    name: str
    bytes: int
    words: str
    hard: bool
    first: int


class MemoryWatch:
    """The floors of one process, and what follows from them. Takes a few microseconds a floor while nothing grows."""

    def __init__(self) -> None:
        self._series = {name: Series() for name in _WHAT}
        self._jobs = 0
        self._leak_min = 0
        #: Held by the process when it was fresh.
        self._first: dict[str, int] = {}
        self._outside = 0
        self._device_seen = False
        self._asked: _Asked | None = None
        #: What trims are in vain for.
        self._vain: set[Kind] = set()
        #: After how many jobs trims were asked for, the newest three.
        self._trims: list[int] = []
        self._first_trim = 0
        #: The most that a text needed over the live tensors, which torch's cache shows when it had to grow for it.
        self._working = 0
        self._reserved = 0
        self._trend: tuple[int, Trend | None] = (-16, None)

    def add(self, floor: Floor, limits: Limits) -> Verdict:
        """Judge the process by one more floor. One of an earlier job than the last is ignored."""
        if floor.jobs < self._jobs:
            return _NOTHING
        self._jobs = floor.jobs
        self._leak_min = limits.leak_min
        held = self._note(floor)
        if self._asked is not None and floor.jobs - self._asked.jobs >= _PATIENCE_JOBS:
            self._vain.add(self._asked.kind)
            self._asked = None
        verdict = _NOTHING
        if held is not None and limits.vram is not None:
            cache = self._series["fragmentation"].last
            bound = self._bound("device", limits.vram, limits.vram_words, limits.vram_hard)
            verdict = self._over("limit", held, bound, cache) or self._grows(held, bound, limits)
        if floor.rss is not None and limits.rss is not None and verdict.action != "recycle":
            bound = self._bound("host_leak", limits.rss, limits.rss_words, limits.rss_hard)
            host = self._over("host_limit", floor.rss, bound, None) or self._grows(floor.rss, bound, limits)
            if host.action != "none" or not verdict.reason:
                verdict = host
        return verdict

    def trimmed(self, floor: Floor) -> None:
        """The process was trimmed, asked for or not, and holds this now; the next floor is judged in its light."""
        held = self._parts(floor)
        self._reserved = floor.torch_reserved or 0
        self._keep(floor.jobs, held)
        if self._asked is not None:
            self._asked.answered = True
            self._see_what_it_brought(held)

    def _see_what_it_brought(self, held: dict[str, int]) -> None:
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
        """What grows now, for people: long before anything needs to be done about it."""
        judged, trend = self._trend
        # Looked at by every sample: a process that did 1,000 jobs does not change its trend within ten.
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

    def _parts(self, floor: Floor) -> dict[str, int]:
        """The floor as figures that grow for different reasons."""
        parts: dict[str, int] = {}
        allocated, reserved, vram = floor.torch_allocated, floor.torch_reserved, floor.vram
        if allocated is not None:
            parts["leak"] = allocated
        if reserved is not None:
            if allocated is not None and reserved >= allocated:
                parts["fragmentation"] = reserved - allocated
            # Less than torch's own: the two were not read at the same time.
            if vram is not None and vram >= reserved:
                parts["outside_torch"] = vram - reserved
        if vram is not None:
            parts["device"] = vram
        elif reserved is not None:
            parts["device"] = reserved + parts.get("outside_torch", self._outside)
        if floor.rss is not None:
            parts["host_leak"] = floor.rss
        return parts

    def _keep(self, jobs: int, parts: dict[str, int]) -> None:
        for name, value in parts.items():
            # Where torch tells what it consists of, nothing is asked about the whole.
            if name != "device" or self._series["leak"].last is None:
                self._series[name].add(jobs, value)

    def _note(self, floor: Floor) -> int | None:
        """Remember a floor; returns what it holds of the device."""
        parts = self._parts(floor)
        self._outside = parts.get("outside_torch", self._outside)
        if floor.torch_reserved is not None:
            if floor.torch_reserved > self._reserved:
                self._working = max(self._working, parts.get("fragmentation", 0))
            self._reserved = floor.torch_reserved
        if floor.vram is not None and not self._device_seen:
            # Until now it was torch's share alone: that the rest comes in view is no growth.
            self._device_seen = True
            self._series["device"] = Series()
            self._first.pop("device", None)
        self._keep(floor.jobs, parts)
        self._see_what_it_brought(parts)
        for name, value in parts.items():
            self._first.setdefault(name, value)
        return parts.get("device")

    # --- over a limit

    def _bound(self, name: str, limit: int, words: str, hard: bool) -> _Bound:
        first = self._first[name]
        least = round(first * _ROOM_TO_START)
        if hard and limit < least:
            # Replacing a process for what its successor will hold as well would go on for ever.
            return _Bound(name, least, f"{words} leaves no room, so: what it held when fresh", hard, first)
        return _Bound(name, limit, words, hard, first)

    def _over(self, kind: Kind, held: int, bound: _Bound, cache: int | None) -> Verdict | None:
        """What a hard limit says, if anything. ``cache``: what a trim can give back, None if nobody knows."""
        if not bound.hard or held <= bound.bytes:
            return None
        excess = held - bound.bytes
        reason = f"holds {share_of(held, bound.bytes, bound.words)} when idle"
        if self._asked is not None:
            return Verdict("none", kind, f"{reason}, and has been asked to give some back")
        # Without torch's word, what a trim can do is known only when it was tried.
        if kind in self._vain or (cache is not None and cache < excess):
            return Verdict("recycle", kind, reason, urgent=True)
        return self._ask(kind, bound.name, bound.bytes, reason)

    # --- growth

    def _grows(self, held: int, bound: _Bound, limits: Limits) -> Verdict:
        """What growth towards a limit calls for."""
        # Where there is little room from the start, less has to count as growth.
        least = min(limits.leak_min, max(limits.leak_min / 8, (bound.bytes - bound.first) / 2))
        # What has gone less of the way than that matters to no rule below: this alone keeps the watch cheap.
        least = max(least, held / 1000, (_LEVEL * bound.bytes - held) / 3)
        growing = self._growing(held, bound, least, _CERTAIN)
        verdict = self._judge_all(held, growing, least, bound, limits) if growing else _NOTHING
        if verdict.action == "none" and limits.horizon_jobs:
            growing = self._growing(held, bound, max(least, bound.bytes - held), _HASTY)
            verdict = self._in_haste(held, growing, bound) if growing else _NOTHING
        return verdict

    def _growing(self, held: int, bound: _Bound, least: float, certainty: float) -> dict[str, Slope]:
        """What grows, by name, as far as it is news."""
        if bound.name == "host_leak":
            names: tuple[str, ...] = ("host_leak",)
        elif self._series["leak"].last is not None:
            names = ("leak", "fragmentation", "outside_torch")
        else:
            names = ("device",)
        growing = {}
        for name in names:
            slope = self._series[name].slope(least, certainty)
            # It was that high before, and all went well; unless there was more room then.
            if slope is not None and (slope.above > 0 or held - slope.above >= _LEVEL * bound.bytes):
                growing[name] = slope
        return growing

    def _judge_all(self, held: int, growing: dict[str, Slope], least: float, bound: _Bound, limits: Limits) -> Verdict:
        cache = self._series["fragmentation"]
        if bound.name == "host_leak" or cache.last is None:
            # One figure for all: its noise has to fit, too.
            figure = self._series[bound.name]
            return self._judge(held, max(held, figure.highest_lately()), growing, bound, limits, jump=figure.jump)
        grown = growing.get("fragmentation")
        if grown is not None and "fragmentation" in self._vain:
            # The trim in vain gave back what a long text needed: that comes again.
            again = held - cache.last + cache.highest_lately()
            return self._judge(held, again, growing, bound, limits, jump=cache.jump)
        leaks = {name: slope for name, slope in growing.items() if name != "fragmentation"}
        if leaks:
            # What a trim brings back is no reason to recycle. But what a long text needed, the next one will need, too.
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
        limits: Limits,
        *,
        trim: str = "",
        jump: int = 0,
    ) -> Verdict:
        """Judge growth from ``counted`` bytes. ``trim``: the figure that a trim is known to bring back, if any."""
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
            return Verdict("recycle", kind, reason, urgent)
        if self._asked is not None or kind in self._vain:
            return _NOTHING
        if trim and len(growing) > 1 and limits.horizon_jobs:
            lasts = (level - held + main.rise) / per_job
            if lasts < horizon / 4:
                return Verdict(
                    "recycle", kind, f"{reason}; a trim would last {count_of(max(0.0, lasts), 'job')}", urgent
                )
        return self._ask(kind, name, self._wanted(name, main), reason)

    def _in_haste(self, held: int, growing: dict[str, Slope], bound: _Bound) -> Verdict:
        """The next job may be the last one that there is room for: a few floors in a row have to be enough."""
        name = max(growing, key=lambda name: growing[name].per_job)
        jobs_left = (bound.bytes - held) / sum(slope.per_job for slope in growing.values())
        if jobs_left > _HASTE_JOBS * growing[name].gap:
            return _NOTHING
        reason = _growth(name, growing, held, jobs_left, bound)
        if name == "fragmentation" and name not in self._vain:
            if self._asked is not None:
                return _NOTHING
            return self._ask(_kind(name), name, self._wanted(name, growing[name]), reason)
        return Verdict("recycle", _kind(name), reason, urgent=True)

    def _wanted(self, name: str, slope: Slope) -> float:
        """What a trim has to bring the figure down to, if it is to have taken the growth away."""
        wanted = (self._series[name].last or 0) - _HELPED * slope.rise
        if name in ("fragmentation", "device"):
            # What the last text needed is given back in any case: that alone says nothing about the growth.
            return min(wanted, self._first[name] + _HELPED * slope.rise)
        return wanted

    def _ask(self, kind: Kind, name: str, wanted: float, reason: str) -> Verdict:
        """A trim, unless the last ones were too many to go on like that."""
        trims = self._trims
        if len(trims) == 3:
            apart = (self._jobs - trims[0]) / 3
            # A process that needed them as often when it was fresh would be replaced by one that does, too.
            if apart < _TRIM_HORIZON_JOBS / 4 and (self._first_trim >= 4 * apart or kind == "host_limit"):
                return Verdict("recycle", kind, f"{reason}; trims are needed every {count_of(apart, 'job')}")
            del trims[0]
        if not trims:
            self._first_trim = self._jobs
        trims.append(self._jobs)
        self._asked = _Asked(kind, name, self._jobs, wanted)
        return Verdict("trim", kind, reason)


def _kind(name: str) -> Kind:
    # The other series have the names of the kinds that they show.
    return "leak" if name == "device" else name  # type: ignore[return-value]


def _growth(name: str, growing: dict[str, Slope], held: int, jobs_left: float, bound: _Bound) -> str:
    main = growing[name]
    others = [f"{_WHAT[other]} {amount_of(slope.per_job)}" for other, slope in growing.items() if other != name]
    also = f" (and {', '.join(others)})" if others else ""
    return (
        f"{_WHAT[name]} grew {amount_of(main.per_job)} per job over {count_of(main.jobs, 'job')}{also}, "
        f"{share_of(held, bound.bytes, bound.words)}, full in {count_of(max(0.0, jobs_left), 'job')}"
    )
