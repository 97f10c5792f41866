"""Accepts or refuses the keys of TCP clients: the ZAP handler (RFC 27), in the daemon's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import zmq
from zmq.utils import z85

from ..log.logger import Logger

#: The endpoint of ZAP requests. It has to be bound before a socket with CURVE is.
_ENDPOINT = "inproc://zeromq.zap.01"
#: Requests answered in one turn of the loop.
_BATCH = 64
#: Least time between two log lines about refusals, in seconds: any program that reaches the port can cause them.
_LOG_EVERY_S = 10.0


class Authenticator:
    """Owns the ZAP socket. ``names`` has the keys that may connect; a new value holds for later handshakes."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        names: Mapping[str, str],
        log: Logger,
        clock: Callable[[], float],
    ) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)
        self.names = names
        #: Number of handshakes refused for an unknown key.
        self.refused = 0
        self._log = log
        self._clock = clock
        self._log_from = 0.0
        self._unlogged = 0

    def answer(self) -> None:
        """Answer the requests that have arrived."""
        for _ in range(_BATCH):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._judge(request))

    def _judge(self, request: list[bytes]) -> list[bytes]:
        number = request[1] if len(request) > 1 else b""
        # version, number, domain, address, identity, mechanism, credentials: written by libzmq, not by a peer.
        if len(request) == 7 and request[0] == b"1.0" and request[5] == b"CURVE" and len(request[6]) == 32:
            key = z85.encode(request[6])
            if key.decode("ascii") in self.names:
                # Every message of this connection will carry the key as its User-Id.
                return [b"1.0", number, b"200", b"OK", key, b""]
            self._note_refusal(key.decode("ascii"), request[3].decode("ascii", "replace"))
        return [b"1.0", number, b"400", b"this key is not in the daemon's authorised_keys", b"", b""]

    def _note_refusal(self, key: str, address: str) -> None:
        self.refused += 1
        now = self._clock()
        if now < self._log_from:
            self._unlogged += 1
            return
        more = {"unlogged_before": self._unlogged} if self._unlogged else {}
        reason = "its key is not in authorised_keys: glmttsctl key add NAME PUBLICKEY admits it"
        self._log.warning("client refused", address=address, public_key=key, reason=reason, **more)
        self._log_from, self._unlogged = now + _LOG_EVERY_S, 0

    def close(self) -> None:
        """Close the socket. The sockets with CURVE must be closed before."""
        self.socket.close(0)
