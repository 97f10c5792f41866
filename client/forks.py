"""Connections in a forked process: gunicorn with --preload, uWSGI, Celery's and multiprocessing's pools fork a process
that may have a client.

ZeroMQ's threads do not exist in the child, and its descriptors are shared with the parent: a wait in the child never
ends, and a byte that it writes can abort the parent. So the child never touches an inherited connection, not even to
close it; a client that is used in the child makes a connection of its own. The child only closes its copies of the
descriptors that lead to the daemon: otherwise the daemon would not see the end of the parent's connection, and would
finish its abandoned jobs, for as long as a child lives.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any, Protocol
from weakref import WeakKeyDictionary


class Lockable(Protocol):
    """A client with a lock that a thread may have held at the fork."""

    def after_fork(self) -> None:
        """In the child, before anything else runs: make a new lock."""


#: The addresses that the connections of this process lead to, and the clients with locks.
_addresses: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_clients: WeakKeyDictionary[Lockable, None] = WeakKeyDictionary()


def follow(connection: object, address: str) -> None:
    """Remember that ``connection`` leads to this endpoint, a ``tcp://`` one with a numeric address."""
    path = address.removeprefix("ipc://")
    _addresses[connection] = path if path == address or path.startswith("@") else os.path.realpath(path)


def renew_lock_of(client: Lockable) -> None:
    """Call ``client.after_fork`` in each forked process."""
    _clients[client] = None


def _after_fork() -> None:
    for client in list(_clients):
        client.after_fork()
    wanted = set(_addresses.values())
    _addresses.clear()
    if not wanted:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode) and _peer(int(name)) in wanted:
                    os.close(int(name))


def _peer(fd: int) -> str:
    """The endpoint that a socket is connected to, as ``follow`` notes it; ``""`` for another kind."""
    duplicate = socket.socket(fileno=os.dup(fd))
    try:
        peer = duplicate.getpeername()
    finally:
        duplicate.close()
    if duplicate.family == socket.AF_UNIX:
        return f"@{peer[1:].decode(errors='surrogateescape')}" if isinstance(peer, bytes) else os.path.realpath(peer)
    if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    host, port = peer[0].removeprefix("::ffff:"), peer[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


os.register_at_fork(after_in_child=_after_fork)
