"""Metrics in Prometheus's text format. Takes milliseconds, so never in the loop.

prometheus-client is imported when the first metrics are written: that takes a tenth of a second and some MiB, which a
daemon without requests for metrics saves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.metric_types import Family, Histogram

if TYPE_CHECKING:
    from prometheus_client import Metric

#: The format that every scraper understands.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def written(families: Sequence[Family]) -> bytes:
    """The text of the metrics, and of this process's own (``process_*``)."""
    from prometheus_client import generate_latest

    return generate_latest(_Collected(families))


class _Collected:
    """Stands in for prometheus-client's registry."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import ProcessCollector

        for family in self._families:
            yield _metric(family)
            # Lets the loop have the interpreter's lock after each family, and not after 5 ms.
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
    """Each bound, and the number of values up to it."""
    count = 0
    for bound, own in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += own
        yield ("+Inf" if bound == float("inf") else f"{bound:g}"), count
