"""A worker's end of the workers' socket: messages in and out, and which jobs are still wanted."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable

import zmq

from glmtts.protocol.worker import (
    AddText,
    CancelJob,
    Check,
    ResumeJob,
    SpeakJob,
    StopWorker,
    SupervisorMessage,
    SuspendJob,
    Trim,
    WorkerMessage,
    decode_to_worker,
    encode,
)

#: Messages that may wait for a slow supervisor: at 64 KiB each, how far a stream can be ahead.
_SEND_HWM = 32
#: How long the last messages may take to leave when the process ends.
_LINGER_MS = 2_000
#: Larger bodies are handed to ZeroMQ without a copy.
_ZERO_COPY_BYTES = 256 * 1024

#: What next_task returns.
Task = SpeakJob | ResumeJob | CancelJob | Check | Trim | StopWorker


class SupervisorConnection:
    """Owns the socket, the inbox of tasks, and the state of each known job: current, suspended, cancelled.

    A cancellation or suspension of an unknown job has no effect. Used from the main thread alone.
    """

    def __init__(self, endpoint: str, *, watched: bool = False) -> None:
        """``watched``: :meth:`until_connected` will be called."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(zmq.SNDHWM, _SEND_HWM)
        self._monitor: zmq.Socket[bytes] | None = None
        if watched:
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(endpoint)
        # ZeroMQ's poll sleeps on after a signal; this pipe, which the signal writes to, wakes it.
        self._wakeup_fd, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wakeup_fd, zmq.POLLIN)
        self._inbox: deque[tuple[Task, bytes | None]] = deque()
        self._current = ""
        self._suspended: set[str] = set()
        #: Of the current job and of those in the inbox: the jobs to cancel, and the jobs to suspend.
        self._cancelled: set[str] = set()
        self._to_suspend: set[str] = set()
        #: Texts that the current job, suspended ones and those in the inbox have not taken yet.
        self._texts: dict[str, list[AddText]] = {}
        self._terminated = False

    def until_connected(self) -> None:
        """Wait for the first connection, after which no other can be needed: without its daemon a worker ends."""
        if self._monitor is not None:
            self._monitor.recv_multipart()
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def terminate(self) -> None:
        """Cancel everything; for SIGTERM's handler."""
        self._terminated = True

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM came."""
        return self._terminated

    def next_task(self) -> tuple[Task, bytes | None] | None:
        """Wait for the next task and its body; None after SIGTERM.

        The current job must have ended or be suspended. A ResumeJob or CancelJob is returned for a suspended job only,
        which is not suspended any more.
        """
        self._forget(self._current)
        self._texts.pop(self._current, None)
        self._current = ""
        while not self._terminated:
            if not self._inbox:
                # One message at a time: those behind it are read while the worker is busy, or afterwards.
                if not self._receive_one():
                    self._wait()
                continue
            task, body = self._inbox.popleft()
            if isinstance(task, ResumeJob | CancelJob):
                if task.job not in self._suspended:
                    self._forget(task.job)
                    continue
                self._suspended.discard(task.job)
                if isinstance(task, CancelJob):
                    self._texts.pop(task.job, None)
            if isinstance(task, SpeakJob | ResumeJob):
                self._current = task.job
            return task, body
        return None

    def suspend(self) -> None:
        """The current job is now suspended; next_task returns its resumption or cancellation."""
        self._forget(self._current)
        self._suspended.add(self._current)
        self._current = ""

    def wanted(self, job: str) -> bool:
        """Whether no message read so far has cancelled the job, nor SIGTERM all jobs."""
        return not self._terminated and job not in self._cancelled

    def suspension_requested(self, job: str) -> bool:
        """Whether a message read so far asks to suspend the job at its next segment boundary."""
        return job in self._to_suspend

    def take_cancelled_suspended(self) -> list[str]:
        """Suspended jobs whose cancellation is in the inbox, each once; next_task will not return them."""
        found = [task.job for task, _ in self._inbox if type(task) is CancelJob]
        if found:
            self._inbox = deque(entry for entry in self._inbox if type(entry[0]) is not CancelJob)
            found = [job for job in dict.fromkeys(found) if job in self._suspended]
            self._suspended.difference_update(found)
            for job in found:
                self._texts.pop(job, None)
        return found

    def has_text(self, job: str) -> bool:
        """Whether there is a text that the job has not taken, among the messages read so far."""
        return job in self._texts

    def take_texts(self, job: str) -> list[AddText]:
        """The texts of the current job that have come since it last took them, after a look at what has arrived."""
        self.poll()
        return self._texts.pop(job, [])

    def poll(self) -> None:
        """Read what has arrived, without waiting. Raises WorkerProtocolError."""
        while self._receive_one():
            pass

    def send(
        self,
        message: WorkerMessage,
        body: bytes | memoryview | None = None,
        *,
        until: Callable[[], bool] | None = None,
    ) -> bool:
        """Send a message; if the supervisor reads slowly, wait for room and read its messages meanwhile.

        Returns False, without having sent it, if ``until()`` becomes true during that wait.
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
        """Send a message that may be lost: it is dropped if there is no room."""
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            pass

    def send_raw(self, frame: bytes) -> None:
        """Send bytes unencoded, for the fault engine's ``garbage``."""
        self._socket.send(frame)

    def close(self) -> None:
        """Wait up to two seconds for the sent messages to leave."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()
        self._context.term()

    def _receive_one(self) -> bool:
        # Asking costs a tenth of the exception for an empty socket.
        if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            return False
        header = self._socket.recv(zmq.NOBLOCK)
        body = self._socket.recv() if self._socket.get(zmq.RCVMORE) else None
        self._take(decode_to_worker(header), body)
        return True

    def _take(self, message: SupervisorMessage, body: bytes | None) -> None:
        match message:
            case CancelJob() if self._will_be_spoken(message.job):
                self._cancelled.add(message.job)
            case CancelJob() if message.job not in self._suspended:
                pass
            case AddText():
                if message.job in self._suspended or self._will_be_spoken(message.job):
                    self._texts.setdefault(message.job, []).append(message)
            case SuspendJob():
                if self._will_be_spoken(message.job):
                    self._to_suspend.add(message.job)
            case _:
                self._inbox.append((message, body))

    def _will_be_spoken(self, job: str) -> bool:
        """Whether it is the current job, or will be before any message that arrives now is handled."""
        return job == self._current or any(
            isinstance(task, SpeakJob | ResumeJob) and task.job == job for task, _ in self._inbox
        )

    def _forget(self, job: str) -> None:
        self._cancelled.discard(job)
        self._to_suspend.discard(job)

    def _wait(self) -> None:
        for source, _ in self._poller.poll():
            if source == self._wakeup_fd:
                os.read(self._wakeup_fd, 4_096)
