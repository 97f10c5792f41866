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
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from glmtts.protocol.endpoints import CONTROL, EVENTS, MAX_PATH_BYTES, FoundEndpoint

from . import forks
from .addresses import is_numeric, reach
from .curve import Handshakes, Key, find_keys
from .errors import DaemonNotRunning, Forbidden, GlmttsError, TooLarge, UntrustedDaemon
from .protocol import MAX_BODY_BYTES, Core
from .room import check_room

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

#: An attempt to connect by TCP ends after this time, in milliseconds: the next one may go to another address.
_CONNECT_TIMEOUT_MS = 5_000

#: The least time between two look-ups of a daemon's name, in seconds.
_LOOK_UP_AGAIN_S = 1.0

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
    """Owns a DEALER connected to ``endpoint``, and its :class:`Core`. In a forked process it is dead (forks.py).

    ``reached``: what :func:`check_listening` has returned for the endpoint, if it was called already.

    Raises:
        DaemonNotRunning: nothing listens there.
        UntrustedDaemon: another user could listen there.
        GlmttsError: the keys can't be used, or the endpoint is none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        reconnect_s: float,
        server_key: Key | None = None,
        secret_key: Key | None = None,
        reached: str | None = None,
    ) -> None:
        keys = find_keys(endpoint, server_key, secret_key)
        check_room()
        self.endpoint = endpoint
        self._pid = os.getpid()
        #: The endpoint as ZeroMQ gets it, with an address in place of a name; and the search for another address.
        self._address = reached or check_listening(endpoint)
        self._search: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._searched_at = -math.inf
        self._searching: threading.Thread | None = None
        #: Whether ZeroMQ was disconnected from the endpoint.
        self._refused = False
        #: Whether the process at the other end of the present connection is trusted.
        self._trusted = False
        self.core = Core(endpoint, time.monotonic(), reconnect_s=reconnect_s)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = _LINGER_MS
        # Unsent messages end with their connection: the next one may be to another process.
        self.socket.immediate = True
        self.socket.rcvhwm = _RECEIVE_AHEAD
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = RECONNECT_MS
        self.socket.tcp_keepalive = 1
        self.socket.ipv6 = True
        if endpoint.startswith("tcp://"):
            self.socket.connect_timeout = _CONNECT_TIMEOUT_MS
            self.socket.rcvhwm = _RECEIVE_AHEAD_TCP
            self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = _HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS
        if keys is not None:
            self.socket.curve_serverkey = keys.server.encode("ascii")
            self.socket.curve_publickey = keys.public.encode("ascii")
            self.socket.curve_secretkey = keys.secret.encode("ascii")
        self._handshakes = Handshakes(endpoint, keys)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CONNECT_RETRIED
            | _HANDSHAKE_FAILED
        )
        try:
            self.socket.connect(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise GlmttsError(f"{endpoint!r} is no endpoint that can be connected to: {error}.") from None
        forks.follow(self, self._address)

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one that made the connection, and may not touch it."""
        return self._pid != os.getpid()

    def check(self, reached: str | None = None) -> None:
        """Before a new request: look for a daemon that was given up. Raises DaemonNotRunning."""
        if self.core.gave_up:
            self._go_to(reached or check_listening(self.endpoint))
            self.core.try_again(time.monotonic())

    def _go_to(self, address: str) -> None:
        """Connect to this address of the daemon, instead of another one."""
        if address != self._address or self._refused:
            self._disconnect()
            self._address, self._refused = address, False
            self.socket.connect(address)
            forks.follow(self, address)

    def _disconnect(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # ZeroMQ may have disconnected already
            self.socket.disconnect(self._address)

    def _look_again(self) -> None:
        """While the daemon is away: see in a thread whether its name leads elsewhere now."""
        host, port = _host_and_port(self.endpoint)
        if port is None or self._refused or is_numeric(host):
            return
        with contextlib.suppress(queue.Empty):
            self._go_to(self._search.get_nowait())
        if self._searching is not None and self._searching.is_alive():
            return
        if (now := time.monotonic()) >= self._searched_at + _LOOK_UP_AGAIN_S:
            self._searched_at = now
            self._searching = threading.Thread(target=_search, args=(host, port, self._search), daemon=True)
            self._searching.start()

    def flush(self) -> None:
        """Send as much as can be sent now."""
        if self.core.outgoing and not self.inherited:
            # The daemon may have gone, and another process come, since the last step.
            self._hear_news()
            self._send()

    def _send(self) -> None:
        core = self.core
        while core.connected and core.outgoing:
            try:
                self.socket.send_multipart(core.outgoing[0].frames, zmq.NOBLOCK)
            except zmq.Again:
                return
            core.message_sent()

    def step(self, most: int) -> bool:
        """Receive up to ``most`` messages and all changes of the connection, and send. True if there may be more."""
        if self.inherited:
            return False
        # Before the messages: those of a process that is not trusted must not be read.
        self._hear_news()
        for _ in range(most):
            if not self._receive():
                break
        else:
            return True
        if self.core.give_up_at is not None:
            self.core.give_up_at = extended(self.core.give_up_at)
        self.core.tick(time.monotonic())
        self._send()
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
        news = list(self._news())
        for event, value in news:
            # ZeroMQ connects again by itself, perhaps to another process.
            if event == zmq.EVENT_CONNECTED and (why := untrusted(self.endpoint, value)):
                self._refuse(why)
                return
        for event, value in news:
            if event & _HANDSHAKE_FAILED:
                if why_not := self._handshakes.failed(event, value):
                    self._refuse(why_not)
            elif event == zmq.EVENT_CONNECTED:
                self._trusted = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._trusted:
                self._handshakes.succeeded()
                self.core.connection_made()
            elif event == zmq.EVENT_DISCONNECTED:
                self._trusted = False
                while self._receive():  # the last messages may have the end of a job
                    pass
                self.core.connection_broke(time.monotonic())
        if news and news[-1][0] == zmq.EVENT_CONNECT_RETRIED:
            self._look_again()

    def _news(self) -> Iterator[tuple[int, int]]:
        # Asking costs a tenth of the exception for an empty socket.
        while int(self.monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            yield MONITOR_FRAME.unpack(self.monitor.recv_multipart(zmq.NOBLOCK)[0])

    def _refuse(self, why: GlmttsError) -> None:
        self._refused = True
        self._trusted = False
        self._disconnect()
        self.core.refused(why)

    def poll(self, wait_s: float, wakes: int | None = None) -> None:
        """Wait until :meth:`step` has something to do, at most ``wait_s`` seconds, or the descriptor ``wakes`` can be
        read. Raises GlmttsError after a fork."""
        if self.inherited:
            raise GlmttsError("This call began before the process was forked, and the answer goes to that process.")
        poller = zmq.Poller()
        backlog = self.core.connected and self.core.outgoing
        poller.register(self.socket, zmq.POLLIN | zmq.POLLOUT if backlog else zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        if wakes is not None:
            poller.register(wakes, zmq.POLLIN)
        poller.poll(math.ceil(max(0.0, min(wait_s, _LONGEST_POLL_S)) * 1_000))

    def close(self) -> None:
        """Send the cancels of abandoned jobs, within half a second, and close."""
        if not self.socket.closed and not self.inherited:
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


def check_listening(endpoint: str) -> str:
    """Check that a daemon listens at ``endpoint``: ZeroMQ itself would try for ever, in silence.

    Takes up to 3 s for ``tcp://`` and as long again for a name, no time for ``ipc://``. Returns the endpoint with the
    address that answers in place of a name.

    Raises:
        DaemonNotRunning: nothing listens there.
        UntrustedDaemon: another user could listen there.
        Forbidden: this user may not connect.
    """
    if isinstance(endpoint, FoundEndpoint) and (problem := endpoint.problem()):
        raise UntrustedDaemon(endpoint, problem)
    try:
        if endpoint.startswith("ipc://"):
            _probe_ipc(endpoint, endpoint.removeprefix("ipc://"))
        elif endpoint.startswith("tcp://"):
            host, port = _host_and_port(endpoint)
            if port is None:
                raise GlmttsError(f"{endpoint!r} is no endpoint that can be connected to: it names no port.")
            return reach(host, port)
    except PermissionError as error:
        if endpoint.startswith("tcp://"):  # a firewall
            raise DaemonNotRunning(endpoint, str(error.strerror)) from None
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
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DaemonNotRunning(endpoint, reason) from None
    return endpoint


def _host_and_port(endpoint: str) -> tuple[str, int | None]:
    """The parts of a ``tcp://`` endpoint; the port is None where there is none, or for ``ipc://``."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_tcp = endpoint.startswith("tcp://") and port.isascii() and port.isdecimal()
    return host.strip("[]"), int(port) if is_tcp else None


def _search(host: str, port: int, found: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(OSError, OverflowError):  # not there yet
        found.put(reach(host, port))


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
        else:
            if isinstance(endpoint, FoundEndpoint) and (problem := endpoint.problem_of_peer(probe)):
                raise UntrustedDaemon(endpoint, problem)


def untrusted(endpoint: str, descriptor: int) -> UntrustedDaemon | None:
    """The error if a connection that ZeroMQ has made to ``endpoint`` must not be used; None if it may be."""
    if not isinstance(endpoint, FoundEndpoint):
        return None
    problem = endpoint.problem()
    if not problem:
        # ZeroMQ may have closed it since. The folder then decides alone: no stranger can make a socket in it.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connected:
            problem = endpoint.problem_of_peer(connected)
    return UntrustedDaemon(endpoint, problem) if problem else None


def read_recording(prompt: str | os.PathLike[str] | bytes | None) -> bytes | None:
    """The bytes of a recording: ``prompt`` itself, or those of the file or pipe that it names.

    Raises OSError, and TooLarge for a file that no daemon accepts, of which no more is read.
    """
    if prompt is None or isinstance(prompt, bytes):
        return prompt
    if isinstance(prompt, bytearray | memoryview):
        return bytes(prompt)
    with Path(prompt).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        recording = b"" if size > MAX_BODY_BYTES else file.read(MAX_BODY_BYTES + 1)
    if max(size, len(recording)) > MAX_BODY_BYTES:
        raise TooLarge(f"{os.fspath(prompt)!r} has more than the {MAX_BODY_BYTES >> 20} MiB that any daemon accepts")
    return recording
