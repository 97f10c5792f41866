"""In whatever order messages arrive, each job hears its own, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from glmtts.daemon.worker.connection import SupervisorConnection, Task
from glmtts.protocol.worker import (
    CancelJob,
    ResumeJob,
    SpeakJob,
    StopWorker,
    SupervisorMessage,
    Suspended,
    SuspendJob,
    Trim,
    encode,
)

DEADLINE_S = 10.0


class Supervisor:
    """The other end of the connection."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.set(zmq.LINGER, 0)
        endpoint = f"ipc://{folder}/w.sock"
        self._router.bind(endpoint)
        self.connection = SupervisorConnection(endpoint)
        self.connection.send(Suspended(job="hello"))
        assert self._router.poll(round(DEADLINE_S * 1e3))
        self._identity = self._router.recv_multipart()[0]

    def send(self, *messages: SupervisorMessage) -> None:
        for message in messages:
            self._router.send_multipart([self._identity, encode(message)])

    def until(self, condition: Callable[[], bool]) -> None:
        """The worker reads until the condition holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end
            self.connection.poll()

    def next(self) -> Task:
        received = self.connection.next_task()
        assert received is not None
        return received[0]

    def begin(self, name: str) -> None:
        self.send(
            SpeakJob(job=name, text="", voice=None, format="wav", sample_rate=None, stream=False, seed=0, options={})
        )
        task = self.next()
        assert isinstance(task, SpeakJob) and task.job == name

    def suspend(self, name: str) -> None:
        self.begin(name)
        self.send(SuspendJob(job=name))
        self.until(lambda: self.connection.suspension_requested(name))
        self.connection.suspend()
        assert not self.connection.suspension_requested(name)

    def close(self) -> None:
        self.connection.close()
        self._router.close()
        self._context.term()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    before = signal.set_wakeup_fd(-1)
    with contextlib.closing(Supervisor(tmp_path)) as supervisor:
        yield supervisor
    os.close(signal.set_wakeup_fd(before))
    os.close(supervisor.connection._wakeup_fd)


def test_a_cancellation_that_crosses_the_suspension_is_not_lost(supervisor: Supervisor) -> None:
    supervisor.suspend("a")
    supervisor.send(CancelJob(job="a"), SuspendJob(job="a"), Trim())
    assert supervisor.next() == CancelJob(job="a")
    assert isinstance(supervisor.next(), Trim)


def test_a_job_that_is_resumed_and_cancelled_at_once_is_not_wanted(supervisor: Supervisor) -> None:
    connection = supervisor.connection
    supervisor.suspend("a")
    supervisor.begin("b")
    supervisor.send(ResumeJob(job="a"), SuspendJob(job="a"), CancelJob(job="a"))
    supervisor.until(lambda: not connection.wanted("a"))
    assert connection.wanted("b") and not connection.suspension_requested("b")
    assert connection.take_cancelled_suspended() == []
    assert supervisor.next() == ResumeJob(job="a")
    assert not connection.wanted("a") and connection.suspension_requested("a")


def test_a_job_that_is_cancelled_and_then_resumed_ends_once(supervisor: Supervisor) -> None:
    supervisor.suspend("a")
    supervisor.send(CancelJob(job="a"), ResumeJob(job="a"), CancelJob(job="a"), Trim(), Trim())
    assert supervisor.next() == CancelJob(job="a")
    assert isinstance(supervisor.next(), Trim)


def test_suspended_jobs_can_be_cancelled_while_another_is_spoken(supervisor: Supervisor) -> None:
    connection = supervisor.connection
    for name in ("a", "b", "c"):
        supervisor.suspend(name)
    supervisor.begin("d")
    supervisor.send(*(CancelJob(job=name) for name in ("a", "c", "a", "unknown")), StopWorker(), SuspendJob(job="d"))
    supervisor.until(lambda: connection.suspension_requested("d"))
    assert connection.take_cancelled_suspended() == ["a", "c"] and connection.take_cancelled_suspended() == []
    assert connection.wanted("d")
    assert isinstance(supervisor.next(), StopWorker)


def test_jobs_that_have_ended_leave_nothing_behind(supervisor: Supervisor) -> None:
    connection = supervisor.connection
    for number in range(50):
        name = f"{number}"
        supervisor.suspend(name)
        supervisor.send(ResumeJob(job=name), SuspendJob(job=name), CancelJob(job=name), ResumeJob(job="unknown"))
        assert supervisor.next() == ResumeJob(job=name)
        supervisor.until(lambda name=name: not connection.wanted(name))  # type: ignore[misc]
        supervisor.send(SuspendJob(job=name), CancelJob(job=name), ResumeJob(job=name), CancelJob(job=name), Trim())
        assert isinstance(supervisor.next(), Trim)
    assert not (connection._cancelled or connection._to_suspend or connection._suspended or connection._inbox)
