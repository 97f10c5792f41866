"""The text that Prometheus reads: names, kinds, labels and buckets."""

from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from glmtts.daemon.core.metric_types import Family, Histogram, labelled, single
from glmtts.daemon.metrics.exposition import written


def read(*families: Family) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(written(families).decode())}


def test_a_counter_keeps_its_name_and_its_help() -> None:
    found = read(single("glmtts_x_total", "counter", "What it counts.", 7.0))["glmtts_x"]
    assert (found.type, found.documentation) == ("counter", "What it counts.")
    assert [(s.name, s.value) for s in found.samples] == [("glmtts_x_total", 7.0)]


def test_an_unknown_value_has_no_sample() -> None:
    assert read(single("glmtts_x", "gauge", "h", None))["glmtts_x"].samples == []


@pytest.mark.parametrize("name", ['a "quoted" GPU', "back\\slash", "two\nlines", "显卡"])
def test_a_name_with_anything_in_it_does_not_spoil_the_rest(name: str) -> None:
    found = read(labelled("glmtts_x", "gauge", "h", "name", [(name, 1.0)]), single("glmtts_y", "gauge", "h", 2.0))
    assert found["glmtts_x"].samples[0].labels == {"name": name}
    assert found["glmtts_y"].samples[0].value == 2.0


def test_a_value_at_a_bound_is_in_its_bucket_and_buckets_add_up() -> None:
    histogram = Histogram((0.5, 1.0))
    for value in (0.1, 0.5, 0.7, 9.0):
        histogram.add(value)
    samples = read(single("glmtts_x_seconds", "histogram", "h", histogram))["glmtts_x_seconds"].samples
    assert {s.labels.get("le", s.name): s.value for s in samples} == {
        "0.5": 2.0,
        "1": 3.0,
        "+Inf": 4.0,
        "glmtts_x_seconds_count": 4.0,
        "glmtts_x_seconds_sum": pytest.approx(10.3),
    }


def test_the_process_itself_is_measured_as_every_program_s_is() -> None:
    found = read()
    assert found["process_resident_memory_bytes"].samples[0].value > 1 << 20
    assert found["process_open_fds"].samples[0].value > 0
