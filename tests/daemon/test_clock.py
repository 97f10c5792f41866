"""A loop that stood still gives the time back to all that waits for workers, and no more than that."""

from __future__ import annotations

import pytest

from glmtts.daemon.clock import LATE_S, RunningClock


class Machine:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_wait_and_its_usual_lateness_count_and_a_standstill_does_not(machine: Machine) -> None:
    clock = RunningClock(machine)
    clock.wait(5.0)
    machine.now += 5.0 + LATE_S / 2
    assert clock.turn() == pytest.approx(1_005.0, abs=LATE_S)
    assert clock.take_standstill() == 0.0
    before = clock.now()
    clock.wait(5.0)
    machine.now += 63.0
    assert clock.turn() == pytest.approx(before), "how much of the wait was over is unknown: none of it counts"
    assert clock.take_standstill() == pytest.approx(63.0) and clock.take_standstill() == 0.0


def test_a_loop_that_is_always_a_little_late_still_measures_its_waits(machine: Machine) -> None:
    clock = RunningClock(machine)
    for _ in range(10):
        clock.wait(0.9)
        machine.now += 0.9 + 2 * LATE_S
        clock.turn()
    assert clock.now() == pytest.approx(1_009.0), "a hang is noticed on a busy machine too"
    assert clock.take_standstill() == pytest.approx(20 * LATE_S)


def test_a_standstill_in_the_middle_of_the_work_is_noticed_at_the_next_step(machine: Machine) -> None:
    clock = RunningClock(machine)
    clock.wait(5.0)
    machine.now += 0.001
    clock.turn()
    machine.now += 3_600.0
    assert clock.turn() == pytest.approx(1_000.001)
    machine.now += LATE_S / 2
    assert clock.turn() == pytest.approx(1_000.001 + LATE_S / 2), "work that takes its time is no standstill"


def test_a_long_start_is_no_standstill(machine: Machine) -> None:
    clock = RunningClock(machine)
    machine.now += 30.0
    clock.start()
    clock.wait(1.0)
    machine.now += 1.0
    clock.turn()
    assert clock.take_standstill() == 0.0
