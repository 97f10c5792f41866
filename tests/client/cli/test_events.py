"""`glmttsctl events`: lines for people, JSON for programs, and an end that disturbs nobody."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..scripted_daemon import DEADLINE_S, Publisher
from .conftest import Ctl

WhenHeard = Callable[[Callable[[], object]], None]
Running = Callable[..., subprocess.Popen[str]]

FAILED: dict[str, Any] = {
    "name": "w1",
    "pid": None,
    "reason": "",
    "rss": 2**30,
    "age_s": 12.3,
    "last_death": {"cause": "crashed", "detail": "killed by SIGSEGV \x1b[31m显存", "ago_s": 0.0},
}


@pytest.fixture
def when_heard(publisher: Publisher) -> Iterator[WhenHeard]:
    """Does something as soon as the command listens."""
    threads = []

    def plan(act: Callable[[], object]) -> None:
        def run() -> None:
            publisher.wait_for_listener()
            act()

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield plan
    for thread in threads:
        thread.join(DEADLINE_S)


def test_an_event_is_a_line_with_its_time_topic_and_values(
    ctl: Ctl, publisher: Publisher, when_heard: WhenHeard
) -> None:
    when_heard(lambda: publisher.say("worker.failed", **FAILED))
    result = ctl("events", "worker.", "--count", 1)
    assert result.exit_code == 0, result.output
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  worker\.failed +name=w1 ", result.stdout)
    assert 'rss="1.00 GiB"' in result.stdout and 'age_s="12.3 s"' in result.stdout
    assert "cause crashed, detail killed by SIGSEGV 显存" in result.stdout
    assert "pid" not in result.stdout and "reason" not in result.stdout and "\x1b" not in result.stdout
    assert result.stdout.count("\n") == 1


def test_a_program_gets_every_event_as_an_object_of_its_own(
    ctl: Ctl, publisher: Publisher, when_heard: WhenHeard
) -> None:
    def tell() -> None:
        for n in range(3):
            publisher.say("queue", waiting=n, id="kept")

    when_heard(tell)
    result = ctl("events", "--json", "--count", 3)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["values"] for event in found] == [{"waiting": n, "id": "kept"} for n in range(3)]
    assert all(event["topic"] == "queue" and event["time"] > 1e9 for event in found)


@pytest.mark.usefixtures("publisher")
def test_listening_for_a_time_ends_well_and_missing_events_are_124(ctl: Ctl) -> None:
    assert ctl("events", "--timeout", "0.2").exit_code == 0
    result = ctl("events", "--timeout", "0.2", "--count", "1")
    assert result.exit_code == 124 and "0 of 1" in result.stderr


def test_the_end_of_the_daemon_ends_it_with_3(ctl: Ctl, publisher: Publisher, when_heard: WhenHeard) -> None:
    when_heard(publisher.stop)
    result = ctl("events")
    assert result.exit_code == 3 and "went away" in result.stderr


@pytest.fixture
def running(publisher: Publisher) -> Iterator[Running]:
    """The command as a process of its own."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("glmttsctl")), "events", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLMTTS_ENDPOINT": f"ipc://{publisher.path.parent}/glmtts.sock"},
        )
        started.append(process)
        assert publisher.wait_for_listener() == b""
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_follow_goes_on_when_the_daemon_was_restarted(running: Running, publisher: Publisher) -> None:
    process = running("-f")
    assert process.stdout is not None and process.stderr is not None
    publisher.say("daemon.draining")
    assert "daemon.draining" in process.stdout.readline()
    publisher.stop()
    assert "waiting" in process.stderr.readline()
    publisher.start()
    publisher.wait_for_listener()
    publisher.say("worker.ready", name="w1")
    assert "worker.ready" in process.stdout.readline()
    assert "is back" in process.stderr.readline()


def test_ctrl_c_ends_it_without_a_word(running: Running, publisher: Publisher) -> None:
    process = running("-f")
    assert process.stdout is not None and process.stderr is not None
    publisher.say("queue", waiting=1)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_reader_that_has_read_enough_ends_it_without_a_word(running: Running, publisher: Publisher) -> None:
    process = running("-f")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    publisher.say("queue", waiting=1)
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr.read() == ""
