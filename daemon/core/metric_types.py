"""What metrics are made of: families of samples, and histograms that are cheap to add to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct


class Histogram:
    """How many values there were up to each bound, and their sum, as Prometheus has it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        #: By bucket, each value once; the last is for what is over all bounds.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


Kind = Literal["counter", "gauge", "histogram"]
Value = float | Histogram


class Family(Struct, frozen=True):
    """One metric: its name as Prometheus has it, and a value for each set of labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], Value]]


def single(name: str, kind: Kind, help: str, value: float | Histogram | None) -> Family:
    """A metric without labels; without a sample where nobody knows its value."""
    return Family(name, kind, help, (), [] if value is None else [((), value)])


def labelled(name: str, kind: Kind, help: str, label: str, values: Iterable[tuple[str, Value]]) -> Family:
    """A metric with one label."""
    return Family(name, kind, help, (label,), [((of,), value) for of, value in values])


def one_of(name: str, help: str, label: str, all: Iterable[str], now: str) -> Family:
    """A state as Prometheus has states: a series for each, of which one is 1."""
    return labelled(name, "gauge", help, label, ((state, float(state == now)) for state in all))


def kept(histogram: Histogram) -> Histogram:
    """A copy, which does not change any more."""
    copy = Histogram(histogram.bounds)
    copy.counts, copy.total = list(histogram.counts), histogram.total
    return copy
