"""A stand-in for systemd: the other end of NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import socket
import time


class Systemd:
    """Listens at ``address``, a path or an abstract socket (``@name``)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        #: The lines that :meth:`wait_for` has read.
        self.seen: list[str] = []

    def heard(self) -> list[list[str]]:
        """The lines of each datagram since the last call."""
        messages = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(self._socket.recv(4096).decode().split("\n"))
        return messages

    def wait_for(self, line: str, patience_s: float = 20.0) -> None:
        """Read until this line came."""
        deadline = time.monotonic() + patience_s
        while line not in self.seen:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                self.seen += self._socket.recv(4096).decode().split("\n")
            except TimeoutError:
                raise AssertionError(f"not sent within {patience_s} s: {line}; sent: {self.seen}") from None

    def forget(self) -> None:
        """Drop the lines that came so far."""
        self.heard()
        self.seen.clear()

    def close(self) -> None:
        self._socket.close()
