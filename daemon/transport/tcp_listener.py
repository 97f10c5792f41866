"""The requests socket for TCP, with CURVE where the daemon has a key, and the keys that may connect."""

from __future__ import annotations

from typing import Any

import zmq

from glmtts.protocol.keys import public_of

from ..config.tcp_access import Access
from ..log.logger import Logger
from ..loop import Loop
from .client_router import ClientRouter
from .listeners import TCP_THREAD, listen_tcp
from .peers import CurvePeers, plain_tcp_peer, tcp_holder
from .zap import Authenticator

#: The end of a host that vanished silently is noticed after the sum of both, in milliseconds.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS = 15_000, 40_000


class TcpListener:
    """Owns the TCP socket's router and the authenticator of its keys."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        access: Access,
        log: Logger,
        loop: Loop,
        **of_router: Any,
    ) -> None:
        """Listen; raises RuntimeDirError. ``of_router``: arguments of ClientRouter."""
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
            self._authenticator = Authenticator(context, access.names, log, loop.clock)
            self._peers = CurvePeers(access.names)
            loop.watch(self._authenticator.socket, self._authenticator.answer)
            options += [
                (zmq.CURVE_SERVER, 1),
                (zmq.CURVE_SECRETKEY, access.secret.encode("ascii")),
                (zmq.ZAP_DOMAIN, b"glmtts"),
                # Without it ZeroMQ admits every key when no authenticator answers.
                (zmq.ZAP_ENFORCE_DOMAIN, 1),
            ]
            self._warn_if_empty(access)
        self.router = ClientRouter(
            context,
            listener,
            self.address.endpoint,
            identify=self._peers or plain_tcp_peer,
            holder_of=tcp_holder,
            options=options,
            encrypts=access.secret is not None,
            **of_router,
        )

    def admit(self, access: Access | None) -> str:
        """Admit these keys from now on, and disconnect all others at once.

        The address and the daemon's own key stay the same until a restart. Returns the file of the admitted keys, or
        ``""`` if none applies: TCP is to be closed, or is not encrypted.
        """
        if access is None:
            return ""
        if access.secret != self._access.secret:
            reason = "the daemon keeps the key that it started with until a restart"
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
        """For the log: the endpoint, and the public key that clients need."""
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
        """Close the authenticator; only after the router, whose handshakes wait for its answers."""
        if self._authenticator is not None:
            self._authenticator.close()

    def _warn_if_empty(self, access: Access) -> None:
        if not access.names:
            reason = f"{access.authorised_keys} has no keys; add one with 'glmttsctl key add NAME PUBLICKEY'"
            self._log.warning("no client can connect by TCP", reason=reason)
