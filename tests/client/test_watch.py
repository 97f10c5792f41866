"""The watch: events arrive by topic, a daemon that goes away is told, one that comes back is heard again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtts.client import ConnectionLost, DaemonNotRunning, GlmttsError, News, ProtocolError, Watch

from .scripted_daemon import Publisher

DEADLINE_S = 10.0


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/glmtts.sock"


@pytest.fixture
def watch(publisher: Publisher, endpoint: str) -> Iterator[Watch]:
    with Watch(["worker.", "alert."], endpoint) as made:
        assert {publisher.wait_for_listener(), publisher.wait_for_listener()} == {b"worker.", b"alert."}
        yield made


def test_what_was_asked_for_is_heard_and_nothing_else(publisher: Publisher, watch: Watch) -> None:
    publisher.say("job.done", job="j1")
    publisher.say("worker.failed", name="w1")
    publisher.say("alert.gpu", state="raised")
    assert watch.next(DEADLINE_S) == News("worker.failed", {"name": "w1"})
    assert next(iter(watch)) == News("alert.gpu", {"state": "raised"})
    assert watch.next(0) is None


def test_without_topics_everything_is_heard(publisher: Publisher, endpoint: str) -> None:
    with Watch(endpoint=endpoint) as watch:
        assert publisher.wait_for_listener() == b""
        publisher.say("daemon.draining")
        assert watch.next(DEADLINE_S) == News("daemon.draining", {})


def test_a_wait_ends_when_its_time_is_over(watch: Watch) -> None:
    began = time.monotonic()
    assert watch.next(0.2) is None
    assert 0.15 < time.monotonic() - began < DEADLINE_S


def test_a_daemon_that_comes_back_is_heard_again(publisher: Publisher, watch: Watch) -> None:
    publisher.say("worker.ready", name="w1")
    assert watch.next(DEADLINE_S)
    assert watch.connected
    assert watch.connections == 1
    publisher.stop()
    ends = time.monotonic() + DEADLINE_S
    while watch.connected and time.monotonic() < ends:
        assert watch.next(0.05) is None
    assert not watch.connected
    publisher.start()
    publisher.wait_for_listener()
    publisher.wait_for_listener()
    publisher.say("worker.ready", name="w2")
    assert watch.next(DEADLINE_S) == News("worker.ready", {"name": "w2"})
    assert watch.connections == 2


def test_a_daemon_that_stays_away_is_told_and_not_waited_for_for_ever(publisher: Publisher, endpoint: str) -> None:
    with Watch(endpoint=endpoint, reconnect_s=0.2) as watch:
        publisher.wait_for_listener()
        publisher.say("queue", waiting=1)
        assert watch.next(DEADLINE_S)
        publisher.stop()
        with pytest.raises(ConnectionLost, match="did not come back within"):
            watch.next(DEADLINE_S)


def test_no_daemon_is_said_at_once_with_what_to_do(endpoint: str) -> None:
    with pytest.raises(DaemonNotRunning, match="glmttsd"):
        Watch(endpoint=endpoint)


def test_another_machine_is_refused_in_words() -> None:
    with pytest.raises(GlmttsError, match="on the daemon's machine"):
        Watch(endpoint="tcp://10.0.0.1:5555")


@pytest.mark.parametrize(
    "frames", [(b"worker.x",), (b"worker.x", b"\xc1"), (b"worker.\xff", b"\x80"), (b"worker.x", b"\x90")]
)
def test_what_is_no_event_is_told_and_the_next_is_heard(
    publisher: Publisher, watch: Watch, frames: tuple[bytes, ...]
) -> None:
    publisher.send(*frames)
    publisher.say("worker.ready", name="w1")
    with pytest.raises(ProtocolError):
        watch.next(DEADLINE_S)
    assert watch.next(DEADLINE_S) == News("worker.ready", {"name": "w1"})


def test_closing_twice_is_fine(watch: Watch) -> None:
    watch.close()
    watch.close()
