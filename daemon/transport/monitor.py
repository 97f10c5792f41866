"""Reports of ZeroMQ's socket monitor: which connections of a socket have come and gone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zmq

#: A zmq_socket_monitor event: its number and a value (zmq_socket_monitor(3)). pyzmq's own parser loads asyncio, which
#: would delay the start.
_FRAME = struct.Struct("=hi")


def monitored(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """The monitor of a socket that is not bound yet."""
    return socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)


def read_events(monitor: zmq.Socket[bytes]) -> Iterator[tuple[int, int]]:
    """The events that have come, each with its value: a descriptor, except for failed handshakes."""
    while True:
        try:
            frames = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _FRAME.unpack(frames[0])
