"""Families of samples in Prometheus's text format. Takes milliseconds: never in the loop.

prometheus-client is imported here, when the first metrics are written: that takes a tenth of a second and some MiB,
which a daemon whose metrics nobody asks for need not have.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.metric_types import Family, Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric

#: The format that everything which scrapes understands.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def written(families: Sequence[Family]) -> bytes:
    """The metrics, and those of this process that every program has (``process_*``)."""
    from prometheus_client import generate_latest

    return generate_latest(_Collected(families))


class _Collected:
    """What prometheus-client takes for a registry."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import ProcessCollector

        for family in self._families:
            yield _metric(family)
            # The loop may have waited for the interpreter's lock: it comes before the next family, and not 5 ms later.
            time.sleep(0)
        yield from ProcessCollector(registry=None).collect()


def _metric(family: Family) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if family.kind == "histogram":
        histograms = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, histogram in family.samples:
            assert isinstance(histogram, Histogram)
            histograms.add_metric(labels, list(_buckets(histogram)), histogram.total)
        return histograms
    shape: Any = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric: Metric = shape(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        metric.add_metric(labels, value)  # type: ignore[attr-defined]  # both shapes have it, their base has not
    return metric


def _buckets(histogram: Histogram) -> Iterable[tuple[str, float]]:
    """Each bound with how many values were up to it."""
    count = 0
    for bound, own in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += own
        yield ("+Inf" if bound == float("inf") else f"{bound:g}"), count
