"""A worker's end of the workers socket: what comes in, what goes out, and what is still wanted of the jobs it has."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable

import zmq

from glmtts.protocol.worker import (
    CancelJob,
    Check,
    Job,
    ResumeJob,
    StopWorker,
    SupervisorMessage,
    SuspendJob,
    Trim,
    WorkerMessage,
    decode_to_worker,
    encode,
)

#: Messages that may wait for a supervisor that is slow to read: at 64 KiB each, what a stream can be ahead.
_SEND_HWM = 32
#: How long the last messages may take to leave when the process ends.
_LINGER_MS = 2_000
#: What next_message hands up.
Task = Job | ResumeJob | CancelJob | Check | Trim | StopWorker

#: Larger bodies are handed to ZeroMQ without copying them.
_ZERO_COPY_BYTES = 256 * 1024


class Wire:
    """Messages to and from the supervisor. Used from the main thread alone."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(zmq.SNDHWM, _SEND_HWM)
        self._socket.connect(endpoint)
        # ZeroMQ's poll sleeps on after a signal: this pipe, which the signal writes to, wakes it.
        self._wakeup_fd, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wakeup_fd, zmq.POLLIN)
        self._inbox: deque[tuple[Task, bytes | None]] = deque()
        self._body: bytes | None = None
        self._current = ""
        self._aside: set[str] = set()
        #: Of the job at hand and of those that are to be spoken next: which are to end, and to be put aside.
        self._cancelled: set[str] = set()
        self._to_suspend: set[str] = set()
        self._terminated = False

    def terminate(self) -> None:
        """From SIGTERM's handler: nothing is wanted any more."""
        self._terminated = True

    @property
    def terminated(self) -> bool:
        return self._terminated

    def next_message(self) -> Task | None:
        """The next thing to do; sleeps until there is one. None when the process was told to end by SIGTERM.

        Whoever asks has ended the job at hand, or has put it aside. A ResumeJob or CancelJob handed up is of a job that
        was put aside, and is no more.
        """
        self._forget(self._current)
        self._current = ""
        while not self._terminated:
            if not self._inbox:
                # One message at a time: what came behind it is read while it is worked on, or after it.
                if not self._receive_one():
                    self._wait()
                continue
            message, self._body = self._inbox.popleft()
            if isinstance(message, ResumeJob | CancelJob):
                if message.job not in self._aside:
                    self._forget(message.job)
                    continue
                self._aside.discard(message.job)
            if isinstance(message, Job | ResumeJob):
                self._current = message.job
            return message
        return None

    def put_aside(self) -> None:
        """The job at hand is put aside, and can be gone on with: what comes for it from now on is handed up."""
        self._forget(self._current)
        self._aside.add(self._current)
        self._current = ""

    def take_body(self) -> bytes | None:
        """The body of the message that was last returned, once."""
        body, self._body = self._body, None
        return body

    def wanted(self, job: str) -> bool:
        """Whether a job that is spoken is still wanted, as far as was read."""
        return not self._terminated and job not in self._cancelled

    def to_suspend(self, job: str) -> bool:
        """Whether a job that is spoken is to be put aside at its next border, as far as was read."""
        return job in self._to_suspend

    def take_cancelled_aside(self) -> list[str]:
        """The jobs put aside that are cancelled, each once: what next_message would hand up of them."""
        found = [message.job for message, _ in self._inbox if type(message) is CancelJob]
        if found:
            self._inbox = deque(entry for entry in self._inbox if type(entry[0]) is not CancelJob)
            found = [job for job in dict.fromkeys(found) if job in self._aside]
            self._aside.difference_update(found)
        return found

    def poll(self) -> None:
        """Read what has come in, without waiting. Raises WorkerProtocolError."""
        while self._receive_one():
            pass

    def send(
        self, message: WorkerMessage, body: bytes | None = None, *, until: Callable[[], bool] | None = None
    ) -> bool:
        """Send; where the supervisor is slow, wait until there is room, and read meanwhile what it says.

        Gives up, and returns False, when ``until()`` turns true in that time.
        """
        header = encode(message)
        while True:
            try:
                if body is None:
                    self._socket.send(header, zmq.NOBLOCK)
                else:
                    # ZeroMQ refuses a message at its first part or takes it whole: the second send never blocks.
                    self._socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
                    self._socket.send(body, 0, copy=len(body) < _ZERO_COPY_BYTES)
                return True
            except zmq.Again:
                pass
            if until is not None and until():
                return False
            self._poller.modify(self._socket, zmq.POLLIN | zmq.POLLOUT)
            self._wait()
            self._poller.modify(self._socket, zmq.POLLIN)
            self.poll()

    def try_send(self, message: WorkerMessage) -> None:
        """Send if there is room; else the supervisor has enough to read, and can do without it."""
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            pass

    def send_raw(self, frame: bytes) -> None:
        """Put any bytes on the wire: for the fault engine's ``garbage``."""
        self._socket.send(frame)

    def close(self) -> None:
        """Wait, for a bounded time, until what was sent has left."""
        self._socket.close()
        self._context.term()

    def _receive_one(self) -> bool:
        # Asking costs a tenth of the exception that says there is none.
        if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            return False
        header = self._socket.recv(zmq.NOBLOCK)
        body = self._socket.recv() if self._socket.get(zmq.RCVMORE) else None
        self._take(decode_to_worker(header), body)
        return True

    def _take(self, message: SupervisorMessage, body: bytes | None) -> None:
        # Of a job that is not here (any more) nothing is said.
        match message:
            case CancelJob() if self._is_spoken(message.job):
                self._cancelled.add(message.job)
            case CancelJob() if message.job not in self._aside:
                pass
            case SuspendJob():
                if self._is_spoken(message.job):
                    self._to_suspend.add(message.job)
            case _:
                self._inbox.append((message, body))

    def _is_spoken(self, job: str) -> bool:
        """Whether it is the job at hand, or will be before anything that comes in now is looked at."""
        return job == self._current or any(
            isinstance(other, Job | ResumeJob) and other.job == job for other, _ in self._inbox
        )

    def _forget(self, job: str) -> None:
        self._cancelled.discard(job)
        self._to_suspend.discard(job)

    def _wait(self) -> None:
        for source, _ in self._poller.poll():
            if source == self._wakeup_fd:
                os.read(self._wakeup_fd, 4_096)
