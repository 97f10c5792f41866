"""The sockets of one connection and their core, shared by the sync and the asyncio client. Only ``poll`` and ``close``
wait.

Requests are given to ZeroMQ only while the daemon is connected. In a queue of ZeroMQ's own they would be sent when the
daemon comes back, although their callers have given up.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from pathlib import Path

import zmq

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES

from .curve import Handshakes, Key, find_keys
from .errors import DaemonNotRunning, Forbidden, GlmttsError
from .protocol import Core

#: A closing client waits this long, in milliseconds, to send its last messages, such as a cancel.
_LINGER_MS = 500

#: Messages that ZeroMQ reads ahead. After them the daemon notices that this client does not read.
_RECEIVE_AHEAD = 64

#: The same by TCP: fewer, so that a client that reads at the speed of playback reads from the network every few seconds
#: and is not taken for a vanished host.
_RECEIVE_AHEAD_TCP = 16

#: A vanished host is noticed after both together, in milliseconds: the heartbeat, and the wait for its answer.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 15_000, 40_000

#: Pauses between attempts to reconnect, in milliseconds: the first, and the longest.
RECONNECT_MS = (50, 1_000)

_CONNECT_TIMEOUT_S = 3.0
_LONGEST_POLL_S = 3_600.0

#: A wait that ends this much later than it was to, in seconds: this process was stopped or frozen meanwhile.
_LATE_S = 0.5
#: Then it looks for this long, in seconds, for what has come in the meantime.
_LAST_LOOK_S = 1.0

#: A zmq_socket_monitor event: its number and a value (zmq_socket_monitor(3)).
MONITOR_FRAME = struct.Struct("=hi")


_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class DaemonConnection:
    """Owns a DEALER connected to ``endpoint``, and its :class:`Core`.

    Raises:
        DaemonNotRunning: nothing listens there.
        GlmttsError: the keys can't be used, or the endpoint is none.
    """

    def __init__(
        self, endpoint: str, *, reconnect_s: float, server_key: Key | None = None, secret_key: Key | None = None
    ) -> None:
        keys = find_keys(endpoint, server_key, secret_key)
        check_listening(endpoint)
        self.endpoint = endpoint
        #: Whether ZeroMQ was disconnected from the endpoint.
        self._refused = False
        self.core = Core(endpoint, time.monotonic(), reconnect_s=reconnect_s)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = _LINGER_MS
        self.socket.rcvhwm = _RECEIVE_AHEAD
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = RECONNECT_MS
        self.socket.tcp_keepalive = 1
        self.socket.ipv6 = True
        if endpoint.startswith("tcp://"):
            self.socket.rcvhwm = _RECEIVE_AHEAD_TCP
            self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = _HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS
        if keys is not None:
            self.socket.curve_serverkey = keys.server.encode("ascii")
            self.socket.curve_publickey = keys.public.encode("ascii")
            self.socket.curve_secretkey = keys.secret.encode("ascii")
        self._handshakes = Handshakes(endpoint, keys)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
        )
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise GlmttsError(f"{endpoint!r} is no endpoint that can be connected to: {error}.") from None

    def check(self) -> None:
        """Before a new request: look for a daemon that was given up. Raises DaemonNotRunning."""
        if self.core.gave_up:
            check_listening(self.endpoint)
            if self._refused:
                self.socket.connect(self.endpoint)
                self._refused = False
            self.core.try_again(time.monotonic())

    def flush(self) -> None:
        """Send as much as can be sent now."""
        core = self.core
        while core.connected and core.outgoing:
            try:
                self.socket.send_multipart(core.outgoing[0].frames, zmq.NOBLOCK)
            except zmq.Again:
                return
            core.message_sent()

    def step(self, most: int) -> bool:
        """Receive up to ``most`` messages and all changes of the connection, and send. True if there may be more."""
        for _ in range(most):
            if not self._receive():
                break
        else:
            return True
        self._hear_news()
        if self.core.give_up_at is not None:
            self.core.give_up_at = extended(self.core.give_up_at)
        self.core.tick(time.monotonic())
        self.flush()
        # A send consumes the signal that the descriptor gets for a received message: without another look now, an event
        # loop would not wake up for it.
        return bool(int(self.socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def _receive(self) -> bool:
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.core.receive(frames)
        return True

    def _hear_news(self) -> None:
        while True:
            try:
                event, value = MONITOR_FRAME.unpack(self.monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event & _HANDSHAKE_FAILED:
                if why := self._handshakes.failed(event, value):
                    self._refuse(why)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._handshakes.succeeded()
                self.core.connection_made()
            elif event == zmq.EVENT_DISCONNECTED:
                while self._receive():  # the last messages may have the end of a job
                    pass
                self.core.connection_broke(time.monotonic())

    def _refuse(self, why: GlmttsError) -> None:
        self._refused = True
        with contextlib.suppress(zmq.ZMQError):  # ZeroMQ may have disconnected already
            self.socket.disconnect(self.endpoint)
        self.core.refused(why)

    def poll(self, wait_s: float) -> None:
        """Wait until :meth:`step` has something to do, at most ``wait_s`` seconds."""
        poller = zmq.Poller()
        backlog = self.core.connected and self.core.outgoing
        poller.register(self.socket, zmq.POLLIN | zmq.POLLOUT if backlog else zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        poller.poll(math.ceil(max(0.0, min(wait_s, _LONGEST_POLL_S)) * 1_000))

    def close(self) -> None:
        """Send the cancels of abandoned jobs, within half a second, and close."""
        if not self.socket.closed:
            self.flush()
            deadline = time.monotonic() + _LINGER_MS / 1_000
            while self.core.connected and self.core.owes_cancel and (left := deadline - time.monotonic()) > 0:
                self.poll(left)
                self.step(_RECEIVE_AHEAD)
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close()
            self._context.term()


def extended(deadline: float) -> float:
    """A deadline by time.monotonic that has just been waited for; a later one if this process stood still meanwhile.

    The daemon's answer may be there, and ZeroMQ's thread, which stood still as well, has not read it yet.
    """
    now = time.monotonic()
    return now + _LAST_LOOK_S if now - deadline > _LATE_S else deadline


def check_listening(endpoint: str) -> None:
    """Check that a daemon listens at ``endpoint``: ZeroMQ itself would try for ever, in silence.

    Takes up to 3 s for ``tcp://``, no time for ``ipc://``.

    Raises:
        DaemonNotRunning: nothing listens there.
        Forbidden: this user may not connect.
    """
    try:
        if endpoint.startswith("ipc://"):
            _probe_ipc(endpoint, endpoint.removeprefix("ipc://"))
        elif endpoint.startswith("tcp://"):
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            if port.isascii() and port.isdecimal():  # otherwise ZeroMQ says what is wrong with it
                socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except PermissionError:
        whose, key = "the group that owns the socket", "socket_group"
        if endpoint.endswith((f"/{CONTROL}", f"/{EVENTS}")):
            whose, key = "the operators' group, or run this as the daemon's user or as root", "admin_group"
        raise Forbidden(
            f"This user may not open {endpoint}: an administrator has to add it to {whose} (`[daemon] {key}` in the "
            "daemon's configuration)"
        ) from None
    except FileNotFoundError:
        raise DaemonNotRunning(endpoint, "there is no such socket") from None
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise DaemonNotRunning(endpoint, reason) from None


def _probe_ipc(endpoint: str, path: str) -> None:
    address = f"\0{path[1:]}" if path.startswith("@") else path
    if len(os.fsencode(address)) > MAX_PATH_BYTES:
        raise GlmttsError(f"{endpoint} is longer than the {MAX_PATH_BYTES} bytes that a socket's path can have.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except BlockingIOError:
            pass  # its backlog is full: it listens
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                raise DaemonNotRunning(endpoint, "that file is no socket") from None
            raise


def read_recording(prompt: str | os.PathLike[str] | bytes | None) -> bytes | None:
    """The bytes of a reference recording: ``prompt`` itself, or the file that it names. Raises OSError."""
    if prompt is None or isinstance(prompt, bytes):
        return prompt
    if isinstance(prompt, bytearray | memoryview):
        return bytes(prompt)
    return Path(prompt).read_bytes()
