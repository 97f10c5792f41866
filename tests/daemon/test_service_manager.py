"""The notifications that systemd receives from the daemon, through a real socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmtts.daemon.core.api.lifecycle import Summary
from glmtts.daemon.service.systemd import ServiceManager, inherited

from ..support.systemd import Systemd

Make = Callable[..., ServiceManager]
IDLE = Summary(state="running", ready=1, starting=0, workers=1, running=0, waiting=0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@glmtts-test-{os.getpid()}")
    yield listening
    listening.close()


@pytest.fixture
def manager_of(systemd: Systemd) -> Iterator[Make]:
    """Makes a daemon's side, with ``environment`` beside NOTIFY_SOCKET."""
    made: list[ServiceManager] = []

    def make(clock: Clock | None = None, **environment: str) -> ServiceManager:
        made.append(ServiceManager({"NOTIFY_SOCKET": systemd.address} | environment, clock or Clock()))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def turn(manager: ServiceManager, summary: Summary = IDLE, *, stopping: bool = False, well: bool = True) -> None:
    manager.turn(lambda: summary, stopping, lambda: well)


def test_systemd_hears_when_the_daemon_answers_and_its_status(systemd: Systemd, manager_of: Make) -> None:
    manager = manager_of()
    manager.starting("taking up the journal")
    turn(manager)
    turn(manager)
    assert systemd.heard() == [
        ["STATUS=Starting: taking up the journal", "EXTEND_TIMEOUT_USEC=20000000"],
        ["READY=1", "STATUS=1 of 1 worker ready; 0 jobs running, 0 waiting"],
    ]


def test_a_status_is_sent_within_a_second_and_once(systemd: Systemd, manager_of: Make) -> None:
    clock = Clock()
    manager = manager_of(clock)
    turn(manager)
    systemd.heard()
    busy = Summary(
        "running", ready=1, starting=1, workers=2, running=1, waiting=3, alerts=("it is on fire", "so is it")
    )
    turn(manager, busy)
    assert systemd.heard() == []
    assert manager.next_due() == clock.now + 1.0
    clock.now += 1.0
    turn(manager, busy)
    turn(manager, busy)
    words = "STATUS=1 of 2 workers ready, 1 loading; 1 job running, 3 waiting; 2 alerts: it is on fire"
    assert systemd.heard() == [[words]]
    clock.now += 1.0
    turn(manager, busy)
    assert systemd.heard() == [] and manager.next_due() is None


def test_an_endless_alert_does_not_fill_the_status() -> None:
    words = Summary("draining", 0, 0, 0, 0, 0, alerts=("x" * 5_000,)).in_words()
    assert words.startswith("draining; no worker") and len(words) < 300


def test_a_healthy_loop_feeds_its_own_watchdog_and_a_sick_one_does_not(systemd: Systemd, manager_of: Make) -> None:
    clock = Clock()
    manager = manager_of(clock, WATCHDOG_USEC="9000000", WATCHDOG_PID=str(os.getpid()))
    assert manager.watches
    fed = []
    for well in (True, True, False, False, True):
        turn(manager, well=well)
        fed.append(["WATCHDOG=1"] in systemd.heard())
        due = manager.next_due()
        assert due is not None
        clock.now = clock.now + 3.0
        assert due <= clock.now
    assert fed == [True, True, False, False, True]
    other = manager_of(clock, WATCHDOG_USEC="9000000", WATCHDOG_PID="1")
    assert not other.watches
    turn(other)
    assert ["WATCHDOG=1"] not in systemd.heard()


def test_a_loop_that_turns_often_feeds_the_watchdog_no_more_often_than_it_needs(
    systemd: Systemd, manager_of: Make
) -> None:
    clock = Clock()
    manager = manager_of(clock, WATCHDOG_USEC="9000000")
    count = 0
    for _ in range(900):
        turn(manager)
        clock.now += 0.01
        count += systemd.heard().count(["WATCHDOG=1"])
    assert count == 3


def test_a_drain_asks_for_the_time_that_it_needs(systemd: Systemd, manager_of: Make) -> None:
    clock = Clock()
    manager = manager_of(clock)
    turn(manager)
    clock.now += 2.0
    left = Summary("stopping", ready=1, starting=0, workers=1, running=1, waiting=0)
    systemd.heard()
    turn(manager, left, stopping=True)
    assert systemd.heard() == [
        [
            "STOPPING=1",
            "EXTEND_TIMEOUT_USEC=20000000",
            "STATUS=Stopping; 1 of 1 worker ready; 1 job running, 0 waiting",
        ]
    ]
    for _ in range(10):
        due = manager.next_due()
        assert due is not None and due <= clock.now + 5.0
        clock.now = due
        turn(manager, left, stopping=True)
    assert systemd.heard().count(["EXTEND_TIMEOUT_USEC=20000000"]) >= 9


def test_a_reload_is_notified_with_its_time_and_its_end(systemd: Systemd, manager_of: Make) -> None:
    manager = manager_of()
    manager.reloading()
    manager.reloaded()
    assert systemd.heard() == [], "before it is ready it has nothing to reload"
    turn(manager)
    systemd.heard()
    manager.reloading()
    manager.reloading()
    manager.reloaded()
    (first, at), (again, _) = systemd.heard()
    assert first == again == "RELOADING=1" and at.startswith("MONOTONIC_USEC=") and at[15:].isdecimal()
    manager.reloaded()
    assert systemd.heard() == [["READY=1"]]


def test_a_slow_manager_does_not_block_the_daemon_and_receives_the_rest_later(
    systemd: Systemd, manager_of: Make
) -> None:
    manager = manager_of()
    for number in range(40):
        manager.starting(str(number))
    heard = systemd.heard()
    assert len(heard) < 40, "its queue is longer than this test assumes"
    while len(heard) < 40:
        turn(manager)
        more = systemd.heard()
        assert more
        heard += more
    assert [lines[0] for lines in heard[:40]] == [f"STATUS=Starting: {number}" for number in range(40)]


def test_a_manager_that_is_gone_is_logged_and_survived(systemd: Systemd, manager_of: Make) -> None:
    manager = manager_of()
    systemd.close()
    turn(manager)
    assert manager.problem.startswith("NOTIFY_SOCKET: Connection refused")


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_service_manager_nothing_is_sent_and_nothing_waits(environment: dict[str, str]) -> None:
    manager = ServiceManager(environment, Clock())
    turn(manager)
    assert not manager.wanted and not manager.watches and manager.next_due() is None
    assert bool(manager.problem) == bool(environment.get("NOTIFY_SOCKET"))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "requests"},
        {"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "1", "LISTEN_PID": "me"},
    ],
)
def test_sockets_of_another_process_are_not_taken(environment: dict[str, str]) -> None:
    assert inherited(environment) == {}
