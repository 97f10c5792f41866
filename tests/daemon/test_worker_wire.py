"""daemon/worker/connection.py: in whatever order messages come, each job hears its own, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from glmtts.daemon.worker.connection import Wire
from glmtts.protocol.worker import (
    CancelJob,
    Job,
    ResumeJob,
    StopWorker,
    SupervisorMessage,
    Suspended,
    SuspendJob,
    Trim,
    encode,
)

DEADLINE_S = 10.0


class Supervisor:
    """The other end of the wire."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set(zmq.LINGER, 0)
        endpoint = f"ipc://{folder}/w.sock"
        self._router.bind(endpoint)
        self.wire = Wire(endpoint)
        self.wire.send(Suspended(job="hello"))
        assert self._router.poll(int(DEADLINE_S * 1e3))
        self._identity = self._router.recv_multipart()[0]

    def say(self, *messages: SupervisorMessage) -> None:
        for message in messages:
            self._router.send_multipart([self._identity, encode(message)])

    def heard(self, condition: Callable[[], bool]) -> None:
        """The wire reads until it knows something."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            self.wire.poll()

    def close(self) -> None:
        self.wire.close()
        self._router.close()
        self._context.term()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    before = signal.set_wakeup_fd(-1)
    with contextlib.closing(Supervisor(tmp_path)) as supervisor:
        yield supervisor
    os.close(signal.set_wakeup_fd(before))
    os.close(supervisor.wire._wakeup_fd)


def job(name: str) -> Job:
    return Job(job=name, text="", voice=None, format="wav", sample_rate=None, stream=False, seed=0, options={})


def begin(supervisor: Supervisor, name: str) -> None:
    supervisor.say(job(name))
    message = supervisor.wire.next_message()
    assert isinstance(message, Job) and message.job == name


def put_aside(supervisor: Supervisor, name: str) -> None:
    begin(supervisor, name)
    supervisor.say(SuspendJob(job=name))
    supervisor.heard(lambda: supervisor.wire.to_suspend(name))
    supervisor.wire.put_aside()
    assert not supervisor.wire.to_suspend(name)


def test_a_cancellation_while_a_job_says_that_it_is_put_aside_is_not_lost(supervisor: Supervisor) -> None:
    wire = supervisor.wire
    put_aside(supervisor, "a")
    supervisor.say(CancelJob(job="a"), SuspendJob(job="a"), Trim())
    assert wire.next_message() == CancelJob(job="a")
    assert isinstance(wire.next_message(), Trim)


def test_a_job_gone_on_with_and_cancelled_at_once_is_not_wanted(supervisor: Supervisor) -> None:
    wire = supervisor.wire
    put_aside(supervisor, "a")
    begin(supervisor, "b")
    supervisor.say(ResumeJob(job="a"), SuspendJob(job="a"), CancelJob(job="a"))
    supervisor.heard(lambda: not wire.wanted("a"))
    assert wire.wanted("b") and not wire.to_suspend("b") and wire.take_cancelled_aside() == []
    assert wire.next_message() == ResumeJob(job="a")
    assert not wire.wanted("a") and wire.to_suspend("a")


def test_a_job_cancelled_and_then_gone_on_with_is_ended_once(supervisor: Supervisor) -> None:
    wire = supervisor.wire
    put_aside(supervisor, "a")
    supervisor.say(CancelJob(job="a"), ResumeJob(job="a"), CancelJob(job="a"), Trim(), Trim())
    assert wire.next_message() == CancelJob(job="a")
    assert isinstance(wire.next_message(), Trim)


def test_cancelled_jobs_that_are_put_aside_are_told_while_another_is_spoken(supervisor: Supervisor) -> None:
    wire = supervisor.wire
    for name in ("a", "b", "c"):
        put_aside(supervisor, name)
    begin(supervisor, "d")
    supervisor.say(*(CancelJob(job=name) for name in ("a", "c", "a", "unknown")), StopWorker(), SuspendJob(job="d"))
    supervisor.heard(lambda: wire.to_suspend("d"))
    assert wire.take_cancelled_aside() == ["a", "c"] and wire.take_cancelled_aside() == []
    assert wire.wanted("d")
    assert isinstance(wire.next_message(), StopWorker)


def test_nothing_is_remembered_of_jobs_that_are_gone(supervisor: Supervisor) -> None:
    wire = supervisor.wire
    for number in range(50):
        name = f"{number}"
        put_aside(supervisor, name)
        supervisor.say(ResumeJob(job=name), SuspendJob(job=name), CancelJob(job=name), ResumeJob(job="unknown"))
        assert wire.next_message() == ResumeJob(job=name)
        supervisor.heard(lambda name=name: not wire.wanted(name))  # type: ignore[misc]
        supervisor.say(SuspendJob(job=name), CancelJob(job=name), ResumeJob(job=name), CancelJob(job=name), Trim())
        assert isinstance(wire.next_message(), Trim)
    assert not (wire._cancelled or wire._to_suspend or wire._aside or wire._inbox)
