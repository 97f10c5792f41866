"""An answer of a server that may come late, but not without an end."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: From the first byte of an answer, its head, and its body if that is no audio, come within this time.
_SECONDS = 10.0
#: Most bytes of them, and of what is between two pieces of audio and is none: sizes of pieces, trailers.
_BYTES = 192 << 10


class EndlessError(http.client.HTTPException):
    """The server sends on and on what is no audio."""


class Answer(http.client.HTTPResponse):
    """An answer that is bounded until its audio begins: http.client bounds a line, but no time and no ``100 Continue``.

    The time before its first byte is not bounded, because a server may speak the whole text before it.
    """

    def __init__(self, sock: socket.socket, *given: Any, **named: Any) -> None:
        super().__init__(sock, *given, **named)
        self._bounded = _Bounded(sock, self.fp.detach())
        self.fp = io.BufferedReader(self._bounded)

    def next_audio(self, most: int) -> bytes:
        """At most ``most`` bytes of the body, as soon as some are there; b"" at its end. Raises EndlessError."""
        self._bounded.let_through()
        return self.read1(most)


class _Bounded(io.RawIOBase):
    """Owns what reads the socket."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock, self._raw = sock, raw
        self._patience_s = sock.gettimeout()
        self._left = _BYTES
        self._until: float | None = None
        self._is_audio = False

    def let_through(self) -> None:
        """Bound the time no longer, and the bytes until the next call."""
        if not self._is_audio:
            self._is_audio = True
            self._sock.settimeout(self._patience_s)
        self._left = _BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        if self._until is not None and not self._is_audio:
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                raise EndlessError
            self._sock.settimeout(left_s if self._patience_s is None else min(left_s, self._patience_s))
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            if self._patience_s is None:
                raise EndlessError from None
            raise
        if self._until is None:
            self._until = time.monotonic() + _SECONDS
        self._left -= count or 0
        if self._left < 0:
            raise EndlessError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
