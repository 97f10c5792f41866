"""How a daemon starts and ends: accepted jobs are finished or answered, no process stays, no second one serves."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial

import pytest

from .conftest import Daemon, Start

# --- the end


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop"])
def test_a_stop_finishes_what_was_accepted_and_takes_no_more(start: Start, how: str) -> None:
    daemon = start()
    client = daemon.client()
    with daemon.workers_stand_still():
        ids = [client.send("synthesize", text=f"job {n}") for n in range(3)]
        client.until(ids[0], "started")
        client.until(ids[2], "accepted")
        if how == "stop":
            answer = daemon.control("stop")
            assert answer["state"] == "stopping" and answer["left"] == 3
        else:
            daemon.process.send_signal(getattr(signal, how))
        daemon.until(lambda: "daemon is stopping" in daemon.log(), "it stops")
        assert client.refused("synthesize", text="too late")["code"] == "shutting_down"
    for id in ids:
        events, audio = client.all(id)
        assert events[-1]["event"] == "done" and audio[:4] == b"RIFF"
    assert daemon.process.wait(20) == 0
    daemon.until_nothing_is_left()
    assert [p.name for p in daemon.runtime.iterdir()] == ["lock"]


def contains(daemon: Daemon, words: str) -> bool:
    return words in daemon.log()


@pytest.mark.parametrize("how", ["SIGTERM", "stop"])
def test_a_second_stop_ends_at_once_and_tells_everybody(start: Start, how: str) -> None:
    daemon = start()
    client = daemon.client()
    ids = [client.send("synthesize", text=f"job {n}", options={"fault": "hang_gil"}) for n in range(2)]
    client.until(ids[0], "started")
    client.until(ids[1], "accepted")
    begun = time.monotonic()
    for count in (1, 2):
        if how == "stop":
            daemon.control("stop")
        else:
            daemon.process.send_signal(getattr(signal, how))
        said = "daemon is stopping" if count == 1 else "stops at once"
        daemon.until(partial(contains, daemon, said), said)
    for id in ids:
        error = client.all(id)[0][-1]
        assert error["code"] == "shutting_down" and error["retryable"]
    # Far less than it would wait for the jobs.
    assert daemon.process.wait(20) == 0 and time.monotonic() - begun < 10
    daemon.until_nothing_is_left()


def test_a_stop_does_not_wait_for_longer_than_it_may(start: Start) -> None:
    daemon = start(daemon={"drain_timeout_s": 0.3}, workers={"stop_timeout_s": 0.3})
    client = daemon.client()
    id = client.send("synthesize", text="endless", options={"fault": "hang_gil"})
    client.until(id, "started")
    begun = time.monotonic()
    daemon.process.terminate()
    assert client.all(id)[0][-1]["code"] == "shutting_down"
    assert daemon.process.wait(20) == 0 and 0.3 <= time.monotonic() - begun < 10
    daemon.until_nothing_is_left()


# --- starting


def test_a_second_daemon_on_the_same_folder_is_refused_and_the_first_unharmed(start: Start) -> None:
    daemon = start()
    second = daemon.launch()
    assert second.wait(10) == 69
    assert f"pid {daemon.process.pid}" in daemon.log() and "another daemon" in daemon.log()
    daemon.client().speak()


def test_a_wrong_configuration_is_refused_at_the_start(start: Start) -> None:
    daemon = start()
    daemon.stop()
    daemon.configure({"workers": {"maxx": 3}})
    assert daemon.launch().wait(10) == 78
    assert "workers.maxx" in daemon.log() and "Traceback" not in daemon.log()
    daemon.file.unlink()
    assert daemon.launch().wait(10) == 78
    assert "Traceback" not in daemon.log()


def test_a_folder_that_can_t_be_used_is_named(start: Start) -> None:
    daemon = start()
    daemon.stop()
    (daemon.runtime / "lock").unlink()
    daemon.runtime.rmdir()
    daemon.runtime.write_text("a file")
    assert daemon.launch().wait(10) == 69
    assert str(daemon.runtime) in daemon.log() and "Traceback" not in daemon.log()


def test_a_removed_runtime_folder_is_made_again_with_all_in_it(start: Start) -> None:
    daemon = start()
    here = daemon.client()
    here.speak("before")
    names = ("glmtts.sock", "control.sock", "events.sock", "workers.sock")
    modes = [(daemon.runtime / name).stat().st_mode for name in names]
    shutil.rmtree(daemon.runtime)
    # Connected clients notice nothing; new clients are served within seconds.
    here.speak("meanwhile")
    second = daemon.launch()
    assert second.wait(10) == 69
    daemon.until_logged(f"kill {daemon.process.pid}")
    whole = sorted((*names, "lock", "processes"))
    daemon.until(
        lambda: daemon.runtime.exists() and sorted(p.name for p in daemon.runtime.iterdir()) == whole,
        "all is there again",
    )
    assert [(daemon.runtime / name).stat().st_mode for name in names] == modes
    daemon.client().speak("after")
    os.kill(daemon.workers()[0]["pid"], signal.SIGKILL)
    daemon.client().speak("by a worker that came since")
    daemon.until(lambda: daemon.log().count("file was removed, and is made again") == 4, "each is logged")
    assert daemon.status()["internal_errors"] == 0
    daemon.stop()
    assert not [name for name in names if (daemon.runtime / name).exists()]
