"""A rate means what its writer means, or is refused."""

from __future__ import annotations

import pytest

from glmtts.daemon.core.rates import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", None),
        ("10/minute", (10, 60.0)),
        ("2/second", (2, 1.0)),
        ("600/hour", (600, 3_600.0)),
        ("1/day", (1, 86_400.0)),
        (" 10 / Minute ", (10, 60.0)),
    ],
)
def test_a_rate_is_a_count_in_seconds(text: str, rate: tuple[int, float] | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["10", "ten/minute", "0/minute", "-1/minute", "10/fortnight", "1.5/second", " ", "/", "1e3/hour"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="10/minute"):
        parse_rate(text)
