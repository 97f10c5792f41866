"""The breaker opens when workers keep failing, lets one try again, and forgets nothing but what was proved."""

from __future__ import annotations

from glmtts.daemon.core.workers.circuit_breaker import BreakerState, CircuitBreaker


def test_so_many_faults_in_a_window_open_it_and_no_fewer() -> None:
    breaker = CircuitBreaker()
    assert [breaker.fault(at, 3, 60.0) for at in (0.0, 1.0, 2.0)] == [False, False, True]
    assert (breaker.state, breaker.since) == (BreakerState.OPEN, 2.0)
    # Further faults are counted, and do not open it again.
    assert not breaker.fault(3.0, 1, 60.0)
    assert (breaker.faults, breaker.openings) == (4, 1)


def test_faults_that_are_far_apart_do_not_add_up() -> None:
    breaker = CircuitBreaker()
    for at in range(0, 6_000, 31):
        assert not breaker.fault(float(at), 3, 60.0)
    assert breaker.faults == 2


def test_a_model_that_takes_minutes_to_load_and_fails_opens_it_like_one_that_takes_none() -> None:
    breaker = CircuitBreaker()
    assert not breaker.fault(300.0, 3, 60.0, (0.0, 300.0))
    assert not breaker.fault(601.0, 3, 60.0, (301.0, 601.0))
    assert breaker.fault(903.0, 3, 60.0, (603.0, 903.0))


def test_what_was_loaded_before_the_last_fault_is_no_reason_to_remember_that_longer() -> None:
    breaker = CircuitBreaker()
    breaker.fault(0.0, 2, 60.0)
    assert not breaker.fault(100.0, 2, 60.0, (-400.0, -100.0))
    # Of this one's loading only the last fifty seconds lie between the two.
    assert not breaker.fault(211.0, 2, 60.0, (50.0, 150.0))
    assert breaker.fault(321.0, 2, 60.0, (150.0, 261.0))


def test_a_job_that_was_spoken_between_them_takes_back_earlier_faults() -> None:
    breaker = CircuitBreaker()
    breaker.fault(0.0, 2, 60.0)
    assert not breaker.proof()
    assert not breaker.fault(1.0, 2, 60.0)


def test_the_probe_decides_a_half_open_one() -> None:
    breaker = CircuitBreaker()
    breaker.fault(0.0, 1, 60.0)
    breaker.pause_over()
    assert breaker.state is BreakerState.HALF_OPEN
    # The probe's fault alone is enough.
    assert breaker.fault(500.0, 5, 60.0)
    assert (breaker.state, breaker.openings, breaker.since) == (BreakerState.OPEN, 2, 0.0)
    breaker.pause_over()
    assert breaker.proof()
    assert (breaker.state, breaker.openings, breaker.faults) == (BreakerState.CLOSED, 0, 0)


def test_a_pause_that_ends_late_does_not_open_a_closed_one() -> None:
    breaker = CircuitBreaker()
    breaker.pause_over()
    assert breaker.state is BreakerState.CLOSED


def test_a_storm_of_faults_takes_no_memory_without_end() -> None:
    breaker = CircuitBreaker()
    for _ in range(5_000):
        breaker.fault(0.0, 100_000, 60.0)
    assert breaker.faults == 1_000
