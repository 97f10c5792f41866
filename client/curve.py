"""The keys of a connection by TCP, and the reasons why a handshake fails."""

from __future__ import annotations

import os
from typing import NamedTuple

import zmq

from glmtts.protocol import keys
from glmtts.protocol.keys import KeyProblem

from .errors import Forbidden, GlmttsError, HandshakeFailed

#: A key: its 40 characters, or the path of the file that holds it.
Key = str | os.PathLike[str]

SERVER_KEY, SECRET_KEY = "GLMTTS_SERVER_KEY", "GLMTTS_SECRET_KEY"

#: zmq.h: the two sides use different mechanisms.
_MECHANISM_MISMATCH = 0x11000002

#: Handshakes that fail without a reason until the daemon's key is taken for a wrong one: a daemon may also end at that
#: moment, or have too many connections.
_MAX_UNEXPLAINED = 3


_CLOSED = "the connection is closed in the handshake"
_NO_KEYS = (
    f"connections are encrypted, and this client has no keys: set server_key ({SERVER_KEY}) to the daemon's public key "
    f"and secret_key ({SECRET_KEY}) to one that `glmttsctl key new NAME` makes"
)
_NO_ENCRYPTION = (
    "the daemon has no key, but this client has: leave its keys out, or have `glmttsctl key server` make one"
)


class CurveKeys(NamedTuple):
    """The daemon's public key, and this client's pair."""

    server: str
    public: str
    secret: str


def find_keys(endpoint: str, server_key: Key | None, secret_key: Key | None) -> CurveKeys | None:
    """The keys for a connection to ``endpoint``: the given ones, else those of the environment; None without any.

    Raises GlmttsError when one is missing or can't be read.
    """
    if not endpoint.startswith("tcp://"):
        if server_key is not None or secret_key is not None:
            raise GlmttsError(f"Keys are only for tcp://, and {endpoint} needs none; leave them out.")
        return None
    server_key = server_key or os.environ.get(SERVER_KEY) or None
    secret_key = secret_key or os.environ.get(SECRET_KEY) or None
    if server_key is None and secret_key is None:
        return None
    if server_key is None or secret_key is None:
        missing = f"server_key ({SERVER_KEY})" if server_key is None else f"secret_key ({SECRET_KEY})"
        raise GlmttsError(f"An encrypted connection needs two keys, and {missing} is missing.")
    try:
        secret = keys.resolve(secret_key, "secret")
        return CurveKeys(keys.resolve(server_key, "public"), keys.public_of(secret), secret)
    except KeyProblem as problem:
        raise GlmttsError(f"{problem}.") from None


class Handshakes:
    """Decides after a failed handshake whether another one makes sense; counts those without a reason."""

    def __init__(self, endpoint: str, keys: CurveKeys | None) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._unexplained = 0

    def succeeded(self) -> None:
        """The keys are right: later failures have other reasons."""
        self._unexplained = -(1 << 62)

    def failed(self, event: int, value: int) -> GlmttsError | None:
        """The error after which another try makes no sense, by an event of ZeroMQ's monitor; None if it does."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            key = self._keys.public if self._keys else ""
            return Forbidden(
                f"The daemon at {self._endpoint} does not know this client's key. Its administrator adds it with "
                f"`glmttsctl key add NAME '{key}' --reload`, under any NAME."
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return HandshakeFailed(f"{self._endpoint}: {self._protocol_problem(value)}.")
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._endpoint.startswith("tcp://"):
            self._unexplained += 1
            if self._unexplained >= _MAX_UNEXPLAINED:
                return HandshakeFailed(f"{self._endpoint}: {self._likely_problem()}.")
        return None

    def _likely_problem(self) -> str:
        """The daemon closed the connection without a reason."""
        if self._keys is None:
            return f"{_CLOSED}; most likely {_NO_KEYS}"
        return (
            f"{_CLOSED}; most likely server_key ({SERVER_KEY}) is not the daemon's key, which `glmttsctl key list` "
            f"shows its administrator, or {_NO_ENCRYPTION}"
        )

    def _protocol_problem(self, value: int) -> str:
        if value != _MECHANISM_MISMATCH:
            return f"the handshake failed (ZeroMQ's reason 0x{value:x}): no speech daemon answers there"
        return _NO_KEYS if self._keys is None else _NO_ENCRYPTION
