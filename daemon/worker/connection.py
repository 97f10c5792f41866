"""A worker's end of the workers' socket: messages in and out, and the wait for either."""

from __future__ import annotations

import math
import os
import signal
from collections import deque
from collections.abc import Iterator

import zmq

from glmtts.protocol.worker import (
    AudioChunk,
    SegmentDone,
    SupervisorMessage,
    WorkerMessage,
    decode_to_worker,
    encode,
)

#: Messages that may wait for a slow supervisor: at 64 KiB each, how far streams can be ahead.
_SEND_HWM = 32
#: How long the last messages may take to leave when the process ends.
_LINGER_MS = 2_000
_POLLIN = int(zmq.POLLIN)
#: Larger bodies are handed to ZeroMQ without a copy.
_ZERO_COPY_BYTES = 256 * 1024


class SupervisorConnection:
    """Owns the socket, and the messages that it has no room for, in their order. Used from the main thread alone.

    Its user makes nothing more for a job with unsent messages, so they are few.
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
        self._unsent: deque[tuple[WorkerMessage, bytes | memoryview | None]] = deque()
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

    def receive(self) -> Iterator[tuple[SupervisorMessage, bytes | None]]:
        """The messages that have arrived, with their bodies, without waiting. Raises WorkerProtocolError."""
        # Asking costs a tenth of the exception for an empty socket.
        while int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            header = self._socket.recv(zmq.NOBLOCK)
            body = self._socket.recv() if self._socket.get(zmq.RCVMORE) else None
            yield decode_to_worker(header), body

    def send(self, message: WorkerMessage, body: bytes | memoryview | None = None) -> None:
        """Send a message. If the supervisor reads slowly, it is sent later, by :meth:`flush`."""
        if self._unsent or not self._send(message, body):
            self._unsent.append((message, body))

    def try_send(self, message: WorkerMessage) -> None:
        """Send a message that may be lost: it is dropped if there is no room."""
        if not self._unsent:
            self._send(message, None)

    def flush(self) -> bool:
        """Send what there is room for now. Returns whether all is sent."""
        while self._unsent and self._send(*self._unsent[0]):
            self._unsent.popleft()
        return not self._unsent

    def has_unsent(self, job: str) -> bool:
        """Whether a message about the job waits for room."""
        return bool(self._unsent) and any(getattr(message, "job", "") == job for message, _ in self._unsent)

    def drop_audio(self, job: str) -> None:
        """Forget the unsent audio of a job that ends as cancelled or failed."""
        if self._unsent:
            lost = [one for one in self._unsent if isinstance(one[0], AudioChunk | SegmentDone) and one[0].job == job]
            for one in lost:
                self._unsent.remove(one)

    def wait(self, timeout_s: float | None, *fds: int | None) -> None:
        """Wait for a message, room for an unsent one, a signal, or a descriptor of ``fds``, always the same ones."""
        if self._unsent:
            self._poller.modify(self._socket, zmq.POLLIN | zmq.POLLOUT)
        for fd in fds:
            if fd is not None:
                self._poller.register(fd, zmq.POLLIN)
        for source, _ in self._poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1e3)):
            if source == self._wakeup_fd:
                os.read(self._wakeup_fd, 4_096)
        if self._unsent:
            self._poller.modify(self._socket, zmq.POLLIN)

    def send_raw(self, frame: bytes) -> None:
        """Send bytes unencoded, for the fault engine's ``garbage``."""
        self._socket.send(frame)

    def close(self) -> None:
        """Send the rest, and wait up to two seconds for it to leave."""
        while not self.flush():
            self._socket.poll(None, zmq.POLLOUT)
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
        self._socket.close()
        self._context.term()

    def _send(self, message: WorkerMessage, body: bytes | memoryview | None) -> bool:
        """Send a message, unless there is no room. Returns whether it was sent."""
        header = encode(message)
        try:
            if body is None:
                self._socket.send(header, zmq.NOBLOCK)
            else:
                # ZeroMQ refuses a message at its first part or takes it whole: the second send never blocks.
                self._socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
                self._socket.send(body, 0, copy=len(body) < _ZERO_COPY_BYTES)
        except zmq.Again:
            return False
        return True
