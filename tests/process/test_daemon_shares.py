"""What all clients share, connections, unread data, the outputs' disk: one client can't take it from the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .conftest import Daemon, Event, Start, another_user

#: 48 kB a second.
PCM: dict[str, Any] = {"format": "pcm_s16le"}


def alert(daemon: Daemon, name: str) -> str:
    """The message of an alert, once it is raised."""

    def found() -> list[Event]:
        return [raised for raised in daemon.status()["alerts"] if raised["name"] == name]

    daemon.until(found, f"{name} is raised", 12)
    return str(found()[0]["message"])


def test_a_user_with_every_connection_shuts_no_other_user_out(start: Start) -> None:
    daemon = start(limits={"max_connections": 16}, daemon={"socket_mode": "0666"})
    with another_user():
        # They don't come back: as whom they would do that depends on the moment.
        crowd = []
        for _ in range(18):
            crowd.append(daemon.client(RECONNECT_IVL=-1))
            assert crowd[-1].ask("ping")["event"] == "pong"
    assert daemon.client().ask("ping")["event"] == "pong"
    daemon.client().speak("let me in")
    # The operator hears who it is, and the user who has them can still use some.
    assert "uid:65534" in alert(daemon, "connections")
    held = {row["client"]: row["held"]["connections"] for row in daemon.control("limits")["clients"]}
    assert held["uid:65534"] >= 10 and held["uid:0"] >= 1
    # The user itself has lost those that it had used least lately.
    assert crowd[-1].ask("ping")["event"] == "pong"


def test_fetching_a_result_over_the_budget_costs_a_slow_reader_nothing(start: Start) -> None:
    daemon = start(limits={"send_buffer_mib": 4})
    client = daemon.client()
    done, audio = client.speak("large", priority="batch", options={"seconds": 200.0}, **PCM)
    assert len(audio) > 9 << 20
    slow = daemon.client(RCVHWM=1, RCVBUF=4_096)
    reading = slow.send("synthesize", text="slow", options={"seconds": 40.0}, **PCM)
    daemon.until(lambda: daemon.status()["counts"]["done"] == 2, "the slow reader's result is sent")
    # Twice at a time: the second waits for its turn on the disk.
    ids = [client.send("wait", job=done["job"]) for _ in range(2)]
    for id in ids:
        events, again = client.all(id)
        assert events[-1]["event"] == "done" and again == audio
    events, audio = slow.all(reading)
    assert events[-1]["event"] == "done" and len(audio) == 40 * 48_000
    assert daemon.status()["connections_ended_unread"] == 0


def test_a_client_that_fetches_and_does_not_read_holds_nobody_up(start: Start) -> None:
    daemon = start(limits={"send_buffer_mib": 2})
    client = daemon.client()
    done, audio = client.speak("large", priority="batch", options={"seconds": 120.0}, **PCM)
    deaf = daemon.client(RCVHWM=1, RCVBUF=4_096)
    for _ in range(20):  # ZeroMQ takes some answers for its program, and no more
        deaf.send("ping")
    deaf.send("wait", job=done["job"])
    daemon.until(lambda: daemon.control("limits")["tables"]["connections"]["held"] >= 2, "both are there")
    # Of one user one result goes out beyond the budget at a time; who does not read loses the turn after 10 s.
    fetched = client.send("wait", job=done["job"])
    events, again = client.all(fetched, patience_s=45)
    assert events[-1]["event"] == "done" and again == audio
    client.speak("and goes on")


def test_the_outputs_of_a_user_have_a_bound_and_others_still_write_theirs(start: Start) -> None:
    daemon = start(limits={"outputs_mib": 1}, daemon={"socket_mode": "0666"})
    client = daemon.client()
    size: dict[str, Any] = {"options": {"seconds": 8.0}, **PCM}  # 375 KiB
    for name in ("a.pcm", "b.pcm"):
        client.speak(output=name, **size)
    for durable in (False, True):
        refused = client.refused("synthesize", text="too much", output="c.pcm", durable=durable, **size)
        assert refused["code"] == "output_failed" and "outputs_mib" in refused["message"], refused
    folder = daemon.state / "outputs"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["a.pcm", "b.pcm"]
    client.speak("without a file")
    with another_user():
        other = daemon.client()
        other.speak(output="d.pcm", **size)
    held = {row["client"]: row["held"]["outputs"] for row in daemon.control("limits")["clients"]}
    assert held == {"uid:0": 768_000, "uid:65534": 384_000}
    # Whose the files are is known after a restart too, and room is found again when files are gone.
    daemon.stop()
    daemon.restart()
    client, deadline = daemon.client(), time.monotonic() + 20
    assert client.ask("synthesize", text="again", output="e.pcm", **size)["event"] == "error"
    for name in ("a.pcm", "b.pcm"):
        Path(folder, name).unlink()
    while client.ask("synthesize", text="again", output="e.pcm", **size)["event"] != "done":
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.1)
