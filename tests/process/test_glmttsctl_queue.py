"""`glmttsctl queue`, `limits` and `cancel --client` against a real daemon with a full queue."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable

import pytest

from .conftest import Daemon
from .glmttsctl import answered, ctl

USER = getpass.getuser()
KEY = f"uid:{os.getuid()}"


@pytest.fixture
def filled(start: Callable[..., Daemon]) -> Daemon:
    """A paused daemon with a sentence and five lines of a book in its queue."""
    own = {"rate_batch": "1000/hour", "max_jobs": 7}
    daemon = start(limits={"rate": "30/minute", "clients": {USER: own}}, queue={"max_share": 0.8})
    daemon.control("pause")
    client = daemon.client()
    for number in range(5):
        client.until(client.send("synthesize", text=f"line {number}", priority="batch"), "accepted")
    client.until(client.send("synthesize", text="a sentence"), "accepted")
    return daemon


def test_the_queue_is_shown_by_class_by_client_and_in_its_order(filled: Daemon) -> None:
    queue = answered(filled, "queue")
    assert queue["paused"] is True
    assert (queue["classes"]["batch"]["waiting"], queue["classes"]["interactive"]["waiting"]) == (5, 1)
    (client,) = queue["clients"]
    assert (client["client"], client["user"], client["waiting"]) == (KEY, USER, 6)
    assert len(queue["jobs"]) == 6 and queue["more"] == 0
    assert {job["job"] for job in answered(filled, "queue", "--limit", "2")["jobs"]} <= {
        j["job"] for j in queue["jobs"]
    }
    words = ctl(filled, "queue").stdout
    assert words.startswith("PAUSED: no job starts until `glmttsctl resume`; 6 jobs wait, 0 run.")
    assert USER in words and "100 %" in words
    assert len(answered(filled, "queue", "--client", USER)["jobs"]) == 6
    assert answered(filled, "queue", "--client", "nobody-at-all")["jobs"] == []
    assert len(answered(filled, "jobs", "--client", USER, "--state", "waiting")["jobs"]) == 6
    assert all(job["user"] == USER for job in answered(filled, "jobs", "--all")["jobs"])


def test_limits_of_its_own_are_shown_and_kept_to(filled: Daemon) -> None:
    (row,) = answered(filled, "limits", USER)["clients"]
    assert (row["own"], row["rate_batch"], row["jobs"], row["max_jobs"]) == (True, "1000/hour", 6, 7)
    assert row["waiting_batch"] == 5 and row["waiting"] == 1
    shown = answered(filled, "limits")
    general, journal = shown["limits"], shown["tables"]["journal"]
    assert journal == {"held": 0, "most": 75_000, "clients": 0, "share": 75_000}
    assert general["rate"] == "30/minute" and general["max_share"] == 0.8
    words = ctl(filled, "limits").stdout
    assert "own limits" in words and "30/minute (vip, interactive)" in words and "6/7" in words
    client = filled.client()
    client.until(client.send("synthesize", text="the seventh", priority="batch"), "accepted")
    assert client.refused("synthesize", text="the eighth", priority="batch")["code"] == "queue_full"


@pytest.mark.parametrize("name", [USER, KEY])
def test_all_jobs_of_a_client_are_cancelled_but_not_without_a_yes(filled: Daemon, name: str) -> None:
    refused = ctl(filled, "cancel", "--client", name)
    assert refused.returncode == 2 and "--yes" in refused.stderr
    assert filled.status()["queue"]["waiting"] == 6
    assert answered(filled, "cancel", "--client", name, "--yes")["cancelled"] == 6
    assert filled.status()["queue"]["waiting"] == 0
    nothing = ctl(filled, "cancel", "--client", name)
    assert nothing.returncode == 0 and "no waiting or running job" in nothing.stdout
