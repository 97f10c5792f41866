"""A rate limit lets in what it promises, no more, and at the time that it names."""

from __future__ import annotations

import random

import pytest

from glmtts.daemon.core.scheduling.rate_limit import RateLimiter, parse_rate

TEN_A_MINUTE = (10, 60.0)
ONE_A_MINUTE = (1, 60.0)


def test_a_burst_up_to_the_count_and_then_one_at_a_time() -> None:
    limiter = RateLimiter()
    assert [limiter.take("a", TEN_A_MINUTE, 0.0) for _ in range(10)] == [None] * 10
    assert limiter.take("a", TEN_A_MINUTE, 0.0) == 6.0
    assert limiter.take("a", TEN_A_MINUTE, 6.0) is None
    assert limiter.take("a", TEN_A_MINUTE, 6.0) is not None


def test_clients_do_not_share_a_limit_and_may_have_different_ones() -> None:
    limiter = RateLimiter()
    assert limiter.take("a", ONE_A_MINUTE, 0.0) is None
    assert limiter.take("b", ONE_A_MINUTE, 0.0) is None
    assert limiter.take("a", ONE_A_MINUTE, 0.0) == 60.0
    assert [limiter.take("c", TEN_A_MINUTE, 0.0) for _ in range(10)] == [None] * 10


def test_who_comes_back_at_the_time_that_was_named_gets_in() -> None:
    rng = random.Random(1)
    for _ in range(5_000):
        limiter = RateLimiter()
        rate = (rng.randint(1, 100), rng.choice([1.0, 60.0, 3_600.0, 86_400.0]))
        now = rng.uniform(0, 1e6)
        while (after := limiter.take("a", rate, now)) is None:
            now += rng.uniform(0, 1e-3)
        assert limiter.take("a", rate, now + after) is None


def test_over_a_long_time_no_more_than_the_rate() -> None:
    limiter = RateLimiter()
    taken = sum(limiter.take("a", TEN_A_MINUTE, now / 100) is None for now in range(60_000))
    assert taken in (109, 110)


def test_an_idle_client_saves_up_no_more_than_the_count() -> None:
    limiter = RateLimiter()
    assert limiter.take("a", (2, 1.0), 0.0) is None
    assert [limiter.take("a", (2, 1.0), 1e6) is None for _ in range(3)] == [True, True, False]


def test_another_rate_holds_at_once_and_gives_nothing_back_that_was_used() -> None:
    limiter = RateLimiter()
    limiter.take("a", ONE_A_MINUTE, 0.0)
    assert limiter.take("a", (5, 60.0), 0.0) == 12.0
    assert limiter.take("a", None, 0.0) is None
    assert limiter.take("a", ONE_A_MINUTE, 0.0) == 60.0
    assert limiter.take("b", TEN_A_MINUTE, 0.0) is None
    assert limiter.take("b", (2, 60.0), 0.0) is None
    assert limiter.take("b", (2, 60.0), 0.0) is None
    assert limiter.take("b", (2, 60.0), 0.0) == 30.0


def test_what_is_left_is_told_without_taking_any() -> None:
    limiter = RateLimiter()
    assert limiter.left("a", TEN_A_MINUTE, 0.0) == (10.0, 0.0)
    for _ in range(10):
        limiter.take("a", TEN_A_MINUTE, 0.0)
    assert limiter.left("a", TEN_A_MINUTE, 3.0) == (0.5, 3.0)
    assert limiter.left("a", TEN_A_MINUTE, 3.0) == (0.5, 3.0)
    assert limiter.left("a", None, 3.0) == (None, None)
    assert limiter.clients() == ["a"]


def test_many_clients_take_bounded_memory() -> None:
    limiter = RateLimiter()
    for client in range(20_000):
        limiter.take(str(client), ONE_A_MINUTE, 0.0)
    assert len(limiter.clients()) == 10_000


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
