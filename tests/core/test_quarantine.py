"""A content that kills workers is remembered for as long as is promised."""

from __future__ import annotations

from glmtts.daemon.core.scheduling.retry import Quarantine

HOLDS_S = 3_600.0


def test_deaths_are_counted_by_content_and_forgotten_after_an_hour() -> None:
    quarantine = Quarantine()
    assert not quarantine
    assert quarantine.blame("a", 0.0, HOLDS_S) == 1
    assert quarantine.blame("a", 10.0, HOLDS_S) == 2
    assert quarantine.deaths("a", 10.0 + HOLDS_S - 1) == 2
    assert quarantine.deaths("b", 10.0) == 0
    assert quarantine.deaths("a", 10.0 + HOLDS_S) == 0
    assert not quarantine


def test_a_death_long_ago_does_not_count_with_a_new_one() -> None:
    quarantine = Quarantine()
    quarantine.blame("a", 0.0, HOLDS_S)
    assert quarantine.blame("a", HOLDS_S + 1, HOLDS_S) == 1


def test_a_content_that_was_spoken_is_trusted_again() -> None:
    quarantine = Quarantine()
    quarantine.blame("a", 0.0, HOLDS_S)
    quarantine.clear("a")
    quarantine.clear("never blamed")
    assert quarantine.deaths("a", 0.0) == 0


def test_the_oldest_is_forgotten_before_memory_grows() -> None:
    quarantine = Quarantine()
    for number in range(1_500):
        quarantine.blame(str(number), float(number), HOLDS_S)
    assert len(quarantine._entries) == 1_000
    assert quarantine.deaths("0", 1_500.0) == 0
    assert quarantine.deaths("1499", 1_500.0) == 1


def test_as_many_are_counted_as_are_shown() -> None:
    quarantine = Quarantine()
    for number in range(6):
        for _ in range(1 + number % 3):
            quarantine.blame(f"c{number}", float(number), 10.0)
    for now in (5.0, 12.5, 100.0):
        assert quarantine.count(now, 2) == len(quarantine.describe(now, 2))
    assert quarantine.count(5.0, 2) == 4
