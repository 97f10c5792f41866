"""The requests socket for TCP, with CURVE where the daemon has a key, and who may use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from glmtts.protocol.keys import public_of

from ..config.tcp_access import Access
from ..log.logger import Logger
from .client_router import ClientRouter
from .listeners import TCP_THREAD, listen_tcp
from .peers import CurvePeers, plain_tcp_peer
from .zap import Authenticator

#: A host that vanished without a word is noticed after both together, in milliseconds.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 15_000, 40_000


class TcpRequests:
    """``router`` is watched by the loop like every other; ``watch`` is for what this has beside it."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        access: Access,
        log: Logger,
        clock: Callable[[], float],
        *,
        watch: Callable[[Any, Callable[[], None]], None],
        first_number: int,
        body_bytes: int,
        send_buffer_bytes: int,
        max_connections: int,
    ) -> None:
        """Listen. Raises RuntimeDirError."""
        self._access = access
        self._log = log
        self._authenticator: Authenticator | None = None
        self._peers: CurvePeers | None = None
        listener, self.address = listen_tcp(access.address)
        options: list[tuple[int, int | bytes]] = [
            (zmq.IPV6, int(access.address.is_ipv6)),
            (zmq.AFFINITY, TCP_THREAD),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS),
        ]
        if access.secret is not None:
            self._authenticator = Authenticator(context, access.names, log, clock)
            self._peers = CurvePeers(access.names)
            watch(self._authenticator.socket, self._authenticator.answer)
            options += [
                (zmq.CURVE_SERVER, 1),
                (zmq.CURVE_SECRETKEY, access.secret.encode("ascii")),
                (zmq.ZAP_DOMAIN, b"glmtts"),
                # Without it ZeroMQ would admit everybody when nobody answers for the keys.
                (zmq.ZAP_ENFORCE_DOMAIN, 1),
            ]
            self._warn_if_empty(access)
        self.router = ClientRouter(
            context,
            listener,
            self.address.endpoint,
            identify=self._peers or plain_tcp_peer,
            first_number=first_number,
            body_bytes=body_bytes,
            send_buffer_bytes=send_buffer_bytes,
            max_connections=max_connections,
            options=options,
            encrypts=access.secret is not None,
        )

    def admit(self, access: Access | None) -> str:
        """The files were read again: from now on these keys may connect. Those of others are disconnected at once.

        The address and the daemon's own key stay as they are until a restart. Returns the file of the keys that may
        connect now, or ``""`` where none has been read: nothing is to listen any more, or nothing is encrypted.
        """
        if access is None:
            return ""
        if access.secret != self._access.secret:
            reason = "the daemon goes on with the one that it started with; restart it"
            self._log.warning("server key changed", reason=reason)
        if self._authenticator is None or self._peers is None:
            return ""
        if access.names == self._access.names:
            return str(access.authorised_keys)
        removed = self._access.names.keys() - access.names.keys()
        self._authenticator.names = self._peers.names = access.names
        self._log.info("authorised keys read", keys=len(access.names), removed=len(removed))
        self._warn_if_empty(access)
        self._access = Access(self._access.address, self._access.secret, access.names, access.authorised_keys)
        if removed:
            for connection in self.router.review(self._peers.again):
                reason = "its key is not in authorised_keys any more"
                self._log.info("client disconnected", **connection.peer.log, reason=reason)
        return str(access.authorised_keys)

    def described(self) -> dict[str, Any]:
        """For the log: where clients connect to, and the key that they need."""
        public = {} if self._access.secret is None else {"tcp_public_key": public_of(self._access.secret)}
        return {"tcp": self.address.endpoint, **public}

    def facts(self) -> dict[str, Any]:
        """For ``status``."""
        facts = {
            "endpoint": self.address.endpoint,
            "encrypted": self._authenticator is not None,
            "connections": self.router.connections,
            "handshakes_failed": self.router.handshakes_failed,
        }
        if self._authenticator is not None:
            facts |= {"keys": len(self._access.names), "keys_refused": self._authenticator.refused}
        return facts

    def close(self) -> None:
        """After the router: those who wait for an answer about their keys are its own."""
        if self._authenticator is not None:
            self._authenticator.close()

    def _warn_if_empty(self, access: Access) -> None:
        if not access.names:
            reason = f"{access.authorised_keys} has no keys, so nobody can: glmttsctl key add NAME PUBLICKEY"
            self._log.warning("nobody may connect by TCP", reason=reason)
