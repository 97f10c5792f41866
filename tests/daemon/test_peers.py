"""The identity of a client: it can't choose it, and it never gets the rights of another client."""

from __future__ import annotations

import os
import pwd
import socket
from typing import Any

import pytest

from glmtts.daemon.transport.peers import CurvePeers, LocalPeers, local_holder, plain_tcp_peer, tcp_holder
from glmtts.protocol import keys


class Frame:
    """Stands for a message's frame: what ZeroMQ knows of the connection that it came from."""

    def __init__(self, **properties: str) -> None:
        self._properties = {name.replace("_", "-"): value for name, value in properties.items()}

    def get(self, name: str) -> str:
        return self._properties[name]


def client(identify: Any, **properties: str) -> Any:
    peer = identify(Frame(**properties))
    return peer and peer.client


def test_a_local_user_is_whom_the_kernel_names() -> None:
    local = LocalPeers()
    assert client(local, Peer_Address="localhost:0:0:77").operator is True
    stranger = client(local, Peer_Address="localhost:4000000:0:78")
    assert (stranger.key, stranger.user, stranger.operator) == ("uid:4000000", "4000000", False)
    assert client(local, Peer_Address="127.0.0.1").key == "uid:-1"


def test_no_name_of_a_directory_passes_for_that_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("key:alice", *entry[1:])))
    assert client(LocalPeers(), Peer_Address="localhost:1234:1:1").user == "1234"


def test_a_client_by_tcp_is_its_address_and_a_user_of_nothing() -> None:
    found = client(plain_tcp_peer, Peer_Address="127.0.0.1", User_Id="root")
    assert (found.key, found.user, found.operator) == ("tcp:127.0.0.1", "tcp:127.0.0.1", False)


def test_a_client_with_a_key_is_its_key_under_its_name() -> None:
    # With a slash in it: what follows one in a client's key is a gateway's customer.
    public = "a/" + keys.generate()[0][2:]
    peers = CurvePeers({public: "root"})
    found = client(peers, Peer_Address="10.0.0.1", User_Id=public)
    assert found.key.startswith("curve:") and len(found.key) == 70 and "/" not in found.key
    assert (found.user, found.operator) == ("key:root", False)
    peer: Any = peers(Frame(Peer_Address="10.0.0.1", User_Id=public))  # type: ignore[arg-type]
    peers.names = {public: "renamed"}
    again = peers.again(peer)
    assert again is not None and again.client.user == "key:renamed" and again.client.key == found.key
    peers.names = {}
    assert peers.again(peer) is None
    assert client(peers, Peer_Address="10.0.0.1", User_Id=public) is None


def test_a_descriptor_that_is_another_connection_s_by_now_belongs_to_no_client() -> None:
    """Between the report of a connection and the look at it, the connection may have ended."""
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_INET) as remote:
        read, write = os.pipe()
        for fd in (local.fileno(), read, 1 << 20):
            assert tcp_holder(fd) == ""
        for fd in (remote.fileno(), read, 1 << 20):
            assert local_holder(fd) == ""
        os.close(read)
        os.close(write)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert local_holder(ours.fileno()) == f"uid:{os.geteuid()}" and tcp_holder(ours.fileno()) == ""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert tcp_holder(client.fileno()) == "tcp:127.0.0.1"
