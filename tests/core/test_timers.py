"""Timers come due once, in order, and leave nothing behind."""

from __future__ import annotations

from glmtts.daemon.core.timers import TimerKey, Timers


def test_timers_come_due_in_order_and_once() -> None:
    timers = Timers()
    for name, due in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        timers.set(("t", name), due)
    assert timers.next_due() == 1.0
    assert timers.pop_due(0.9) is None
    assert [timers.pop_due(2.5) for _ in range(3)] == [("t", "a"), ("t", "b"), None]
    assert len(timers) == 1


def test_a_moved_timer_comes_due_at_its_new_time_alone() -> None:
    timers = Timers()
    timers.set(("t", "a"), 1.0)
    timers.set(("t", "a"), 5.0)
    assert timers.pop_due(4.0) is None
    timers.set(("t", "a"), 2.0)
    assert timers.pop_due(4.0) == ("t", "a")
    assert timers.pop_due(9.0) is None


def test_a_timer_set_twice_for_one_time_comes_due_once() -> None:
    timers = Timers()
    timers.set(("t", "a"), 1.0)
    timers.set(("t", "a"), 1.0)
    assert timers.pop_due(1.0) == ("t", "a")
    assert timers.pop_due(1.0) is None
    assert timers.next_due() is None


def test_a_cancelled_timer_wakes_nobody() -> None:
    timers = Timers()
    key: TimerKey = ("t", "a")
    timers.set(key, 1.0)
    timers.cancel(key)
    timers.cancel(key)
    assert key not in timers
    assert timers.due(key) is None
    assert timers.next_due() is None


def test_moved_and_cancelled_timers_take_no_memory() -> None:
    timers = Timers()
    for turn in range(10_000):
        timers.set(("hang", "w0"), float(turn))
        timers.set(("deadline", str(turn)), 1e9)
        timers.cancel(("deadline", str(turn)))
    assert len(timers._heap) < 100
