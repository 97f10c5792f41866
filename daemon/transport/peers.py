"""Identifies the client at the other end of a connection, by SO_PEERCRED or by the key of the CURVE handshake.

The names of remote clients contain a colon, which names of local users can't contain.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from ..core.inputs import Client


class Peer(NamedTuple):
    """A client, and the fields that log lines about its connection have."""

    client: Client
    log: dict[str, Any]


#: Returns the sender of a frame; None when its key has been removed.
Identify = Callable[[zmq.Frame], Peer | None]
#: Returns whose connection a descriptor is as far as that is known before its first message: by uid or address.
HolderOf = Callable[[int], str]


class LocalPeers:
    """Users of this machine, as the kernel names them (SO_PEERCRED)."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}

    def __call__(self, frame: zmq.Frame) -> Peer:
        """``uid:1000``, with the user's name."""
        uid, pid = credentials(str(frame.get("Peer-Address")))
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = _user_name(uid)
        client = Client(f"uid:{uid}", user, operator=uid in (0, os.geteuid()))
        return Peer(client, {"uid": uid, "pid": pid})


def plain_tcp_peer(frame: zmq.Frame) -> Peer:
    """``tcp:ADDRESS``: all programs at one address count as one client."""
    peer = str(frame.get("Peer-Address"))
    # A local program may use any address of 127.0.0.0/8.
    address = "tcp:127.0.0.1" if peer.startswith("127.") else f"tcp:{peer}"
    return Peer(Client(address, address), {"client": address})


class CurvePeers:
    """Clients by the public key of their CURVE handshake. ``names`` may be replaced at any time."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def __call__(self, frame: zmq.Frame) -> Peer | None:
        """``curve:`` and the key in hexadecimal digits (Z85 has a slash, which sets a gateway's customers apart), with
        the user ``key:NAME``. None for a key that has been removed.
        """
        # The authenticator sets it; with CURVE, a peer can't.
        return self._named(str(frame.get("User-Id")), str(frame.get("Peer-Address")))

    def again(self, peer: Peer) -> Peer | None:
        """The same client by the current names; None when its key has been removed."""
        return self._named(peer.log["public_key"], peer.log["address"])

    def _named(self, key: str, address: str) -> Peer | None:
        name = self.names.get(key)
        if name is None:
            return None
        client = Client(f"curve:{z85.decode(key.encode('ascii')).hex()}", f"key:{name}")
        return Peer(client, {"client": client.user, "address": address, "public_key": key})


def local_holder(fd: int) -> str:
    """``uid:1000``, the name of the connection's client."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family != socket.AF_UNIX:
            return ""  # it has ended, and its descriptor is another connection's
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"uid:{uid}"
    return ""


def tcp_holder(fd: int) -> str:
    """``tcp:ADDRESS``; of IPv6 the network, since one host may use any address of it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return ""  # it has ended, and its descriptor is another connection's
        host = str(connection.getpeername()[0]).removeprefix("::ffff:")
        if ":" in host:
            network = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8]
            return f"tcp:{socket.inet_ntop(socket.AF_INET6, network + bytes(8))}/64"
        # A local program may use any address of 127.0.0.0/8.
        return "tcp:127.0.0.1" if host.startswith("127.") else f"tcp:{host}"
    return ""


def credentials(address: str) -> tuple[int, int]:
    """uid and pid of ``localhost:uid:gid:pid``, libzmq's form of SO_PEERCRED; -1, -1 for an unknown peer."""
    parts = address.split(":")
    if len(parts) == 4:
        with contextlib.suppress(ValueError):
            return int(parts[1]), int(parts[3])
    return -1, -1


def _user_name(uid: int) -> str:
    with contextlib.suppress(KeyError, OverflowError):
        name = pwd.getpwuid(uid).pw_name
        # A directory service could return a name with a colon; those are reserved for remote clients.
        if ":" not in name:
            return name
    return str(uid)
