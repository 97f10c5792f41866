"""A rate limit lets in what it promises, no more, and at the time that it names."""

from __future__ import annotations

import random

import pytest

from glmtts.daemon.core.scheduling import rate_limit
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


def test_the_names_of_a_gateway_fill_nobody_s_bucket() -> None:
    limiter = RateLimiter()
    rate = (10, 3_600.0)
    assert [limiter.take("uid:3", rate, 0.0) for _ in range(10)] == [None] * 10
    taken = sum(limiter.take(f"uid:2/{name}", rate, name / 1_000) is None for name in range(14_000))
    assert (taken, len(limiter.clients())) == (14_000, 10_000)
    assert limiter.take("uid:3", rate, 14.0) == pytest.approx(346.0)
    assert limiter.left("uid:4", rate, 14.0) == (10.0, 0.0), "a client that comes anew has all of its tokens"
    tokens, _ = limiter.left("uid:2/0", rate, 14.0)
    assert tokens is not None and tokens < 9.1, "and none is given back by a bucket that was forgotten"


def test_full_buckets_are_forgotten_first_whosever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 10)
    limiter = RateLimiter()
    for name in range(5):
        limiter.take(f"uid:2/{name}", (1, 1.0), 0.0)
    for name in range(10):
        limiter.take(f"uid:3/{name}", (1, 60.0), 2.0)
    assert sorted(limiter.clients()) == [f"uid:3/{name}" for name in range(10)]
    assert limiter.left("uid:3/new", (1, 60.0), 2.0) == (1.0, 0.0)


def test_however_many_names_come_and_go_none_has_more_than_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 8)
    rng = random.Random(3)
    limiter, now = RateLimiter(), 0.0
    exact: dict[str, tuple[float, float]] = {}
    for _ in range(20_000):
        now += rng.expovariate(20.0)
        client = rng.choice(("uid:1", f"uid:2/{rng.randrange(20)}", f"uid:3/{rng.randrange(3)}"))
        count, seconds = rate = (2, 60.0) if client.endswith("2") else (5, 10.0)
        tokens, since = exact.get(client, (float(count), now))
        tokens = min(float(count), tokens + (now - since) * count / seconds)
        allowed = limiter.take(client, rate, now) is None
        assert tokens >= 1 - 1e-5 or not allowed, f"{client} has {tokens} tokens"
        assert allowed or tokens < 1 or client != "uid:1", "who holds one bucket alone never loses it"
        exact[client] = (tokens - allowed, now)
    assert len(limiter.clients()) <= 8


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
