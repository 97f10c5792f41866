"""A bug of the daemon costs the request that met it, at once and in plain words, and nobody else anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Daemon


class DaemonWithBugs(Daemon):
    program = (str(Path(__file__).with_name("daemon_with_bugs.py")),)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One with a single worker, which is given up after a minute without a word."""
    daemon = DaemonWithBugs({"workers": {"max": 1, "hang_timeout_s": 60.0}})
    try:
        daemon.until_ready()
        yield daemon
        daemon.stop()
    finally:
        daemon.clear_away()


@pytest.mark.parametrize("words", ["not admitted", "not made", "not noted", "not told"])
def test_a_request_that_meets_a_bug_is_answered_once_and_the_same_worker_speaks_the_next(
    daemon: Daemon, words: str
) -> None:
    (before,) = daemon.workers()
    errors = daemon.status()["internal_errors"]
    with contextlib.closing(daemon.client()) as client:
        met = client.send("synthesize", text=f"this is {words}")
        others = [client.send("synthesize", text=f"sentence {number}") for number in range(3)]
        told, _ = client.all(met, patience_s=10.0)
        assert told[-1]["event"] == "error" and told[-1]["code"] == "unavailable", told
        assert "internal error" in told[-1]["message"] and told[-1]["retryable"]
        for other in others:
            assert client.all(other, patience_s=10.0)[0][-1]["event"] == "done"
        assert client.ask("ping")["event"] == "pong"  # and no second end of the first comes before it
        assert not client._waiting.get(met)
    (after,) = daemon.workers()
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    # Nor does it count as being at a job that was never sent to it.
    assert (after["state"], after["jobs"]) == ("ready", [])
    assert daemon.status()["internal_errors"] == errors + 1
    daemon.until_logged("internal error", "daemon_with_bugs.py")
