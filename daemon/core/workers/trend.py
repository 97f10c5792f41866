"""Whether a figure grows job by job, and how fast: a robust slope over idle samples, at every time scale at once.

The method. The Theil-Sen slope, the median of the slopes between all pairs of points, is unmoved by up to 29 % of
outliers (Sen 1968). The signs of the same pairs say whether there is growth at all (Mann-Kendall), but alone they raise
false alarms (Machida et al., ISSREW 2013: a trend is no ageing). So two more questions are asked here: does it
continue, or has it slowed down (a warm-up, a cache that fills); and is it above everything seen before (a cache that
fills and empties grows as a leak does, within known bounds). memory_watch.py asks the last one: does it matter soon.

Scales. The newest points are kept as they are, older ones as medians of four, of sixteen, and so on: a leak of 200 MiB
a job shows among the newest within four jobs, one of 1 MiB a job under 300 MiB of noise among the medians. That takes
``POINTS`` points for each power of four of jobs, fewer than two hundred after a million jobs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import inf, sqrt

from msgspec import Struct
from msgspec.structs import replace

#: Points on each scale: 276 pairs, which cost about 50 microseconds to look at.
POINTS = 24
#: Points of one scale that make one of the next.
BLOCK = 4
#: A slope needs this many points: with three, every third step of noise would be a trend.
FEWEST = 4
#: Growth has slowed down if the last third of the time brought less than this share of the growth in the middle third.
#: A figure that settles exponentially passes during its first time constant and fails from then on.
_GOES_ON = 0.5
#: The lowest part of a rise that still counts as its beginning.
_BEGINNING = 0.1


_UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))


class Slope(Struct, frozen=True):
    """Growth of ``rise`` bytes in all, at ``per_job``, over ``jobs`` jobs.

    ``certainty`` is Mann-Kendall's z: 1.6 for four samples in a row that grow, 3 for one chance in a thousand.
    ``gap`` is the number of jobs between the last two samples, ``above`` the distance to the highest earlier level.
    """

    per_job: float
    jobs: int
    rise: float
    certainty: float
    above: int
    gap: int = 1


class _Scale:
    """The newest points of one scale, and the highest of those before them."""

    __slots__ = ("block", "highest", "jobs", "least", "slope", "values")

    def __init__(self) -> None:
        self.jobs: list[int] = []
        self.values: list[int] = []
        #: Points on their way to the next scale.
        self.block: list[tuple[int, int]] = []
        #: The three highest of all points that were dropped, the highest last.
        self.highest: list[int] = []
        #: The slope that was found, and the least growth that was searched for; infinite if the points are newer.
        self.slope: Slope | None = None
        self.least = inf

    def add(self, job: int, value: int) -> None:
        self.jobs.append(job)
        self.values.append(value)
        if len(self.jobs) > POINTS:
            del self.jobs[0]
            self.note_high(self.values.pop(0))
        self.least = inf

    def note_high(self, value: int) -> None:
        highest = self.highest
        if len(highest) < 3:
            highest.append(value)
            highest.sort()
        elif value > highest[0]:
            highest[0] = value
            highest.sort()

    def seen_before(self, index: int) -> int:
        """The third highest of all before ``index``: one sample taken during a job is no bound."""
        highest = sorted(self.highest + self.values[:index])
        return highest[-3] if len(highest) > 2 else 0


class Series:
    """Owns one figure of one process, by the number of jobs that the process has done."""

    __slots__ = ("_jumps", "_lowest", "_scales", "last", "last_job")

    def __init__(self) -> None:
        self._scales = [_Scale()]
        self._lowest = inf
        self._jumps = [0, 0, 0]
        self.last: int | None = None
        self.last_job = -1

    def add(self, job: int, value: int) -> None:
        """Add a sample. Of several after the same job the lowest counts; one of an earlier job is ignored."""
        finest = self._scales[0]
        if job <= self.last_job:
            if job == self.last_job and self.last is not None and value < self.last:
                self.last = finest.values[-1] = value
                self._lowest = min(self._lowest, value)
                finest.least = inf
            return
        self._lowest = min(self._lowest, value)
        if self.last is not None and value - self.last > self._jumps[0]:
            self._jumps[0] = value - self.last
            self._jumps.sort()
        self.last, self.last_job = value, job
        finest.add(job, value)
        # A point joins its block when the next one comes: until then it may still be lowered.
        if len(finest.jobs) > 1:
            self._to_next(0, finest.jobs[-2], finest.values[-2])

    def _to_next(self, index: int, job: int, value: int) -> None:
        block = self._scales[index].block
        block.append((job, value))
        if len(block) < BLOCK:
            return
        middle = sum(job for job, _ in block) // BLOCK
        # The lower of the two in the middle: noise only adds.
        median = sorted(value for _, value in block)[BLOCK // 2 - 1]
        block.clear()
        if index + 1 == len(self._scales):
            self._scales.append(_Scale())
        self._scales[index + 1].add(middle, median)
        self._to_next(index + 1, middle, median)

    def restart(self) -> None:
        """Forget the growth, but not how high it went: a trim has brought the figure back."""
        scales, self._scales = self._scales, []
        for old in scales:
            new = _Scale()
            new.highest = sorted(old.highest + old.values)[-3:]
            self._scales.append(new)
        self.last, self.last_job, self._lowest = None, -1, inf

    def slope(self, least: float, certainty: float) -> Slope | None:
        """The newest growth that continues, of at least ``least`` bytes and at least that certain; or None."""
        last = self.last
        if last is None or last - self._lowest < least:
            return None
        # Callers ask for less from sample to sample: a power of two keeps an earlier result valid for a while.
        gate = 1 << max(0, int(least).bit_length() - 1)
        newest: Slope | None = None
        for scale in self._scales:
            values = scale.values
            if gate < scale.least:
                scale.least = gate
                scale.slope = _slope(scale) if len(values) >= FEWEST and values[-1] - min(values) >= gate else None
            found = scale.slope
            if found is None or found.rise < least or found.certainty < certainty:
                if newest is not None:
                    break
                continue
            # A slope on a coarse scale may be old: it counts as long as nothing was given back.
            if last < values[-1] - found.rise * _BEGINNING:
                continue
            if newest is None:
                newest = found
            elif found.jobs > newest.jobs and newest.per_job / 2 <= found.per_job <= newest.per_job * 2:
                # The same growth, from further back.
                newest = replace(newest, jobs=found.jobs, rise=found.rise, above=found.above)
            else:
                break
        jobs = self._scales[0].jobs
        return newest and replace(newest, gap=jobs[-1] - jobs[-2])

    @property
    def jump(self) -> int:
        """The third largest rise from one sample to the next."""
        return self._jumps[0]

    def highest_lately(self) -> int:
        """The highest of the newest samples."""
        return max(self._scales[0].values, default=0)


def _slope(scale: _Scale) -> Slope | None:
    values = scale.values
    bottom = min(values)
    edge = bottom + (values[-1] - bottom) * _BEGINNING
    first = max(index for index, value in enumerate(values) if value <= edge)
    count = len(values) - first
    if count < FEWEST:
        return None
    tail, jobs = values[first:], scale.jobs[first:]
    if not _goes_on(tail):
        return None
    slopes = sorted(
        [
            (later - value) / (after - job)
            for index, (value, job) in enumerate(zip(tail, jobs, strict=True), 1)
            for later, after in zip(tail[index:], jobs[index:], strict=True)
        ]
    )
    rising, falling = len(slopes) - bisect_right(slopes, 0.0), bisect_left(slopes, 0.0)
    if rising <= falling:
        return None
    certainty = (rising - falling - 1) / sqrt(count * (count - 1) * (2 * count + 5) / 18)
    per_job = _median(slopes)
    if per_job <= 0:
        return None
    span = jobs[-1] - jobs[0]
    above = values[-1] - scale.seen_before(first)
    return Slope(per_job, span, per_job * span, certainty, above)


def _goes_on(values: list[int]) -> bool:
    third = len(values) // 3
    begin, middle = _median(sorted(values[:third])), _median(sorted(values[third:-third]))
    end = _median(sorted(values[-third:]))
    return end > middle and end - middle >= _GOES_ON * (middle - begin)


def _median(ordered: list[int] | list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


# --- figures in words


def share_of(held: int, limit: int, name: str) -> str:
    """``24,100 of 24,576 MiB (GPU 0)``."""
    unit, words = next((unit, words) for unit, words in _UNITS if limit >= 10 * unit or unit == 1)
    says = f" ({name})" if name else ""
    return f"{round(held / unit):,} of {round(limit / unit):,} {words}{says}"


def amount_of(number: float) -> str:
    """``38 MiB``, ``3.2 KiB``, ``12 bytes``."""
    for unit, words in _UNITS:
        if number >= unit:
            return f"{number / unit:,.{1 if unit > 1 and number < 9.95 * unit else 0}f} {words}"
    return f"{number:.2g} bytes"


def count_of(number: float, noun: str) -> str:
    """``1 job``, ``1,200 jobs``."""
    rounded = round(number)
    return f"{rounded:,} {noun}{'' if rounded == 1 else 's'}"
