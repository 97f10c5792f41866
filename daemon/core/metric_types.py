"""Types of metrics: a family (name, labels, values), and a histogram that is cheap to add to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct


class Histogram:
    """Counts of values up to each bound, and their sum, as Prometheus has them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        #: One count a bucket, each value in one bucket; the last is for values over all bounds.
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """The number of values."""
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


def single(name: str, kind: Kind, help: str, value: Value | None) -> Family:
    """A metric without labels; without a sample where its value is unknown."""
    return Family(name, kind, help, (), [] if value is None else [((), value)])


def labelled(name: str, kind: Kind, help: str, label: str, values: Iterable[tuple[str, Value]]) -> Family:
    """A metric with one label."""
    return Family(name, kind, help, (label,), [((of,), value) for of, value in values])


def kept(value: Value) -> Value:
    """The value, or a copy of a histogram, which does not change any more."""
    if not isinstance(value, Histogram):
        return value
    copy = Histogram(value.bounds)
    copy.counts, copy.total = list(value.counts), value.total
    return copy
