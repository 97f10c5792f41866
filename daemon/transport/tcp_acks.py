"""How much of what was sent by a TCP connection the other host has taken."""

from __future__ import annotations

import os
import socket
import struct

#: ``tcpi_bytes_acked`` of struct tcp_info (linux/tcp.h, since Linux 4.2).
_OFFSET = 120
_SIZE = _OFFSET + 8


def acknowledged(fd: int) -> int:
    """The bytes of the connection's whole life that the other host has acknowledged; -1 for a descriptor of no such."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except OSError:
        return -1
    return int(struct.unpack_from("=Q", info, _OFFSET)[0]) if len(info) >= _SIZE else -1
